"""Whether a wheel holds every source and data file of the repository: `python tools/check_wheel.py dist/*.whl`."""

import sys
import zipfile
from pathlib import Path

TREES = ("spec", "fast", "conformance")
KINDS = {".py", ".toml", ".json"}
ROOT = Path(__file__).resolve().parent.parent


def expected(root: Path = ROOT) -> set[str]:
    """What the trees and the package hold, as paths inside the wheel."""
    trees = [(root / tree, Path("twofold", tree)) for tree in TREES]
    own = [(root / "src" / "twofold" / "cli", Path("twofold", "cli"))]
    files = {
        str(inside / path.relative_to(folder)) for folder, inside in trees + own for path in folder.rglob("*") if path.suffix in KINDS
    }
    return files | {f"twofold/{path.name}" for path in (root / "src" / "twofold").iterdir() if path.suffix in KINDS} | {"twofold/py.typed"}


def differences(wheel: str, files: set[str]) -> list[str]:
    """What is missing from the wheel, and what it holds that the repository does not."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    return [f"missing: {name}" for name in sorted(files - inside)] + [f"unexpected: {name}" for name in sorted(inside - files)]


if __name__ == "__main__":
    problems = [problem for wheel in sys.argv[1:] for problem in differences(wheel, expected())]
    print("\n".join(problems) or f"{sys.argv[1]}: all {len(expected())} files are there")
    sys.exit(bool(problems))
