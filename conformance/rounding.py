"""Running rounding-error analysis of unchanged NumPy text.

A `Rounded` array carries, beside each float64 value, how far an implementation in lower precision may be from it: `error` bounds
the distance in every case, `variance` is the second moment of the distance where roundings are independent. NumPy's own dispatch
(`__array_ufunc__`, `__array_function__`) makes ordinary spec code run on it: every elementary operation propagates what its
operands carry and adds one rounding, a reduction over n terms adds those of n partial sums in any order. Comparisons and index
computations act on the values: which branch is taken is semantic, and tested exactly elsewhere. An operation without a rule is an
error, never a guess.

What is modelled is the implementation's declared precision contract, `Precision`: the dtype of inputs and outputs, the accumulator,
and the format in which matrix products take operands that were computed.

>>> x = Rounded(np.array([1.0, 2.0]), precision=Precision("float32"))
>>> (x + x).value.tolist(), ((x + x).error <= 2.0**-24 * 4).all()
([2.0, 4.0], True)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TINY", "UNIT", "Precision", "Rounded", "bounded", "perturbed"]

UNIT = {  # unit roundoff: half the distance from 1 to the next number
    "float64": 2.0**-53, "float32": 2.0**-24, "tf32x3": 2.0**-22, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8,
    "float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3,
}  # fmt: skip
TINY = {  # absolute error near zero: half a subnormal step, or for float32 and bfloat16, which GPUs may flush, the smallest normal number
    "float64": 2.0**-1075, "float32": 2.0**-126, "tf32x3": 2.0**-126, "tf32": 2.0**-126, "float16": 2.0**-25, "bfloat16": 2.0**-126,
    "float8_e4m3fn": 2.0**-10, "float8_e5m2": 2.0**-17,
}  # fmt: skip
ULPS = 4.0  # error of exp, log, tanh, … in units of roundoff (2 units in the last place)


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
    def operand_format(self) -> str:
        if self.operand:
            return self.operand
        return self.dtype if UNIT[self.dtype] > self.unit else self.accumulator


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
        parts = (move(x) for x in (self.value, self.error, self.variance))
        return Rounded(*parts, precision=self.precision, stored=move(self.stored))

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
        precision = self.precision
        if ufunc in _COMPARISONS and method == "__call__":
            return ufunc(*(_part(x).value if isinstance(x, Rounded) else x for x in inputs))
        parts = [_part(x, precision) for x in inputs]
        if ufunc is np.matmul and method == "__call__":
            return _contract(np.matmul, *map(_as_operand, parts), terms=parts[0].shape[-1])
        if ufunc is np.multiply and method == "outer":
            return _contract(np.multiply.outer, *parts, terms=1)
        if ufunc is np.add and method in ("reduce", "accumulate"):
            return _sum(parts[0], method, **kwargs)
        if ufunc in (np.maximum, np.minimum) and method == "reduce":
            return _extreme(ufunc, parts[0], **kwargs)
        if method != "__call__" or ufunc not in _RULES:
            raise TypeError(f"no rounding rule for numpy.{ufunc.__name__} ({method})")
        return _elementwise(ufunc, parts)

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


def _part(x, precision: Precision | None = None) -> Rounded:
    """An operand with its error; a constant is rounded once, to the accumulator's format."""
    if isinstance(x, Rounded):
        return x
    value = np.asarray(x, float)
    assert precision is not None
    if UNIT[precision.accumulator] <= UNIT["float64"]:
        return Rounded(value, precision=precision)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(value - value.astype(np.float32))
    error = np.where(np.isfinite(error), error, 0.0)
    return Rounded(value, error, error**2, precision=precision)


def _result(value, error, variance, precision: Precision, roundings: float = 1.0) -> Rounded:
    """Add `roundings` roundings of the result; where the value is infinite or NaN it is semantic, and exact."""
    with np.errstate(all="ignore"):
        size = np.abs(value) + error
        error = error + roundings * (precision.unit * size + TINY[precision.accumulator])
        variance = variance + (roundings * precision.unit * np.abs(value)) ** 2 / 3 + TINY[precision.accumulator] ** 2
    finite = np.isfinite(value)
    return Rounded(value, np.where(finite, error, 0.0), np.where(finite, variance, 0.0), precision=precision)


def _elementwise(ufunc, parts: list[Rounded]) -> Rounded:
    gains, error, roundings = _RULES[ufunc]
    unit = parts[0].precision.unit
    v, e, s = [p.value for p in parts], [p.error for p in parts], [p.variance for p in parts]
    with np.errstate(all="ignore"):
        value = ufunc(*v)
        slopes = gains(value, *v)
        spread = sum(np.where(x > 0, np.square(slope) * x, 0.0) for slope, x in zip(slopes, s, strict=True))
        bound = np.broadcast_to(error(value, v, e, unit), value.shape)
    if not roundings:
        return Rounded(value, np.where(np.isfinite(value), bound, 0.0), spread, precision=parts[0].precision)
    return _result(value, np.where(np.isnan(bound), 0.0, bound), spread, parts[0].precision, roundings)


def _as_operand(x: Rounded) -> Rounded:
    """A matrix product's operand: rounded to the operand format unless it is an exact input that the format holds."""
    name = x.precision.operand_format
    if UNIT[name] <= x.precision.unit:
        return x
    mantissa = np.frexp(x.value)[0] / (2 * UNIT[name]) * 2
    fresh = (x.error > 0) | (mantissa != np.rint(mantissa))
    # relative to x, not to its binade: an implementation may round a multiple of x, as a running maximum does, and divide later
    rounding = np.where(fresh, UNIT[name] * (np.abs(x.value) + x.error) + TINY[name], 0.0)
    return Rounded(x.value, x.error + rounding, x.variance + rounding**2 / 3, precision=x.precision)


def _contract(contract: Callable, *parts: Rounded, terms: int) -> Rounded:
    """Products summed over `terms` terms in any order: |x|·|y| carries the bound, its square the variance."""
    precision, unit = parts[0].precision, parts[0].precision.unit
    value = contract(*(p.value for p in parts))
    sizes = [np.abs(p.value) for p in parts]
    high = contract(*(a + p.error for a, p in zip(sizes, parts, strict=True)))
    spread = contract(*(a**2 + p.variance for a, p in zip(sizes, parts, strict=True))) - contract(*(a**2 for a in sizes))
    total = contract(*sizes)
    rounding = terms * unit / (1 - terms * unit)
    error = high - total + rounding * high + terms * TINY[precision.accumulator]
    variance = np.maximum(spread, 0) + terms / 3 * (unit * total) ** 2 + TINY[precision.accumulator] ** 2
    cancelled = 4 * UNIT["float64"] * high  # high - total is itself computed in float64
    return Rounded(value, error + cancelled, variance, precision=precision)


def _sum(x: Rounded, method: str, axis=0, keepdims=False, dtype=None, initial=None) -> Rounded:
    if initial not in (None, 0) or dtype is not None:
        raise TypeError("a sum with initial= or dtype= has no rounding rule")
    options = {"axis": axis, "keepdims": keepdims} if method == "reduce" else {"axis": axis}
    add = getattr(np.add, method)
    unit = x.precision.unit
    if method == "reduce" and axis is None:
        terms = x.size
    else:
        terms = int(np.prod([x.shape[i] for i in np.atleast_1d(axis)]))
    size = add(np.abs(x.value), **options)
    high = add(np.abs(x.value) + x.error, **options)
    roundings = max(terms - 1, 0)
    error = add(x.error, **options) + roundings * unit / (1 - roundings * unit) * high
    variance = add(x.variance, **options) + roundings / 3 * (unit * size) ** 2
    value = add(x.value, **options)
    finite = np.isfinite(value)
    return Rounded(value, np.where(finite, error, 0.0), np.where(finite, variance, 0.0), precision=x.precision)


def _extreme(ufunc, x: Rounded, axis=0, keepdims=False, initial=None) -> Rounded:
    options = {"axis": axis, "keepdims": keepdims}
    value = ufunc.reduce(x.value, **options, **({} if initial is None else {"initial": initial}))
    return Rounded(
        value, np.max(x.error, initial=0.0, **options), np.max(x.variance, initial=0.0, **options), precision=x.precision
    )


_COMPARISONS = {
    np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal, np.isfinite, np.isnan, np.isinf, np.sign, np.signbit,
}  # fmt: skip


def _power(value, v, e, unit):
    exponent = np.unique(v[1])
    if np.any(e[1] > 0) or exponent.size != 1 or exponent[0] != 2:
        raise TypeError("numpy.power has a rounding rule for squares only")
    return 2 * np.abs(v[0]) * e[0] + e[0] ** 2


# ufunc: slopes of the result in each operand (for the variance), the bound from the operands' errors, roundings that the operation adds
_RULES: dict[Any, tuple[Callable, Callable, float]] = {
    np.add: (lambda r, a, b: (1, 1), lambda r, v, e, u: e[0] + e[1], 1),
    np.subtract: (lambda r, a, b: (1, 1), lambda r, v, e, u: e[0] + e[1], 1),
    np.multiply: (
        lambda r, a, b: (b, a),
        lambda r, v, e, u: np.where(e[1] > 0, np.abs(v[0]) * e[1], 0) + np.where(e[0] > 0, np.abs(v[1]) * e[0], 0) + e[0] * e[1],
        1,
    ),
    np.true_divide: (
        lambda r, a, b: (1 / b, r / b),
        lambda r, v, e, u: (e[0] + np.abs(r) * e[1]) / np.maximum(np.abs(v[1]) - e[1], 0),
        ULPS,
    ),
    np.reciprocal: (lambda r, a: (r * r,), lambda r, v, e, u: np.abs(r) * e[0] / np.maximum(np.abs(v[0]) - e[0], 0), ULPS),
    np.negative: (lambda r, a: (1,), lambda r, v, e, u: e[0], 0),
    np.positive: (lambda r, a: (1,), lambda r, v, e, u: e[0], 0),
    np.absolute: (lambda r, a: (1,), lambda r, v, e, u: e[0], 0),
    np.maximum: (lambda r, a, b: (a >= b, b >= a), lambda r, v, e, u: np.maximum(e[0], e[1]), 0),
    np.minimum: (lambda r, a, b: (a <= b, b <= a), lambda r, v, e, u: np.maximum(e[0], e[1]), 0),
    # implementations evaluate exp(x) as exp2(x · log2 e): the product is rounded too
    np.exp: (lambda r, a: (r,), lambda r, v, e, u: r * np.expm1(e[0]) + np.where(r > 0, r * np.abs(v[0]), 0) * 2 * u, ULPS),
    np.expm1: (lambda r, a: (r + 1,), lambda r, v, e, u: (r + 1) * (np.expm1(e[0]) + 2 * u * np.abs(v[0])), ULPS),
    np.log: (lambda r, a: (1 / a,), lambda r, v, e, u: -np.log1p(-np.minimum(e[0] / v[0], 1)), ULPS),
    np.log1p: (lambda r, a: (1 / (1 + a),), lambda r, v, e, u: -np.log1p(-np.minimum(e[0] / (1 + v[0]), 1)), ULPS),
    np.logaddexp: (lambda r, a, b: (np.exp(a - r), np.exp(b - r)), lambda r, v, e, u: np.maximum(e[0], e[1]) + 4 * u, ULPS),
    np.sqrt: (lambda r, a: (0.5 / r,), lambda r, v, e, u: e[0] / (r + np.sqrt(np.maximum(v[0] - e[0], 0))), ULPS),
    np.tanh: (
        lambda r, a: (1 - r * r,),
        lambda r, v, e, u: e[0] * (1 - np.tanh(np.maximum(np.abs(v[0]) - e[0], 0)) ** 2) + 4 * u * np.minimum(np.abs(v[0]), 1),
        ULPS,
    ),
    np.square: (lambda r, a: (2 * a,), lambda r, v, e, u: 2 * np.abs(v[0]) * e[0] + e[0] ** 2, 1),
    np.power: (lambda r, a, b: (2 * a, 0), _power, 1),
}


def _moves(function: Callable) -> Callable:
    """A rule for functions that only move elements."""
    return lambda x, *args, **kwargs: x._moved(lambda part: function(part, *args, **kwargs))


def _joins(function: Callable) -> Callable:
    def rule(arrays, *args, **kwargs):
        precision = next(x.precision for x in arrays if isinstance(x, Rounded))
        parts = [_part(x, precision) for x in arrays]
        joined = (function([getattr(p, name) for p in parts], *args, **kwargs) for name in ("value", "error", "variance"))
        return Rounded(*joined, precision=precision)

    return rule


def _where(condition, a, b):
    precision = next(x.precision for x in (a, b) if isinstance(x, Rounded))
    a, b = _part(a, precision), _part(b, precision)
    return Rounded(
        *(np.where(condition, getattr(a, name), getattr(b, name)) for name in ("value", "error", "variance")), precision=precision
    )


def _einsum(subscripts: str, *operands):
    precision = next(x.precision for x in operands if isinstance(x, Rounded))
    parts = [_as_operand(_part(x, precision)) for x in operands]
    inputs, output = subscripts.replace(" ", "").split("->")
    sizes = dict(zip(inputs.replace(",", ""), sum((p.shape for p in parts), ()), strict=True))
    terms = int(np.prod([sizes[axis] for axis in set(sizes) - set(output)], initial=1))
    return _contract(lambda *xs: np.einsum(subscripts, *xs), *parts, terms=terms + len(parts))



_FUNCTIONS: dict[Any, Callable] = {
    function: _moves(function)
    for function in (
        np.reshape, np.swapaxes, np.transpose, np.moveaxis, np.tril, np.triu, np.flip, np.repeat, np.tile, np.expand_dims, np.squeeze,
        np.broadcast_to, np.take, np.roll, np.diagonal, np.ravel,
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
