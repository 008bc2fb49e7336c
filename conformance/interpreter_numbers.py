"""What numbers mean in Triton's interpreter: bfloat16, the 8-bit floats and fused multiply-add, as a GPU computes them.

The interpreter of Triton 3.6 to 3.9 keeps a bfloat16 as its bit pattern in a uint16 and then adds, compares, sums and multiplies the
bit patterns; it cuts a float32 to bfloat16 instead of rounding; its casts to 8 bits round wrongly. Here every bfloat16 operation widens to
float32, computes, and rounds once to nearest even, which is what the hardware does (float32 carries more than twice the digits, so rounding
twice is harmless). Sums along an axis of 16-bit floats round at every step, as on a GPU, so a kernel that forgets to widen shows it.

Not modeled: contraction of `a * b + c` into one rounding, subnormals flushed by approximate instructions, the error of approximate
`exp`, `log` and `tanh`, the order of additions inside a matrix product, `tl.dot_scaled` (raises).
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter

__all__ = ["install"]

TensorHandle = triton_interpreter.TensorHandle
Builder = triton_interpreter.InterpreterBuilder

TORCH = {
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
    tl.float8e4b8: torch.float8_e4m3fnuz,
    tl.float8e5b16: torch.float8_e5m2fnuz,
}
LARGEST = {kind: torch.finfo(dtype).max for kind, dtype in TORCH.items() if dtype.itemsize == 1}  # casts to 8 bits saturate here


def install(settings: Any) -> None:
    """Replace the builder's arithmetic. `settings.tf32` is read at every matrix product."""
    _casts()
    _arithmetic()
    _products(settings)
    _reductions()



def widen(bits: np.ndarray) -> np.ndarray:
    """The float32 that a bfloat16's bit pattern stands for."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """The bfloat16 bit pattern nearest to a float32, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)  # a NaN's payload could carry into the exponent


def convert(data: np.ndarray, source: Any, target: Any) -> np.ndarray:
    """Round floats of one Triton type to another: to nearest even; to 8 bits saturating, as `cvt.rn.satfinite` does."""
    if source == target:
        return data
    if source == tl.bfloat16:
        return convert(widen(data), tl.float32, target)
    if target == tl.bfloat16:
        return narrow(_to_odd(data) if source == tl.float64 else convert(data, source, tl.float32))
    if source == tl.float64 and target != tl.float32:
        return convert(_to_odd(data), tl.float32, target)
    values = torch.from_numpy(np.array(data)).view(TORCH[source])  # a copy: torch refuses arrays it may not write
    if target in LARGEST:
        values = values.float().clamp(-LARGEST[target], LARGEST[target])  # a NaN stays a NaN
        return values.to(TORCH[target]).view(torch.uint8).numpy()
    return values.to(TORCH[target]).numpy()


def _to_odd(values: np.ndarray) -> np.ndarray:
    """float64 to float32, where an inexact result gets an odd last bit: it can then be rounded again as if it never had been."""
    with np.errstate(over="ignore"):
        nearest = np.asarray(values, np.float32)
    even = (nearest.view(np.uint32) & 1) == 0
    other = np.nextafter(nearest, np.where(values > nearest, np.inf, -np.inf).astype(np.float32))
    return np.where(np.isfinite(values) & even & (nearest != values), other, nearest)


def _kind(handle: Any) -> Any:
    """The scalar type of a handle. A comparison's handle claims its operands' type but holds booleans."""
    return tl.int1 if handle.data.dtype == np.bool_ else handle.dtype.scalar


def _cast(self: Any, source: Any, target: Any) -> Any:
    kind, wanted = _kind(source), target.scalar
    if kind in TORCH and wanted in TORCH:
        return TensorHandle(convert(source.data, kind, wanted), wanted)
    if kind == tl.bfloat16:
        return TensorHandle(widen(source.data).astype(triton_interpreter._get_np_dtype(wanted)), wanted)
    if wanted == tl.bfloat16:
        return TensorHandle(narrow(source.data.astype(np.float32)), wanted)  # from integers, by way of float32 as on a GPU
    return TensorHandle(source.data.astype(triton_interpreter._get_np_dtype(wanted)), wanted)


def _casts() -> None:
    original = Builder.create_fp_to_fp

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if rounding in (None, triton_interpreter._ir.ROUNDING_MODE.RTNE):
            return _cast(self, source, target)
        return original(self, source, target, rounding)  # toward zero: there the interpreter's cutting is right

    Builder.cast_impl = _cast
    Builder.create_fp_to_fp = create_fp_to_fp
    Builder.get_bf16 = lambda self, value: TensorHandle(narrow(np.array([value], np.float32)), tl.bfloat16)


# Everything named create_f… that computes, the minima and maxima, and the functions; absolute value and casts work on bits already.
_BY_PREFIX = ("create_f", "create_minimumf", "create_minnumf", "create_maximumf", "create_maxnumf")
_BY_NAME = {"precise_divf", "approx_divf", "clampf", "exp", "exp2", "log", "log2", "cos", "sin", "erf", "floor", "ceil"}
_BY_NAME |= {"sqrt", "precise_sqrt", "rsqrt"}
_AS_IS = {"create_fabs", "create_fma", "create_fp_to_fp", "create_fp_ext", "create_fp_trunc", "create_fp_to_si", "create_fp_to_ui"}


def _arithmetic() -> None:
    # Triton 3.6 lets a NaN win in minnum and maxnum; IEEE, and the GPU, let the number win.
    Builder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    Builder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    Builder.create_fma = _fma
    for name in dir(Builder):
        if (name.startswith(_BY_PREFIX) and name not in _AS_IS) or name.removeprefix("create_") in _BY_NAME:
            setattr(Builder, name, _through_float32(getattr(Builder, name)))


def _is_bfloat16(handle: Any) -> bool:
    return isinstance(handle, TensorHandle) and _kind(handle) == tl.bfloat16


def _through_float32(operation: Any) -> Any:
    def lifted(self: Any, *operands: Any) -> Any:
        if not any(map(_is_bfloat16, operands)):
            return operation(self, *operands)
        result = operation(self, *(TensorHandle(widen(x.data), tl.float32) if _is_bfloat16(x) else x for x in operands))
        return TensorHandle(result.data, tl.int1) if result.data.dtype == np.bool_ else TensorHandle(narrow(result.data), tl.bfloat16)

    return lifted


def _fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z with one rounding: a float64 sum with an odd last bit can be rounded to fewer digits without harm."""
    kind = _kind(z)
    a, b, c = (convert(h.data, kind, tl.float64) for h in (x, y, z))
    with np.errstate(all="ignore"):
        product = a * b  # exact but for float64 itself, where the interpreter then rounds twice
        total = np.asarray(product + c)
        part = total - product
        lost = (product - (total - part)) + (c - part)
        inexact = np.isfinite(total) & (lost != 0) & ((total.view(np.uint64) & 1) == 0)
        odd = np.where(inexact, np.nextafter(total, np.where(lost > 0, np.inf, -np.inf)), total)
    return TensorHandle(total if kind == tl.float64 else convert(odd, tl.float64, kind), kind)


def _products(settings: Any) -> None:
    def create_dot(self: Any, a: Any, b: Any, accumulator: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        kind = _kind(accumulator)
        if not kind.is_floating():
            product = np.matmul(a.data, b.data, dtype=accumulator.data.dtype)
            return TensorHandle(product + accumulator.data, kind)
        working = tl.float64 if kind == tl.float64 else tl.float32
        left, right, start = (convert(x.data, _kind(x), working) for x in (a, b, accumulator))
        if settings.tf32 and _kind(a) == tl.float32 and input_precision == triton_interpreter._ir.INPUT_PRECISION.TF32:
            left, right = _to_tf32(left), _to_tf32(right)
        return TensorHandle(convert(np.matmul(left, right) + start, working, kind), kind)

    def create_dot_scaled(self: Any, *operands: Any) -> Any:
        raise NotImplementedError("tl.dot_scaled is not modeled by twofold's interpreter")

    Builder.create_dot = create_dot
    Builder.create_dot_scaled = create_dot_scaled


def _to_tf32(values: np.ndarray) -> np.ndarray:
    """Keep 10 digits after the point: nearest, ties away from zero, as `cvt.rna.tf32.f32` does."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, bits).view(np.float32)



def _reductions() -> None:
    Reduce, Scan = triton_interpreter.ReduceOps, triton_interpreter.ScanOps
    original_sum, original_extremum = Reduce.sum, Reduce.min_max

    def total(self: Any, tensor: Any) -> Any:
        kind = tensor.dtype.scalar
        if kind not in (tl.bfloat16, tl.float16):
            return original_sum(self, tensor)
        values = convert(tensor.handle.data, kind, tl.float32)
        values = values.reshape(-1) if self.axis is None else np.moveaxis(values, self.axis, -1)
        while values.shape[-1] > 1:  # block sizes are powers of two
            half = values.shape[-1] // 2
            values = convert(convert(values[..., :half] + values[..., half:], tl.float32, kind), kind, tl.float32)
        if self.keep_dims:
            values = values.reshape([1] * len(tensor.shape)) if self.axis is None else np.moveaxis(values, -1, self.axis)
        else:
            values = values[..., 0]
        return self.to_tensor(convert(values, tl.float32, kind), kind)

    def min_max(self: Any, tensor: Any, value: Any, index: Any) -> Any:
        tensor = tensor[0] if isinstance(tensor, tuple) else tensor
        if tensor.dtype.scalar != tl.bfloat16:
            return original_extremum(self, tensor, value, index)
        result = original_extremum(self, self.to_tensor(widen(tensor.handle.data), tl.float32), value, index)
        down = lambda x: self.to_tensor(narrow(x.handle.data).reshape(x.shape), tl.bfloat16) if x.dtype.scalar == tl.float32 else x
        return tuple(map(down, result)) if isinstance(result, tuple) else down(result)

    def running(operation: Any) -> Any:
        def scan(self: Any, tensor: Any) -> list[Any]:
            kind = tensor.dtype.scalar
            if kind not in (tl.bfloat16, tl.float16):
                return [self.to_tensor(operation.accumulate(tensor.handle.data, axis=self.axis), tensor.dtype)]
            values = np.moveaxis(convert(tensor.handle.data, kind, tl.float32), self.axis, 0)
            steps = [values[0]]
            for value in values[1:]:
                steps.append(convert(convert(operation(steps[-1], value), tl.float32, kind), kind, tl.float32))
            return [self.to_tensor(convert(np.moveaxis(np.stack(steps), 0, self.axis), tl.float32, kind), kind)]

        return scan

    Reduce.sum = total
    Reduce.min_max = lambda self, tensor, val_reduce_op, idx_reduce_op=None: min_max(self, tensor, val_reduce_op, idx_reduce_op)
    Scan.cumsum, Scan.cumprod = running(np.add), running(np.multiply)
