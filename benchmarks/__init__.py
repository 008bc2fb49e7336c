"""Speed: every chapter beside its peers and the hardware's limit. `python -m benchmarks --help`, from the repository root."""

import os

for _library in ("OMP", "OPENBLAS", "MKL"):  # one thread on the CPU, decided before NumPy and PyTorch are imported: see harness.py
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
