"""The list of known-bad compilers is well-formed, and a version is matched against it at both ends."""

import re

import pytest

from twofold.conformance.known_bad import KNOWN_BAD, known_bad


@pytest.mark.parametrize(
    "version, hit",
    [("3.3.1", False), ("3.4.0", True), ("3.6.0+git1234", True), ("3.7.0", True), ("3.7.1", False), ("3.10.0", False)],
)
def test_a_fixed_entry_ends_where_it_was_fixed(version, hit):
    issues = [entry.issue for entry in known_bad(version, "sm_90")]
    assert ("fla-org/flash-linear-attention#640" in issues) == hit
    assert known_bad(version, "sm_75") == []


def test_an_entry_without_a_fix_stays():
    assert "triton-lang/triton#10821" in [entry.issue for entry in known_bad("3.99.0", "sm_103")]


@pytest.mark.parametrize("entry", KNOWN_BAD, ids=lambda entry: entry.issue)
def test_every_entry_can_be_looked_up(entry):
    assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", entry.issue)
    assert all(re.fullmatch(r"sm_\d+|gfx\w+", architecture) for architecture in entry.architectures)
    assert all(known_bad(entry.since, architecture) for architecture in entry.architectures)
