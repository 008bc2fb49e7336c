"""What the interpreter's language lacks: libdevice, and in Triton 3.6 a scalar that can bound a `range`."""

import math
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter

__all__ = ["install"]


def install() -> None:
    _libdevice()
    _scalars()


def _scalars() -> None:
    """Scalars are arrays of one element here. Triton 3.6 takes `int(array)`, which NumPy 2.4 refuses for any shape but `()`."""
    patch = triton_interpreter._patch_lang_tensor

    def _patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    triton_interpreter._patch_lang_tensor = _patch_lang_tensor


def _libdevice() -> None:
    """The interpreter has no libdevice. A kernel must call `libdevice.tanh(x)`; a name imported from the module keeps the stub."""
    from triton.language.extra import libdevice

    erf = np.vectorize(math.erf, otypes=[np.float64])
    same_name = ("tanh", "sinh", "cosh", "exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rint", "trunc")
    functions = {name: getattr(np, name) for name in same_name}
    functions |= {"pow": np.power, "erf": erf, "rsqrt": lambda x: 1 / np.sqrt(x), "nearbyint": np.rint}
    functions |= {"fast_expf": np.exp, "fast_logf": np.log, "fast_dividef": np.divide}
    for name, function in functions.items():
        if hasattr(libdevice, name):
            setattr(libdevice, name, _device_function(name, function))


def _device_function(name: str, function: Any) -> Any:
    def call(*arguments: Any, _semantic: Any = None) -> Any:
        tensors = [x if isinstance(x, tl.tensor) else triton_interpreter.interpreter_semantic.to_tensor(x) for x in arguments]
        kind = tensors[0].dtype.scalar
        if kind not in (tl.float32, tl.float64):
            raise TypeError(f"libdevice.{name} takes fp32 or fp64, not {kind}")
        result = np.asarray(function(*(x.handle.data for x in tensors)), tensors[0].handle.data.dtype)
        return tl.tensor(triton_interpreter.TensorHandle(result, kind), tensors[0].type)

    return call
