"""Wrong arguments raise, naming the argument, before any launch; operators are registered, and compile without a graph break."""

import numpy as np
import pytest
import torch

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.fast.number_formats import bit_packing
from twofold.spec.quantization import round_to_nearest

W = torch.arange(24.0).reshape(3, 8)
CODES, ONES = torch.ones(3, 8, dtype=torch.uint8), torch.ones(3, 2)
INT8, ROW = torch.ones(3, 8, dtype=torch.int8), torch.ones(3, 1)
MANY = torch.zeros(1, 131072, dtype=torch.int8)

BAD = {
    "bits of 0": ("bits", lambda f: f.encode(W, 0, 4, "full")),
    "bits of 9": ("bits", lambda f: f.parameters(W, 9, 4, "full")),
    "one signed bit": ("bits", lambda f: f.encode(W, 1, 4, "absmax")),
    "group of 0": ("group_size", lambda f: f.encode(W, 4, 0, "full")),
    "group of -1": ("group_size", lambda f: f.matmul(W, CODES, ONES, ONES, 4, -1, "full")),
    "grid": ("grid must be one of", lambda f: f.encode(W, 4, 4, "nearest")),
    "integer weight": ("weight must have dtype", lambda f: f.encode(CODES, 4, 4, "full")),
    "weight of 3 axes": ("weight must have shape", lambda f: f.encode(W[None], 4, 4, "full")),
    "weight of columns": ("weight must be contiguous", lambda f: f.encode(W.T, 4, 4, "full")),
    "stored in float64": ("dtype must be", lambda f: f.encode(W, 4, 4, "full", dtype=torch.float64)),
    "too few scales": ("scale must have shape", lambda f: f.quantize(W, ROW, ROW, 4, 4, "full")),
    "too few zeros": ("zero must have shape", lambda f: f.quantize(W, ONES, ROW, 4, 4, "full")),
    "zero of another dtype": ("zero must have the dtype", lambda f: f.dequantize(CODES, ONES, ONES.half(), 4, 4, "full")),
    "signed codes": ("codes must have dtype uint8", lambda f: f.dequantize(INT8, ONES, ONES, 4, 4, "full")),
    "unsigned codes": ("codes must have dtype int8", lambda f: f.dequantize(CODES, ONES, ONES, 4, 4, "absmax")),
    "x of integers": ("x must have dtype", lambda f: f.matmul(CODES, CODES, ONES, ONES, 4, 4, "full")),
    "x too narrow": ("codes must have shape", lambda f: f.matmul(W[:, :7], CODES, ONES, ONES, 4, 4, "full")),
    "x of columns": ("x must be contiguous", lambda f: f.matmul(torch.ones(8, 2).T, CODES, ONES, ONES, 4, 4, "full")),
    "codes of columns": ("codes must be contiguous", lambda f: f.matmul(W, CODES.T.contiguous().T, ONES, ONES, 4, 4, "full")),
    "words of bytes": ("codes must have dtype int32", lambda f: f.matmul(W, CODES[:, :1], ONES, ONES, 4, 4, "full", packed=True)),
    "packed and signed": ("no sign", lambda f: f.matmul(W, INT8, ONES, ONES, 4, 4, "absmax", packed=True)),
    "int8 of bytes": ("x_codes must have dtype", lambda f: f.matmul_int8(CODES, ROW, INT8, ROW)),
    "int8 scale per group": ("x_scale must have shape", lambda f: f.matmul_int8(INT8, ONES, INT8, ROW)),
    "int8 bias": ("bias must have shape", lambda f: f.matmul_int8(INT8, ROW, INT8, ROW, torch.ones(2))),
    "int8 to integers": ("dtype must be", lambda f: f.matmul_int8(INT8, ROW, INT8, ROW, dtype=torch.int32)),
    "int8 too long": ("131071", lambda f: f.matmul_int8(MANY, ROW[:1], MANY, ROW[:1])),
    "to a fixed zero": ("full", lambda f: f.convert(ONES, ONES, 4, "min", "full")),
    "from signed codes": ("absmax", lambda f: f.convert(ONES, ONES, 4, "absmax", "min")),
    "to no grid": ("grid_to", lambda f: f.convert(ONES, ONES, 4, "min", "nearest")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_told(fast, case):
    message, call = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call(fast)


WRONG = [(0, 4, "full"), (9, 4, "full"), (1, 4, "absmax"), (4, 0, "min"), (4, -3, "min"), (4, 4, "nearest")]


@pytest.mark.parametrize("bits, size, grid", WRONG)
def test_the_spec_refuses_options_that_mean_nothing(bits, size, grid):
    with pytest.raises(ValueError):
        round_to_nearest.encode(np.ones((2, 8)), bits, size, grid)


def test_operators_are_registered(fast):
    operators = torch.ops.twofold
    x = inputs.tensor(np.random.default_rng(0).standard_normal((2, 40)), "float32")
    codes, scale, zero = fast.encode(x, 4, 16, "zero_point")
    rest = scale, zero, 4, 16, "zero_point"
    torch.library.opcheck(operators.quantize_groups_encode, (x, 4, 16, "zero_point", torch.float16, True))
    torch.library.opcheck(operators.quantize_groups_quantize, (x, *rest))
    torch.library.opcheck(operators.quantize_groups_dequantize, (codes, *rest, torch.float16))
    torch.library.opcheck(operators.low_bit_matmul, (x.clone().requires_grad_(), codes, *rest, False))
    torch.library.opcheck(operators.low_bit_matmul, (x, bit_packing.pack(codes, 4), *rest, True))
    signed, step, _ = fast.encode(x, 8, None, "absmax")
    torch.library.opcheck(operators.int8_matmul, (signed, step, signed, step, None, torch.float16, None, None, None))


def test_everything_compiles_into_one_graph(fast):
    def program(x, weight):
        codes, scale, zero = fast.encode(weight, 4, 16, "zero_point")
        told = fast.convert(scale, zero, 4, "zero_point", "min")
        y = fast.matmul(x, bit_packing.pack(codes, 4), scale, zero, 4, 16, "zero_point", packed=True)
        y = y + fast.matmul(x, fast.quantize(weight, *told, 4, 16, "min"), *told, 4, 16, "min")
        x_codes, x_scale, _ = fast.encode(x, 8, None, "absmax")
        w_codes, w_scale, _ = fast.encode(fast.dequantize(codes, scale, zero, 4, 16, "zero_point"), 8, None, "absmax")
        return y + fast.matmul_int8(x_codes, x_scale, w_codes, w_scale)

    rng = np.random.default_rng(0)
    given = [inputs.tensor(rng.standard_normal((t, 40)), "float32") for t in (2, 3)]
    exactly(torch.compile(program, fullgraph=True, backend="aot_eager")(*given), program(*given))
