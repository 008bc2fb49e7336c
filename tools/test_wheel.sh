#!/usr/bin/env bash
# Build the wheel by way of the source distribution, and run the suite from it where no checkout is in sight:
#   tools/test_wheel.sh .venv/bin/python
# PyTorch is not installed a second time: a path file lends the new environment the packages of the given Python. Path files found along
# that path are not followed, so the editable twofold stays out.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "$1")
[ "${python:0:1}" = / ] || python=$PWD/$python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --outdir "$work/dist" "$root" > "$work/build.log" 2>&1 || { tail -n 40 "$work/build.log"; exit 1; }
"$python" "$root/tools/check_wheel.py" "$work"/dist/*.whl

"$python" -m venv --without-pip "$work/venv"
lent=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
here=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$lent" > "$here/lent.pth"
"$python" -m pip --python "$work/venv/bin/python" install --quiet --no-deps --ignore-installed "$work"/dist/*.whl

mkdir "$work/elsewhere"
cd "$work/elsewhere"
"$work/venv/bin/python" - <<'PYTHON'
import pathlib, sys, twofold.spec, twofold.fast, twofold.conformance
for package in (twofold.spec, twofold.fast, twofold.conformance):
    assert pathlib.Path(package.__file__).is_relative_to(sys.prefix), f"{package.__file__} is not in the wheel's environment"
PYTHON
"$work/venv/bin/twofold" list > /dev/null
TWOFOLD_PROFILE=quick "$work/venv/bin/python" -m pytest --pyargs twofold.conformance -q -p no:cacheprovider -n "$(nproc)" --dist worksteal
