"""Versions of Triton that are publicly known to compile right kernels into wrong programs, by architecture.

Only what a public issue reports is here, with the versions that its reporters measured; nothing was reproduced for this list. `fixed` is
the first version reported right, None where no report says so. A kernel may still be right there: each entry says what kind was hit.

>>> [entry.issue for entry in known_bad("3.7.0", "sm_90")]
['fla-org/flash-linear-attention#640', 'fla-org/flash-linear-attention#984']
>>> known_bad("3.9.0", "sm_80")
[]
"""

import re
from dataclasses import dataclass

__all__ = ["KNOWN_BAD", "KnownBad", "known_bad"]


@dataclass(frozen=True)
class KnownBad:
    issue: str  # repository#number
    since: str  # the first version of Triton reported wrong
    fixed: str | None  # the first version reported right again
    architectures: tuple[str, ...]
    what: str


KNOWN_BAD = (
    KnownBad(
        "fla-org/flash-linear-attention#640", "3.4.0", "3.7.1", ("sm_90",),
        "a matrix product whose left operand is the transpose of another product's rounded result gives wrong values in some tile shapes "
        "(gradients of chunked gated delta rule; BK = 64)",
    ),
    KnownBad(
        "fla-org/flash-linear-attention#984", "3.4.0", None, ("sm_90",),
        "chained 64 × 64 products in 4 warps give wrong gradients or illegal accesses; 2 warps are right (delta rule, chunk size 64; "
        "still so in 3.7.1)",
    ),
    KnownBad(
        "triton-lang/triton#11366", "3.7.1", None, ("sm_90",),
        "several products in a kernel with 32-wide tiles and 4 warps read shared memory out of bounds; 3.5.1 is clean",
    ),
    KnownBad(
        "triton-lang/triton#9871", "3.6.0", "3.7.0", ("sm_100",),
        "products in a recurrence with a loop bound known only at run time race, in 4 warps and 32-wide tiles: results differ from run "
        "to run (fixed by #9615)",
    ),
    KnownBad(
        "triton-lang/triton#10590", "3.6.0", None, ("sm_103",),
        "products in a chunked recurrence with 4 or 8 warps and 2 or 3 stages differ from run to run; still so in 3.7.0",
    ),
    KnownBad(
        "triton-lang/triton#10821", "3.6.0", None, ("sm_103",),
        "two products that add to one accumulator inside a loop give wrong sums, the same in every run; also in 3.7.1 and on main in "
        "July 2026",
    ),
    KnownBad(
        "triton-lang/triton#11153", "3.7.0", None, ("sm_86",),
        "a kernel with stores under branches on loaded values gives wrong results in the programs that take the branch",
    ),
)  # fmt: skip


def known_bad(triton_version: str, architecture: str) -> list[KnownBad]:
    """The entries that concern this compiler on this architecture (`sm_90`, `gfx942`)."""
    version = _numbers(triton_version)
    return [
        entry
        for entry in KNOWN_BAD
        if architecture in entry.architectures and _numbers(entry.since) <= version and (not entry.fixed or version < _numbers(entry.fixed))
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])
