"""Tests of the interpreter are about nothing where kernels run on a GPU."""

import os

INTERPRETED = ["test_interpreter.py", "test_interpreter_memory.py", "test_big_tensor.py"]
collect_ignore = [] if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0") else INTERPRETED
