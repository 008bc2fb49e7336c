"""The algorithms, once to run: Triton kernels on a GPU, PyTorch elsewhere. `twofold.fast.<family>.<algorithm>`."""
