"""Make the environment that the Makefile works in: `python3 tools/set_up.py .venv`. Needs nothing but Python 3.11.

An environment with a PyTorch that is new enough is built upon and keeps it: on a machine with a GPU somebody chose it with care.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
TORCH_WITHOUT_GPU = "torch==2.13.0"  # the one that the suite was last run with
ROOT = Path(__file__).resolve().parent.parent


def main(folder: str) -> None:
    if sys.version_info < OLDEST_PYTHON:
        raise SystemExit(f"Python {sys.version.split()[0]} is too old; name one that is 3.11 or newer: make PYTHON=/path/to/python3.12")
    python = str(Path(folder, "bin", "python"))
    if not Path(python).exists():
        theirs = new_enough_torch(sys.executable)
        say(f"making {folder} " + (f"on top of the PyTorch {theirs} that is here" if theirs else "with a PyTorch of its own"))
        try:
            venv.create(folder, with_pip=True, system_site_packages=theirs is not None)
        except subprocess.CalledProcessError:
            raise SystemExit("this Python cannot make environments; on Debian and Ubuntu: apt-get install python3-venv") from None
    if not new_enough_torch(python) and not shutil.which("nvidia-smi"):
        say(f"installing {TORCH_WITHOUT_GPU}")
        pip(python, TORCH_WITHOUT_GPU)
    say("installing twofold and what its tests, checks and pages need")
    pip(python, "--editable", f"{ROOT}[dev]")


def new_enough_torch(python: str) -> str | None:
    """The version of the PyTorch that this Python imports, if it has one that twofold runs on."""
    done = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    version = done.stdout.strip()
    return version if version and tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_TORCH else None


def pip(python: str, *what: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})


def say(what: str) -> None:
    print(f"set-up: {what}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
