"""The rules of `rounding.py`: what becomes of errors in each operation of NumPy, and what the operation adds.

Operands and results are triples `(value, error, variance)` of float64 arrays, and the precision contract says how large a rounding is.
Where a value is infinite or NaN it is semantic, and exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from twofold.conformance.rounding import Precision

__all__ = ["COMPARISONS", "apply", "einsum"]

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]

ULPS = 4.0  # error of exp, log, tanh, … in units of roundoff (2 units in the last place)

COMPARISONS = {
    np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal, np.isfinite, np.isnan, np.isinf, np.sign, np.signbit,
}  # fmt: skip


def _power(value, v, e, unit):
    exponent = np.unique(v[1])
    if np.any(e[1] > 0) or exponent.size != 1 or exponent[0] not in (2, 3):
        raise TypeError("numpy.power has a rounding rule for squares and cubes only")
    size, n = np.abs(v[0]), int(exponent[0])
    return e[0] * sum((size + e[0]) ** i * size ** (n - 1 - i) for i in range(n)) + (n - 2) * unit * np.abs(value)


# ufunc: slopes of the result in each operand (for the variance), the bound from the operands' errors, roundings that the operation adds
ELEMENTWISE: dict[Any, tuple[Callable, Callable, float]] = {
    np.add: (lambda r, a, b: (1, 1), lambda r, v, e, u: e[0] + e[1], 1),
    np.subtract: (lambda r, a, b: (1, 1), lambda r, v, e, u: e[0] + e[1], 1),
    np.multiply: (
        lambda r, a, b: (b, a),
        lambda r, v, e, u: (
            np.where(e[1] > 0, np.abs(v[0]) * e[1], 0)
            + np.where(e[0] > 0, np.abs(v[1]) * e[0], 0)
            + np.where((e[0] > 0) & (e[1] > 0), e[0] * e[1], 0)
        ),
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
    np.exp: (
        lambda r, a: (r,),
        lambda r, v, e, u: np.where(e[0] < 1, r * np.expm1(e[0]), np.exp(v[0] + e[0])) + np.where(r > 0, r * np.abs(v[0]), 0) * 2 * u,
        ULPS,
    ),
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
    np.sin: (lambda r, a: (np.cos(a),), lambda r, v, e, u: np.minimum(e[0], 2), ULPS),
    np.cos: (lambda r, a: (np.sin(a),), lambda r, v, e, u: np.minimum(e[0], 2), ULPS),
    np.square: (lambda r, a: (2 * a,), lambda r, v, e, u: 2 * np.abs(v[0]) * e[0] + e[0] ** 2, 1),
    np.power: (lambda r, a, b: (b * a ** (b - 1), 0), _power, 1),
}


def apply(ufunc, method: str, operands: Sequence[Triple], precision: Precision, **options) -> Triple:
    """The result of `ufunc`, called or as one of its methods (`reduce`, `accumulate`, `outer`)."""
    if ufunc is np.matmul and method == "__call__":
        terms = operands[0][0].shape[-1]
        return _contract(np.matmul, [_stored(x, precision) for x in operands], terms, precision)
    if ufunc is np.multiply and method == "outer":
        return _contract(np.multiply.outer, operands, 1, precision)
    if ufunc is np.add and method in ("reduce", "accumulate"):
        return _sum(operands[0], method, precision, **options)
    if ufunc is np.multiply and method == "accumulate":
        return _products(operands[0], precision, **options)
    if ufunc in (np.maximum, np.minimum) and method == "reduce":
        return _extreme(ufunc, operands[0], **options)
    if method == "__call__" and ufunc in ELEMENTWISE:
        return _elementwise(ufunc, operands, precision)
    raise TypeError(f"no rounding rule for numpy.{ufunc.__name__} ({method})")


def einsum(subscripts: str, operands: Sequence[Triple], precision: Precision) -> Triple:
    inputs, output = subscripts.replace(" ", "").split("->")
    sizes = dict(zip(inputs.replace(",", ""), sum((value.shape for value, _, _ in operands), ()), strict=True))
    terms = int(np.prod([sizes[axis] for axis in set(sizes) - set(output)], initial=1)) + len(operands)
    return _contract(lambda *xs: np.einsum(subscripts, *xs), [_stored(x, precision) for x in operands], terms, precision)


def _elementwise(ufunc, operands: Sequence[Triple], precision: Precision) -> Triple:
    slopes, bound, roundings = ELEMENTWISE[ufunc]
    values, errors, variances = zip(*operands)
    with np.errstate(all="ignore"):
        value = ufunc(*values)
        error = np.broadcast_to(bound(value, values, errors, precision.unit), value.shape)
        spreads = (np.where(x > 0, np.square(slope) * x, 0.0) for slope, x in zip(slopes(value, *values), variances, strict=True))
        variance = sum(spreads, np.zeros(value.shape))
        if not roundings:
            return value, np.where(np.isfinite(value), error, 0.0), variance
        error = np.where(np.isnan(error), np.inf, error)  # the difference of two bounds that are infinite bounds nothing
        error = error + roundings * (precision.unit * (np.abs(value) + error) + precision.tiny)
        variance = variance + (roundings * precision.unit * np.abs(value)) ** 2 / 3 + precision.tiny**2
    return _finite(value, error, variance)


def _finite(value, error, variance) -> Triple:
    finite = np.isfinite(value)
    return value, np.where(finite, error, 0.0), np.where(finite, variance, 0.0)


def _stored(operand: Triple, precision: Precision) -> Triple:
    """A matrix product's operand: rounded to the operand format unless it is an exact input that the format holds."""
    unit, tiny = precision.operand_unit, precision.operand_tiny
    if unit <= precision.unit:
        return operand
    value, error, variance = operand
    mantissa = np.frexp(value)[0] / (2 * unit) * 2
    fresh = (error > 0) | (mantissa != np.rint(mantissa))
    # relative to the value, not to its binade: an implementation may round a multiple of it, as a running maximum does, and divide later
    rounding = np.where(fresh, unit * (np.abs(value) + error) + tiny, 0.0)
    return value, error + rounding, variance + rounding**2 / 3


def _contract(contract: Callable, operands: Sequence[Triple], terms: int, precision: Precision) -> Triple:
    """Products summed over `terms` terms in any order: |x|·|y| carries the bound, its square the variance."""
    values, errors, variances = zip(*operands)
    sizes = [np.abs(value) for value in values]
    high = contract(*(size + error for size, error in zip(sizes, errors)))
    total = contract(*sizes)
    rounding = terms * precision.unit / (1 - terms * precision.unit)
    cancelled = 4 * 2.0**-53 * high  # high - total is itself computed in float64
    error = high - total + rounding * high + terms * precision.tiny + cancelled
    spread = contract(*(size**2 + x for size, x in zip(sizes, variances))) - contract(*(size**2 for size in sizes))
    variance = np.maximum(spread, 0) + terms / 3 * (precision.unit * total) ** 2 + precision.tiny**2
    return contract(*values), error, variance


def _sum(operand: Triple, method: str, precision: Precision, axis=0, keepdims=False, dtype=None, initial=None) -> Triple:
    if initial not in (None, 0) or dtype is not None:
        raise TypeError("a sum with initial= or dtype= has no rounding rule")
    value, error, variance = operand
    options = {"axis": axis, "keepdims": keepdims} if method == "reduce" else {"axis": axis}
    add = lambda x: getattr(np.add, method)(x, **options)
    terms = value.size if method == "reduce" and axis is None else int(np.prod([value.shape[i] for i in np.atleast_1d(axis)]))
    roundings = max(terms - 1, 0)
    gamma = roundings * precision.unit / (1 - roundings * precision.unit)
    error = add(error) + gamma * add(np.abs(value) + error)
    variance = add(variance) + roundings / 3 * (precision.unit * add(np.abs(value))) ** 2
    return _finite(add(value), error, variance)


def _products(operand: Triple, precision: Precision, axis=0) -> Triple:
    """Products of all factors so far: the same of |x| + error and of |x| enclose the bound, their squares the variance."""
    value, error, variance = operand
    multiply = lambda x: np.multiply.accumulate(x, axis=axis)
    roundings = max(value.shape[axis] - 1, 0)
    high, total = multiply(np.abs(value) + error), multiply(np.abs(value))
    gamma = roundings * precision.unit / (1 - roundings * precision.unit)
    error = high - total + gamma * high + roundings * precision.tiny
    variance = multiply(value**2 + variance) - total**2 + roundings / 3 * (precision.unit * total) ** 2
    return _finite(multiply(value), error, variance)


def _extreme(ufunc, operand: Triple, axis=0, keepdims=False, initial=None) -> Triple:
    value, error, variance = operand
    options = {"axis": axis, "keepdims": keepdims}
    value = ufunc.reduce(value, **options, **({} if initial is None else {"initial": initial}))
    return value, np.max(error, initial=0.0, **options), np.max(variance, initial=0.0, **options)
