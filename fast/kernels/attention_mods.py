"""Masks and scores as plain functions of batch, head, row and key: traced once, then run by the kernel and by its PyTorch twin.

    mask_mod(b, h, i, j) -> whether row i sees key j             score_mod(s, b, h, i, j) -> the logit in place of s

A function may use operators and numbers, and index tensors: `lambda b, h, i, j: (j <= i) & (document[i] == document[j])`. It is called
once with terms that write down what is done to them. The text that comes out is an expression valid in Triton and in PyTorch alike, so
both sides compute the same thing; numbers and tensors stay arguments, so that other values need no other kernel. The slope of a score, by
which the backward pass multiplies, is written down beside it by the rules of differentiation. Tensors that are indexed get no gradient.
"""

import functools
import linecache
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Mods", "evaluate", "kernel_function", "trace"]

ARGUMENTS = {"mask": "b, h, i, j, tables, numbers", "score": "s, b, h, i, j, tables, numbers", "slope": "s, b, h, i, j, tables, numbers"}


class Mods(NamedTuple):
    """What a traced pair of functions comes to: three expressions (None: nothing to do) and the values that they refer to."""

    mask: str | None = None
    score: str | None = None
    slope: str | None = None
    tables: tuple[Tensor, ...] = ()
    numbers: tuple[float, ...] = ()


def trace(mask_mod: Callable | None, score_mod: Callable | None) -> Mods:
    """Call each function once with terms for its arguments."""
    tables: list[Tensor] = []
    numbers: list[float] = []
    mask = score = slope = None
    indices = [Term(name, "0", tables, numbers) for name in "bhij"]
    if mask_mod is not None:
        mask = _returned("mask_mod", mask_mod(*indices)).text
    if score_mod is not None:
        term = _returned("score_mod", score_mod(Term("s", "1", tables, numbers), *indices))
        score, slope = term.text, None if term.slope == "1" else term.slope
    return Mods(mask, score, slope, tuple(tables), tuple(numbers))


def _returned(name: str, value: Any) -> "Term":
    if not isinstance(value, Term):
        raise TypeError(f"{name} must return an expression of its arguments, not {type(value).__name__} {value!r}")
    return value


class Term:
    """A value inside a traced function: the text that computes it, and that of its slope in the score."""

    def __init__(self, text: str, slope: str, tables: list[Tensor], numbers: list[float]):
        self.text, self.slope, self.tables, self.numbers = text, slope, tables, numbers

    def _new(self, text: str, slope: str = "0") -> "Term":
        return Term(text, slope, self.tables, self.numbers)

    def _term(self, value: Any) -> "Term":
        """An operand: a term as it is, a number as one more argument of the kernel."""
        if isinstance(value, Term):
            return value
        if not isinstance(value, (int, float)):
            raise TypeError(f"mask_mod and score_mod combine their arguments with numbers and indexed tensors, not {type(value).__name__}")
        self.numbers.append(value)
        return self._new(f"numbers[{len(self.numbers) - 1}]")

    def __add__(self, other):
        other = self._term(other)
        return self._new(f"({self.text} + {other.text})", _plus(self.slope, other.slope))

    def __sub__(self, other):
        other = self._term(other)
        return self._new(f"({self.text} - {other.text})", _plus(self.slope, _times("-1", other.slope)))

    def __mul__(self, other):
        other = self._term(other)
        return self._new(
            f"({self.text} * {other.text})", _plus(_times(self.slope, other.text), _times(other.slope, self.text))
        )

    def __truediv__(self, other):
        other = self._term(other)
        quotient = f"({self.text} / {other.text})"
        above = _plus(self.slope, _times("-1", _times(other.slope, quotient)))
        return self._new(quotient, "0" if above == "0" else f"({above} / {other.text})")

    def __neg__(self):
        return self._new(f"(-{self.text})", _times("-1", self.slope))

    def __abs__(self):
        return self._new(f"absolute({self.text})", _times(f"(1 - 2 * ({self.text} < 0))", self.slope))

    def __invert__(self):
        return self._new(f"(~{self.text})")

    def __getattr__(self, name: str) -> Any:
        raise TypeError(f"mask_mod and score_mod use operators; their arguments have no attribute {name!r}")

    def __bool__(self):
        raise TypeError("mask_mod and score_mod are traced: join conditions with & | ~, not with and, or, not, if or a < b < c")

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if function is not Tensor.__getitem__:
            raise TypeError(f"mask_mod and score_mod use operators and indexed tensors, not {getattr(function, '__name__', function)}")
        table, index = arguments
        index = index if isinstance(index, tuple) else (index,)
        if len(index) != table.ndim:
            raise TypeError(f"a tensor of {table.ndim} axes must be indexed by {table.ndim} numbers, not {len(index)}")
        term = next(each for each in index if isinstance(each, Term))
        return term._read(table, [term._term(each) for each in index])

    def _read(self, table: Tensor, index: list["Term"]) -> "Term":
        known = [i for i, each in enumerate(self.tables) if each is table]
        if not known:
            self.tables.append(table)
        where = index[0].text
        for size, each in zip(table.shape[1:], index[1:]):
            where = f"(wide({where}) * {self._term(size).text} + {each.text})"
        return self._new(f"read(tables[{known[0] if known else len(self.tables) - 1}], {where})")


def _plus(a: str, b: str) -> str:
    return b if a == "0" else a if b == "0" else f"({a} + {b})"


def _times(a: str, b: str) -> str:
    return "0" if "0" in (a, b) else b if a == "1" else a if b == "1" else f"({a} * {b})"


def _binary(form: str) -> Callable:
    """An operator whose result does not change with the score: comparisons, logic, whole quotients."""

    def method(self, other):
        return self._new(form.format(self.text, self._term(other).text))

    return method


def _reflected(name: str) -> Callable:
    return lambda self, other: getattr(self._term(other), name)(self)


for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "and": "&", "or": "|", "xor": "^"}.items():
    setattr(Term, f"__{_name}__", _binary(f"({{}} {_sign} {{}})"))
for _name, _helper in {"floordiv": "quotient", "mod": "remainder"}.items():
    setattr(Term, f"__{_name}__", _binary(f"{_helper}({{}}, {{}})"))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "and", "or", "xor"):
    setattr(Term, f"__r{_name}__", _reflected(f"__{_name}__"))


@triton.jit
def read(table, index):
    return tl.load(table + index)


@triton.jit
def wide(index):
    return tl.cast(index, tl.int64)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def quotient(a, b):
    """Towards minus infinity, as in Python."""
    towards_zero = a // b
    return towards_zero - ((towards_zero * b != a) & ((a < 0) != (b < 0))).to(tl.int32)


@triton.jit
def remainder(a, b):
    return a - quotient(a, b) * b


IN_TORCH = {
    "read": lambda table, index: table[index], "wide": lambda index: index, "absolute": torch.abs,
    "quotient": lambda a, b: a // b, "remainder": lambda a, b: a % b,
}  # fmt: skip
IN_TRITON = {"read": read, "wide": wide, "absolute": absolute, "quotient": quotient, "remainder": remainder}
IN_TRITON |= {"tl": tl, "__name__": __name__}  # which the interpreter wants to see


@functools.cache
def kernel_function(kind: str, text: str | None) -> Any:
    """The expression as a device function of Triton, which asks for the source of what it compiles; None for none."""
    if text is None:
        return None
    name = f"{kind}_mod"
    source = f"def {name}({ARGUMENTS[kind]}):\n    return {text}\n"
    file = f"<{name}: {text}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    scope = dict(IN_TRITON)
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope[name])


@functools.cache
def _compiled(text: str) -> Any:
    return compile(text, f"<{text}>", "eval")


def evaluate(text: str, tables: tuple[Tensor, ...], numbers: tuple[float, ...], **terms: Tensor) -> Tensor:
    """The expression in PyTorch, for these values of its terms."""
    return eval(_compiled(text), IN_TORCH, {"tables": [table.reshape(-1) for table in tables], "numbers": numbers, **terms})
