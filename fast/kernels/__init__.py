"""The few kernels that all chapters share, each beside its PyTorch twin."""
