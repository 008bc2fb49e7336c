"""Whose implementation is under test.

By default `twofold.fast`, once per backend that runs here. `TWOFOLD_TARGET=some.module` points the same tests elsewhere: at modules
of the same paths below it (`some.module.attention.flash`), or at a mapping `CHAPTERS = {"attention.flash": object}` that it holds.
There a missing chapter or form is a skip, for us it is an error. These are the suite's only skips, with "no GPU" and a dtype that a
device lacks.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["OURS", "Implementation", "backends", "chapter_of", "device", "implementation", "target"]

OURS = "twofold.fast"


def target() -> str:
    return os.environ.get("TWOFOLD_TARGET") or OURS


def device() -> str:
    """Where tensors live: `TWOFOLD_DEVICE`, or the GPU if there is one."""
    import torch

    return os.environ.get("TWOFOLD_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def backends() -> list[str]:
    """The sides of `twofold.fast` that run here; `TWOFOLD_BACKEND` keeps one of them. A foreign target has one side, its own."""
    if target() != OURS:
        return [target().rpartition(".")[2]]
    from twofold.fast import backend

    here = ["triton", "torch"] if device() == "cuda" or backend.interpreted() else ["torch"]
    return [side for side in here if os.environ.get("TWOFOLD_BACKEND") in (None, "", side)]


def chapter_of(test_file: Path) -> str:
    """`attention.flash` for `…/attention/test_flash.py` and, where a chapter has several files, `…/attention/test_flash_backward.py`."""
    family = test_file.parent.name
    words = test_file.stem.removeprefix("test_").split("_")
    for end in range(len(words), 0, -1):
        name = "_".join(words[:end])
        if (Path(__file__).parent.parent / "spec" / family / f"{name}.py").exists():
            return f"{family}.{name}"
    raise LookupError(f"{test_file.name} is named after no chapter of spec/{family}")


class Implementation:
    """The forms of one chapter as attributes; in a foreign target, a form that is missing skips the test."""

    def __init__(self, chapter: str, forms: Any, side: str):
        self.chapter, self.forms, self.side = chapter, forms, side

    def __getattr__(self, name: str) -> Any:
        if target() == OURS or hasattr(self.forms, name):
            return getattr(self.forms, name)
        if name in importlib.import_module(f"twofold.spec.{self.chapter}").__all__:
            pytest.skip(f"{target()} has no {self.chapter}.{name}")
        raise AttributeError(name)  # hypothesis asks for attributes of its own


@contextmanager
def implementation(chapter: str, side: str) -> Iterator[Implementation]:
    """The chapter of the target, with its side forced while the `with` block runs."""
    if target() == OURS:
        from twofold.fast import backend

        with backend.use(side):
            yield Implementation(chapter, importlib.import_module(f"{OURS}.{chapter}"), side)
    else:
        yield Implementation(chapter, _foreign(target(), chapter), side)


def _foreign(name: str, chapter: str) -> Any:
    chapters = getattr(importlib.import_module(name), "CHAPTERS", None)
    if chapters is not None:
        if chapter not in chapters:
            pytest.skip(f"{name} has no {chapter}")
        return chapters[chapter]
    try:
        return importlib.import_module(f"{name}.{chapter}")
    except ModuleNotFoundError as error:
        if error.name and f"{name}.{chapter}".startswith(error.name):
            pytest.skip(f"{name} has no {chapter}")
        raise
