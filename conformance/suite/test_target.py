"""The implementation under test: ours by default, anybody's by name; what a foreign one lacks is skipped, what ours lacks is an error."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import target

CHAPTER = "speculative.chain"


@pytest.fixture
def foreign(monkeypatch):
    module = ModuleType("somebodys_kernels")
    module.CHAPTERS = {CHAPTER: SimpleNamespace(verify="theirs")}
    monkeypatch.setitem(sys.modules, "somebodys_kernels", module)
    monkeypatch.setenv("TWOFOLD_TARGET", "somebodys_kernels")
    return module


def test_a_mapping_is_a_target(foreign):
    assert target.backends() == ["somebodys_kernels"]
    with target.implementation(CHAPTER, "somebodys_kernels") as fast:
        assert fast.verify == "theirs"
        with pytest.raises(pytest.skip.Exception, match="has no speculative.chain.verify_onehot"):
            _ = fast.verify_onehot


def test_a_chapter_that_a_foreign_target_lacks_is_skipped(foreign):
    for _ in range(2):
        with pytest.raises(pytest.skip.Exception, match="no attention.flash"), target.implementation("attention.flash", "theirs"):
            pass
        if hasattr(foreign, "CHAPTERS"):
            del foreign.CHAPTERS  # the second time, modules below it are looked for


def test_a_form_or_chapter_that_ours_lacks_is_an_error(monkeypatch):
    monkeypatch.delenv("TWOFOLD_TARGET", raising=False)
    with target.implementation(CHAPTER, "torch") as fast, pytest.raises(AttributeError):
        _ = fast.no_such_form
    with pytest.raises(ModuleNotFoundError), target.implementation("speculative.no_such_chapter", "torch"):
        pass


def test_a_test_file_names_its_chapter():
    assert target.chapter_of(Path("attention/test_flash.py")) == "attention.flash"
    assert target.chapter_of(Path("attention/test_flash_backward.py")) == "attention.flash"
    assert target.chapter_of(Path("linear_attention/test_gla.py")) == "linear_attention.gla"
    with pytest.raises(LookupError):
        target.chapter_of(Path("attention/test_nothing.py"))


def test_one_backend_can_be_asked_for(monkeypatch):
    monkeypatch.delenv("TWOFOLD_TARGET", raising=False)
    monkeypatch.setenv("TWOFOLD_BACKEND", "torch")
    assert target.backends() == ["torch"]


def test_laws_drawn_by_hypothesis_reach_a_foreign_target(foreign):
    """hypothesis asks its arguments for attributes of its own: those must not look like forms that are missing."""
    seen = []

    @given(st.integers(0, 9))
    def law(fast, number):
        seen.append(number)
        assert fast.verify == "theirs"

    with target.implementation(CHAPTER, "somebodys_kernels") as fast:
        law(fast)
    assert len(seen) > 1
