"""Everything is declared in pyproject.toml. Here stands one guard: without symbolic links the wheel would come out empty, unnoticed."""

from pathlib import Path

for tree in ("spec", "fast", "conformance"):
    if not Path(__file__).parent.joinpath("src", "twofold", tree, "__init__.py").is_file():
        raise SystemExit(
            f"src/twofold/{tree} is not a folder. It is a symbolic link to ../../{tree}, and this copy of the repository lost it: "
            "check out again where symbolic links exist (git config core.symlinks true)."
        )

from setuptools import setup  # noqa: E402 (the guard needs nothing but Python)

setup()
