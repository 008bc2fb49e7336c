"""The tests that hold `twofold.fast`, or anybody's implementation, to `twofold.spec`."""
