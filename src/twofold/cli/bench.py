"""`twofold bench`: the benchmarks of the repository, which are not installed with the package."""

import subprocess
import sys
from collections.abc import Iterable

from twofold import discovery

__all__ = ["Unavailable", "run"]


class Unavailable(RuntimeError):
    """There are no benchmarks here."""


def run(patterns: Iterable[str], as_json: bool) -> int:
    """Run `python -m benchmarks` at the root of the repository; its exit code."""
    root = discovery.checkout()
    if root is None or not (root / "benchmarks").is_dir():
        raise Unavailable("the benchmarks live in the repository, not in the installed package: clone it and run `make bench` there")
    return subprocess.run([sys.executable, "-m", "benchmarks", *patterns, *(["--json"] if as_json else [])], cwd=root).returncode
