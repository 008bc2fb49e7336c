"""Attention without rounding: unchanged spec text over a prime field.

Softmax attention is a rational function of x = e^s and of the values. So it can be computed in the field of integers modulo p = 2^61 - 1,
where every operation is exact and a false identity between two forms survives a random instance with a probability of about 10^-17.
A logit is a *formal logarithm*: it stands for log x, adding two multiplies what they stand for, and np.exp of one is the field element.

    q, k, v = problem(seed, n_q, n_k, d_v)
    exactly(flash.forward(q, k, v, block_q=3, block_k=2, scale=1), dense.attention(q, k, v, scale=1))

A field has no order, but an algorithm that keeps a running maximum only needs something to measure against: here logarithms are ordered
by the integers that they stand for, so the "maximum" is an arbitrary logit of the row. What holds for it holds for every other choice.
"""

import numpy as np

__all__ = ["FieldArray", "Log", "Number", "exactly", "logits", "numbers", "problem"]

P = 2**61 - 1


class Number:
    """An element of the field; it mixes with numbers of Python that are integers, such as the 0.0 that a sum starts from."""

    __slots__ = ("n",)

    def __init__(self, n):
        self.n = n % P

    def __add__(self, other):
        return Number(self.n + _residue(other))

    def __sub__(self, other):
        return Number(self.n - _residue(other))

    def __rsub__(self, other):
        return Number(_residue(other) - self.n)

    def __mul__(self, other):
        return Number(self.n * _residue(other))

    def __truediv__(self, other):
        return Number(self.n * _inverse(_residue(other)))

    def __rtruediv__(self, other):
        return Number(_residue(other) * _inverse(self.n))

    def __neg__(self):
        return Number(-self.n)

    def __eq__(self, other):
        return isinstance(other, (Number, int, float)) and self.n == _residue(other)

    __radd__, __rmul__ = __add__, __mul__

    def __repr__(self):
        return f"{self.n} mod p"


class Log:
    """The formal logarithm of a unit x of the field. As numbers, 0.0 is the logarithm of 1 and -inf that of 0."""

    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x % P

    def __add__(self, other):
        return -np.inf if _none(other) else Log(self.x * _unit(other))

    def __sub__(self, other):
        return Log(self.x * _inverse(_unit(other)))

    def __rsub__(self, other):
        return -np.inf if _none(other) else Log(_unit(other) * _inverse(self.x))

    def __mul__(self, times):
        return Log(pow(self.x, _residue(times), P))

    def __neg__(self):
        return Log(_inverse(self.x))

    def __abs__(self):
        return self if self > 0 else -self

    def __lt__(self, other):
        return not _none(other) and self.x < _unit(other)

    def __le__(self, other):
        return not _none(other) and self.x <= _unit(other)

    def __gt__(self, other):
        return _none(other) or self.x > _unit(other)

    def __ge__(self, other):
        return _none(other) or self.x >= _unit(other)

    def __eq__(self, other):
        return not _none(other) and self.x == _unit(other)

    __radd__, __rmul__ = __add__, __mul__

    def __repr__(self):
        return f"log({self.x} mod p)"


class FieldArray(np.ndarray):
    """An array of numbers and logarithms; exponentials and logarithms lead from one to the other, everything else is elementwise Python."""

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        inputs = [np.asarray(x).view(np.ndarray) if isinstance(x, np.ndarray) else x for x in inputs]
        if ufunc in SPECIAL and method == "__call__":
            return _wrapped(SPECIAL[ufunc](*inputs))
        if ufunc is np.matmul:
            inputs = [x.astype(object) for x in inputs]
            if not inputs[0].shape[-1]:  # an empty sum
                return _wrapped(np.broadcast_to(np.full((), 0.0, object), np.matmul(*(np.zeros(x.shape) for x in inputs)).shape))
        return _wrapped(getattr(ufunc, method)(*inputs, **keywords))

    def __array_function__(self, function, types, arguments, keywords):
        return _wrapped(super().__array_function__(function, types, arguments, keywords))


def numbers(rng, *shape):
    """Random elements of the field."""
    return _wrapped(np.array(np.frompyfunc(Number, 1, 1)(rng.integers(1, P, shape).astype(object)), object))


def logits(rng, *shape):
    """Random formal logarithms: logits, a bias, a sink."""
    return _wrapped(np.array(np.frompyfunc(Log, 1, 1)(rng.integers(2, P, shape).astype(object)), object))


def problem(seed, n_q, n_k, d_v):
    """Queries `(Nq, Nq)`, keys `(Nk, Nq)` and values `(Nk, Dv)`: the queries are unit vectors, so that q k^T is a matrix of random logits.

    Call the spec with `scale=1`, and without a softcap: tanh is not rational.
    """
    rng = np.random.default_rng(seed)
    return _wrapped(np.eye(n_q, dtype=int).astype(object)), logits(rng, n_k, n_q), numbers(rng, n_k, d_v)


def exactly(actual, expected, what="result"):
    """Both are arrays, or tuples of arrays, of the same shape and the same elements; not one may differ."""
    if isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected), f"{what}: {len(actual)} arrays instead of {len(expected)}"
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            exactly(one, other, f"{what} {i}")
        return
    assert np.shape(actual) == np.shape(expected), f"{what}: shape {np.shape(actual)} instead of {np.shape(expected)}"
    for index in np.ndindex(np.shape(expected)):
        one, other = np.asarray(actual, object)[index], np.asarray(expected, object)[index]
        assert one == other, f"{what}{list(index)}: {one!r} instead of {other!r}"


def _wrapped(result):
    if isinstance(result, (tuple, list)):
        return type(result)(_wrapped(each) for each in result)
    return result.view(FieldArray) if isinstance(result, np.ndarray) and result.dtype == object else result


def _residue(number):
    if isinstance(number, Number):
        return number.n
    return int(number) if number == int(number) else _refuse(f"{number} is no integer")


def _unit(logarithm):
    if isinstance(logarithm, Log):
        return logarithm.x
    return 1 if logarithm == 0 else _refuse(f"{logarithm} is no formal logarithm")


def _none(logarithm):
    return isinstance(logarithm, float) and logarithm == -np.inf


def _inverse(n):
    return pow(n, -1, P)  # raises for 0, as a division by zero should


def _refuse(why):
    raise TypeError(why + ": not an operation of the field")


def _exp(logarithm):
    return Number(0 if _none(logarithm) else _unit(logarithm))


def _log(number):
    n = _residue(number)
    return Log(n) if n else -np.inf


SPECIAL = {
    np.exp: np.frompyfunc(_exp, 1, 1),
    np.log: np.frompyfunc(_log, 1, 1),
    np.logaddexp: np.frompyfunc(lambda a, b: _log(_exp(a) + _exp(b)), 2, 1),
}
