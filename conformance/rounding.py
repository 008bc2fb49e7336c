"""Running rounding-error analysis of unchanged NumPy text.

A `Rounded` array carries, beside each float64 value, how far an implementation in lower precision may be from it: `error` bounds
the distance in every case, `variance` is the second moment of the distance where roundings are independent. NumPy's own dispatch
(`__array_ufunc__`, `__array_function__`) makes ordinary spec code run on it: every elementary operation propagates what its
operands carry and adds one rounding, a reduction over n terms adds those of n partial sums in any order. Comparisons and index
computations act on the values: which branch is taken is semantic, and tested exactly elsewhere. An operation without a rule is an
error, never a guess. The rules stand in `rounding_rules.py`.

What is modelled is the implementation's declared precision contract, `Precision`: the dtype of inputs and outputs, the accumulator,
and the format in which matrix products take operands that were computed.

>>> x = Rounded(np.array([1.0, 2.0]), precision=Precision("float32"))
>>> (x + x).value.tolist(), bool(((x + x).error <= 2.0**-24 * 4).all())
([2.0, 4.0], True)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twofold.conformance import rounding_rules as rules

__all__ = ["TINY", "UNIT", "Precision", "Rounded", "bounded", "perturbed"]

UNIT = {  # unit roundoff: half the distance from 1 to the next number
    "float64": 2.0**-53, "float32": 2.0**-24, "tf32x3": 2.0**-22, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8,
    "float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3,
}  # fmt: skip
TINY = {  # absolute error near zero: half a subnormal step, or for float32 and bfloat16, which GPUs may flush, the smallest normal number
    "float64": 2.0**-1075, "float32": 2.0**-126, "tf32x3": 2.0**-126, "tf32": 2.0**-126, "float16": 2.0**-25, "bfloat16": 2.0**-126,
    "float8_e4m3fn": 2.0**-10, "float8_e5m2": 2.0**-17,
}  # fmt: skip


@dataclass(frozen=True)
class Precision:
    """A precision contract: the dtype of inputs and outputs, the format of sums, and that of a matrix product's computed operands.

    `operand` None: computed operands are cast to `dtype` where that is a 16- or 8-bit format, and stay as they are elsewhere.
    """

    dtype: str
    accumulator: str = "float32"
    operand: str | None = None

    @property
    def unit(self) -> float:
        return UNIT[self.accumulator]

    @property
    def tiny(self) -> float:
        return TINY[self.accumulator]

    @property
    def operand_format(self) -> str:
        if self.operand:
            return self.operand
        return self.dtype if UNIT[self.dtype] > self.unit else self.accumulator

    @property
    def operand_unit(self) -> float:
        return UNIT[self.operand_format]

    @property
    def operand_tiny(self) -> float:
        return TINY[self.operand_format]


class Rounded(np.lib.mixins.NDArrayOperatorsMixin):
    """A float64 array with a bound and a variance of an implementation's distance from it."""

    __array_priority__ = 1000

    def __init__(self, value, error=None, variance=None, *, precision: Precision, stored=None):
        self.value = np.asarray(value, float)
        self.error = np.zeros_like(self.value) if error is None else np.broadcast_to(error, self.value.shape)
        self.variance = np.zeros_like(self.value) if variance is None else np.broadcast_to(variance, self.value.shape)
        self.precision = precision
        self.stored = np.zeros_like(self.value) if stored is None else stored  # variance of the last rounding, when the result was stored

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    triple = property(lambda self: (self.value, self.error, self.variance))
    T = property(lambda self: self._moved(np.transpose))

    def __len__(self):
        return len(self.value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        return self._moved(lambda x: x[key])

    def __repr__(self):
        return f"Rounded({self.value!r} ± {self.error!r})"

    def __float__(self):
        raise TypeError("a Rounded array would lose its error as a float")

    def _moved(self, move: Callable) -> "Rounded":
        return Rounded(*map(move, self.triple), precision=self.precision, stored=move(self.stored))

    def sum(self, axis=None, keepdims=False):
        return np.add.reduce(self, axis=axis, keepdims=keepdims)

    def max(self, axis=None, keepdims=False, initial=None):
        return np.maximum.reduce(self, axis=axis, keepdims=keepdims, **({} if initial is None else {"initial": initial}))

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis, keepdims)
        return total / (self.size // max(total.size, 1))

    def reshape(self, *shape):
        return self._moved(lambda x: x.reshape(*shape))

    def swapaxes(self, a, b):
        return self._moved(lambda x: x.swapaxes(a, b))

    def rounded_to(self, dtype: str) -> "Rounded":
        """The value stored in a narrower format: one more rounding, remembered apart because it is independent from element to element."""
        if UNIT[dtype] <= self.precision.unit:
            return self
        error = UNIT[dtype] * _binade(np.abs(self.value) + self.error) + TINY[dtype]
        stored = (UNIT[dtype] * _binade(self.value)) ** 2 / 3 + TINY[dtype] ** 2
        return Rounded(self.value, self.error + error, self.variance + stored, precision=self.precision, stored=stored)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if kwargs.get("out") is not None or kwargs.get("where") is not None:
            raise TypeError(f"numpy.{ufunc.__name__} with out= or where= has no rounding rule: specs are written without them")
        if ufunc in rules.COMPARISONS and method == "__call__":
            return ufunc(*(x.value if isinstance(x, Rounded) else x for x in inputs))
        operands = [_part(x, self.precision).triple for x in inputs]
        return Rounded(*rules.apply(ufunc, method, operands, self.precision, **kwargs), precision=self.precision)

    def __array_function__(self, func, types, args, kwargs):
        if func not in _FUNCTIONS:
            raise TypeError(f"no rounding rule for {func.__module__}.{func.__name__}")
        return _FUNCTIONS[func](*args, **kwargs)


def bounded(function: Callable, *args, precision: Precision, outputs: str | Sequence[str] | None = None, **kwargs) -> Any:
    """Run unchanged spec text on rounding-error arrays: floating-point arrays among the arguments are exact inputs.

    `outputs` names the format each result is stored in (one name for all; None: the dtype of the contract).
    """
    wrap = lambda x: Rounded(x, precision=precision) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
    with np.errstate(all="ignore"):
        results = function(*map(wrap, args), **{name: wrap(x) for name, x in kwargs.items()})
    several = isinstance(results, tuple)
    results = results if several else (results,)
    formats = [outputs or precision.dtype] * len(results) if outputs is None or isinstance(outputs, str) else outputs
    stored = tuple(
        None if r is None else _part(r, precision).rounded_to(f) for r, f in zip(results, formats, strict=True)
    )
    return stored if several else stored[0]


def perturbed(function: Callable, *args, unit: float, seeds: Sequence[int] = range(8), **kwargs) -> np.ndarray:
    """A second estimate, which needs no rules: how far the float64 spec moves, at most and element by element, when every input moves
    by one unit roundoff. A bound below it would flag implementations for the conditioning of the problem. """
    exact = function(*args, **kwargs)
    moves = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        moved = (x * (1 + unit * rng.uniform(-1, 1, x.shape)) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in args)
        moves.append(np.abs(function(*moved, **kwargs) - exact))
    return np.max(moves, axis=0)


def _binade(x: np.ndarray) -> np.ndarray:
    """The power of two at or below |x|: roundings are relative to it, not to x."""
    return np.where(x == 0, 0.0, np.ldexp(1.0, np.frexp(np.where(np.isfinite(x), x, 0))[1] - 1))


def _part(x, precision: Precision) -> Rounded:
    """An operand with its error; a constant is rounded once, to the accumulator's format."""
    if isinstance(x, Rounded):
        return x
    value = np.asarray(x, float)
    if UNIT[precision.accumulator] <= UNIT["float64"]:
        return Rounded(value, precision=precision)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(value - value.astype(np.float32))
    error = np.where(np.isfinite(error), error, 0.0)
    return Rounded(value, error, error**2, precision=precision)


def _moves(function: Callable) -> Callable:
    """A rule for functions that only move elements."""
    return lambda x, *args, **kwargs: x._moved(lambda part: function(part, *args, **kwargs))


def _joins(function: Callable) -> Callable:
    def rule(arrays, *args, **kwargs):
        triples, precision = _operands(*arrays)
        return Rounded(*(function(parts, *args, **kwargs) for parts in zip(*triples)), precision=precision)

    return rule


def _where(condition, a, b):
    triples, precision = _operands(a, b)
    return Rounded(*(np.where(condition, *parts) for parts in zip(*triples)), precision=precision)


def _einsum(subscripts: str, *operands):
    triples, precision = _operands(*operands)
    return Rounded(*rules.einsum(subscripts, triples, precision), precision=precision)


def _operands(*operands) -> tuple[list[rules.Triple], Precision]:
    precision = next(x.precision for x in operands if isinstance(x, Rounded))
    return [_part(x, precision).triple for x in operands], precision


_FUNCTIONS: dict[Any, Callable] = {
    function: _moves(function)
    for function in (
        np.reshape, np.swapaxes, np.transpose, np.moveaxis, np.tril, np.triu, np.flip, np.repeat, np.tile, np.expand_dims, np.squeeze,
        np.broadcast_to, np.take, np.roll, np.diag, np.diagonal, np.ravel,
    )
}  # fmt: skip
_FUNCTIONS |= {function: _joins(function) for function in (np.stack, np.concatenate)}
_FUNCTIONS |= {
    np.where: _where,
    np.outer: lambda a, b: np.multiply.outer(a, b),
    np.dot: lambda a, b: np.matmul(a, b),
    np.einsum: _einsum,
    np.sum: lambda x, axis=None, keepdims=False: np.add.reduce(x, axis=axis, keepdims=keepdims),
    np.mean: lambda x, axis=None, keepdims=False: x.mean(axis, keepdims),
    np.cumsum: lambda x, axis=0: np.add.accumulate(x, axis=axis),
    np.cumprod: lambda x, axis=0: np.multiply.accumulate(x, axis=axis),
    np.max: lambda x, axis=None, keepdims=False, initial=None: x.max(axis, keepdims, initial),
    np.amax: lambda x, axis=None, keepdims=False, initial=None: x.max(axis, keepdims, initial),
    np.zeros_like: lambda x, **kwargs: np.zeros_like(x.value, **kwargs),
    np.ones_like: lambda x, **kwargs: np.ones_like(x.value, **kwargs),
    np.full_like: lambda x, fill, **kwargs: np.full_like(x.value, fill, **kwargs),
    np.shape: lambda x: x.shape,
    np.ndim: lambda x: x.ndim,
    np.size: lambda x: x.size,
    np.argmax: lambda x, **kwargs: np.argmax(x.value, **kwargs),
    np.argsort: lambda x, **kwargs: np.argsort(x.value, **kwargs),
}
