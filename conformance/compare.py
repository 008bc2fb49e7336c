"""When two results agree: `exactly` demands the same bits, `agree` holds four checks of a derived bound, and `coincide` holds two texts
of one function to both their bounds.

- `worst`: every element within the deterministic bound; holds for any input.
- `spread`: every element within six standard deviations of the independent-roundings model; `rms`: so is each row's root mean
    square, where the final rounding, independent from element to element, averages out; `bias`: the errors of a 16-bit output,
    summed along the signs of its values, which a cast that truncates cannot hide from. These three hold for seeded independent
    inputs, and are asked for by `independent=True`.

Metrics are per element and per row, never cosine or a global norm. Every agreement records its error over bound, and whether the
bound would also have accepted wrong outputs: a test in which it always would have is toothless, and fails.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twofold.conformance.rounding import Rounded

__all__ = ["SIGMAS", "agree", "checks", "coincide", "exactly", "observed"]

SIGMAS = 6.0  # 2e-9 of the draws of a normal law lie outside


@dataclass
class Observed:
    """What the agreements of the running test have shown."""

    ratios: dict[tuple[str, str], float] = field(default_factory=dict)  # (dtype, what) -> worst error over bound
    teeth: dict[str, bool] = field(default_factory=dict)  # wrong output that differed -> whether any bound told it from the right one

    def clear(self) -> None:
        self.ratios.clear()
        self.teeth.clear()

    def demand_teeth(self) -> None:
        blind = [name for name, seen in self.teeth.items() if not seen]
        assert not blind, f"toothless: no example of this test tells the implementation from one whose output is {' or '.join(blind)}"


observed = Observed()

WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all zero": np.zeros_like,
    "rolled along its first axis": lambda x: np.roll(x, 1, axis=0),
    "1/16 too large": lambda x: x * (1 + 2.0**-4),
}


def exactly(actual: Any, expected: Any, what: str = "output") -> None:
    """The same shape and the same values, bit for bit except that any NaN equals any NaN."""
    actual, expected = _array(actual), _array(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    same = (actual == expected) | ((actual != actual) & (expected != expected))
    if not np.all(same):
        first = tuple(int(i) for i in np.argwhere(~same)[0])
        raise AssertionError(
            f"{what}: {np.sum(~same)} of {same.size} elements differ, first at {first}: {actual[first]!r}, expected {expected[first]!r}"
        )


def agree(actual: Any, expected: Rounded, what: str = "output", *, independent: bool = False) -> None:
    """Hold a result to the spec's, within the bound that ran along with it; `independent`: inputs were seeded and independent."""
    actual = _array(actual).astype(np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    dtype = expected.precision.dtype
    ratios = checks(actual, expected, independent)
    for check, ratio in ratios.items():
        if ratio.size and not np.max(ratio) <= 1:
            worst = tuple(int(i) for i in np.unravel_index(np.argmax(np.nan_to_num(ratio, nan=np.inf)), ratio.shape))
            raise AssertionError(
                f"{what} ({dtype}), {check}: error over bound {ratio[worst]:.3g} at {worst}: "
                f"{actual[worst]!r}, expected {expected.value[worst]!r} ± {expected.error[worst]!r}"
            )
    if actual.size:
        actual = np.atleast_1d(actual)
        observed.ratios[dtype, what] = max(observed.ratios.get((dtype, what), 0.0), float(np.max(ratios["worst"])))
        for name, wrong in WRONG.items():
            output = wrong(actual)
            if not np.array_equal(output, actual, equal_nan=True):
                seen = any(not np.max(ratio) <= 1 for ratio in checks(output, expected, independent).values())
                observed.teeth[name] = observed.teeth.get(name, False) or seen


def coincide(one: Rounded, other: Rounded, what: str = "output") -> None:
    """Two texts of one function, each run on rounding-error arrays: results no farther apart than both their errors."""
    agree(one.value, Rounded(other.value, one.error + other.error, precision=other.precision), what)


def checks(actual: np.ndarray, expected: Rounded, independent: bool) -> dict[str, np.ndarray]:
    """Error over bound of each check: an array shaped like the output for the elementwise ones, like its rows for the others."""
    special = ~np.isfinite(expected.value)
    with np.errstate(invalid="ignore"):
        error = np.where(special, 0.0, actual - expected.value)
    ratios = {"worst": _over(np.abs(error), expected.error)}
    same = (actual == expected.value) | (np.isnan(actual) & np.isnan(expected.value))
    ratios["worst"] = np.where(special & ~same, np.inf, ratios["worst"])
    if independent and expected.ndim:
        inner = np.maximum(expected.variance - expected.stored, 0)  # what is shared within a row: the normalizer's error, say
        ratios["spread"] = _over(np.abs(error), SIGMAS * np.sqrt(expected.variance))
        scatter = 1 + SIGMAS * np.sqrt(2 / max(actual.shape[-1], 1))
        limit = np.sqrt(scatter * np.mean(expected.stored, -1, keepdims=True) + SIGMAS**2 * np.mean(inner, -1, keepdims=True))
        ratios["rms"] = _over(np.sqrt(np.mean(error**2, -1, keepdims=True)), limit)
        if np.any(expected.stored):  # all rows together: a cast that truncates leans one way everywhere
            shared = np.sum(np.sqrt(inner), -1) ** 2  # within a row the inner errors may all lean one way
            limit = SIGMAS * np.sqrt(np.sum(expected.stored) + np.sum(shared))
            ratios["bias"] = _over(np.abs(np.sum(error * np.sign(expected.value), keepdims=True)), limit)
    return ratios


def _over(error: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """error / bound, where 0 / 0 is 0, anything over a bound of 0 is infinite, and NaN is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isnan(error), np.inf, np.where(error == 0, 0.0, error / bound))


def _array(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        from twofold.conformance import inputs

        return inputs.array(x)
    return np.asarray(x)
