"""What is installed is whole; and in a checkout, that what is built from it will be."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import twofold
from twofold import discovery

PACKAGE = discovery.PACKAGE
ROOT = discovery.checkout()


def test_installed_package_is_whole():
    assert (PACKAGE / "py.typed").is_file()
    assert {chapter.family for chapter in discovery.chapters()} >= {"attention", "linear_attention", "quantization", "speculative"}
    assert any((PACKAGE / "conformance" / "bugs").glob("*/*.toml")), "the bug museum's entries are data of the package"
    assert (PACKAGE / "conformance" / "budgets.json").is_file(), "so are the budgets of the kernels"


def test_command_is_installed():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="twofold")
    assert command.load() is importlib.import_module("twofold.cli").main


def test_trees_are_found_beside_the_package():
    assert discovery.Path(twofold.__file__).parent == PACKAGE
    assert all(discovery.tree(name).parent == PACKAGE for name in ("spec", "fast", "conformance"))


if ROOT:  # an installed wheel has no setup.py, no tools and no README

    def tool(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def set_up(folder):
        """Run setup.py in a folder, with a stand-in for setuptools that builds nothing."""
        shutil.copy(ROOT / "setup.py", folder)
        (folder / "setuptools.py").write_text("def setup(): print('building')")
        return subprocess.run([sys.executable, "setup.py"], cwd=folder, capture_output=True, text=True)

    def test_nothing_is_built_where_a_link_was_lost(tmp_path):
        for tree in ("fast", "conformance"):
            (tmp_path / "src" / "twofold" / tree).mkdir(parents=True)
            (tmp_path / "src" / "twofold" / tree / "__init__.py").touch()
        (tmp_path / "src" / "twofold" / "spec").write_text("../../spec")  # what a file system without symbolic links makes of one
        lost = set_up(tmp_path)
        assert lost.returncode == 1 and "src/twofold/spec is not a folder" in lost.stderr and not lost.stdout
        (tmp_path / "src" / "twofold" / "spec").unlink()
        (tmp_path / "src" / "twofold" / "spec").mkdir()
        (tmp_path / "src" / "twofold" / "spec" / "__init__.py").touch()
        assert set_up(tmp_path).stdout == "building\n"

    def test_wheel_check_tells_what_is_missing(tmp_path):
        check = tool("check_wheel")
        files = check.expected()
        some = {"twofold/spec/rng.py", "twofold/conformance/bugs/attention/flash.toml", "twofold/cli/app.py", "twofold/py.typed"}
        assert some <= files
        with zipfile.ZipFile(tmp_path / "empty.whl", "w") as wheel:
            wheel.writestr("twofold-0.1.0.dist-info/METADATA", "")
            wheel.writestr("twofold/stray.py", "")
        assert len(check.differences(tmp_path / "empty.whl", files)) == len(files) + 1
        with zipfile.ZipFile(tmp_path / "full.whl", "w") as wheel:
            for name in files:
                wheel.writestr(name, "")
        assert check.differences(tmp_path / "full.whl", files) == []

    def test_readme_is_up_to_date():
        readme = tool("readme")
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        assert readme.renewed(text) == text, "run `make readme`"
        assert readme.renewed(text.replace("attention.dense", "attention.sparse")) == text, "the check would not notice a stale table"

    @pytest.mark.parametrize("number", range(5))
    def test_readme_code_runs(number):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        assert len(blocks) == 5
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # as a user has it
        subprocess.run([sys.executable, "-c", blocks[number]], env=environment, check=True)
