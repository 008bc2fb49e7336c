"""The algorithms, once to read: short NumPy modules written from their papers. `twofold.spec.<family>.<algorithm>`."""
