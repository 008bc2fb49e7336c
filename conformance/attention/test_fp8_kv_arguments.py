"""An 8-bit cache: wrong arguments are named, the operator is registered in full, offsets are 64 bits wide, inputs stay."""

import numpy as np
import pytest
import torch

from twofold.conformance import inputs, target
from twofold.conformance.big_tensor import far_apart
from twofold.conformance.compare import exactly

E4M3 = torch.float8_e4m3fn


def x(*shape, dtype=torch.float32):
    return torch.ones(shape, device=target.device()).to(dtype)


def arguments(dtype=E4M3):
    return [x(2, 1, 4, 16), x(2, 9, 2, 16, dtype=dtype), x(2, 9, 2, 8, dtype=dtype), x(2, 1, 2), x(2, 1, 2)]


def changed(place, value):
    return lambda a: ((*a[:place], value, *a[place + 1 :]), {})


BAD = [
    (TypeError, "q", changed(0, x(2, 1, 4, 16, dtype=torch.float64))),
    (TypeError, "k", lambda a: ((a[0], a[1].float(), a[2].float(), *a[3:]), {})),
    (TypeError, "v", changed(2, x(2, 9, 2, 8, dtype=torch.int8))),
    (ValueError, "k", changed(1, x(2, 9, 2, 8, dtype=E4M3))),
    (ValueError, "v", changed(2, x(2, 8, 2, 8, dtype=E4M3))),
    (ValueError, "q", changed(0, x(2, 1, 3, 16))),
    (ValueError, "k", changed(0, x(3, 1, 4, 16))),
    (ValueError, "v", changed(2, x(2, 9, 2, 300, dtype=E4M3))),
    (ValueError, "k", changed(1, x(2, 9, 2, 32, dtype=E4M3)[..., ::2])),
    (ValueError, "k_scale", changed(3, x(2, 9, 2))),
    (ValueError, "k_scale", changed(3, x(2, 1))),
    (ValueError, "v_scale", changed(4, x(3, 1, 2))),
    (TypeError, "v_scale", changed(4, x(2, 1, 2, dtype=torch.float16))),
    (ValueError, "group", lambda a: (a, {"group": 0})),
    (ValueError, "length", lambda a: (a, {"length": torch.tensor([9, 10])})),
    (TypeError, "length", lambda a: (a, {"length": x(2)})),
    (ValueError, "table", lambda a: (a, {"table": torch.zeros(2, 1, dtype=torch.int64)})),
    (ValueError, "table", lambda a: (a, {"table": torch.full((2, 1), 5), "length": torch.tensor([3, 3])})),
    (ValueError, "window", lambda a: (a, {"window": (-1, None)})),
    (ValueError, "scale", lambda a: (a, {"scale": 0.0})),
    (ValueError, "softcap", lambda a: (a, {"softcap": -1.0})),
    (ValueError, "sink", lambda a: (a, {"sink": x(3)})),
]  # fmt: skip


@pytest.mark.skipif(target.device() != "cpu", reason="lengths and tables are checked on the CPU")
@pytest.mark.parametrize(("error", "name", "change"), BAD)
def test_errors_name_the_argument(fast, error, name, change):
    positional, options = change(arguments())
    with pytest.raises(error, match=name):
        fast.attention(*positional, **options)


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (ValueError, "x", lambda f: f.quantize(x(2, 3, 4))),
        (ValueError, "x", lambda f: f.quantize(x(2, 3, 4, 0))),
        (TypeError, "x", lambda f: f.quantize(x(1, 2, 3, 4, dtype=torch.float64))),
        (ValueError, "group", lambda f: f.quantize(x(1, 2, 3, 4), 0)),
        (ValueError, "number", lambda f: f.quantize(x(1, 2, 3, 4), None, "e5m2")),
        (ValueError, "scale", lambda f: f.quantize(x(1, 2, 3, 4), 1, scale=x(1, 1, 3))),
        (TypeError, "scale", lambda f: f.quantize(x(1, 2, 3, 4), scale=x(1, 1, 3, dtype=torch.float16))),
    ],
)
def test_errors_of_quantize_name_the_argument(fast, error, name, call):
    with pytest.raises(error, match=name):
        call(fast)


def operands(dtype, batch=2):
    rng = np.random.default_rng(0)
    draw = lambda *shape: inputs.tensor(rng.integers(-8, 9, shape).astype(float))
    scales = [inputs.tensor(rng.uniform(0.5, 2, (batch, 9, 1)), "float32") for _ in range(2)]
    return [draw(batch, 1, 2, 16).float() / 8, draw(batch, 9, 1, 16).to(dtype), draw(batch, 9, 1, 8).to(dtype), *scales]


@pytest.mark.parametrize("dtype", [E4M3, torch.int8])
def test_inputs_stay_and_two_runs_are_bit_equal(fast, dtype):
    given = operands(dtype)
    kept = [each.clone() for each in given]
    for one, other in zip(fast.attention(*given, group=1), fast.attention(*given, group=1), strict=True):
        exactly(one, other, "second run")
    for each, before in zip(given, kept, strict=True):
        exactly(each, before, "input")


@pytest.mark.skipif(target.target() != target.OURS, reason="our operators")
def test_operator_is_registered_in_full(fast):
    fast.attention  # noqa: B018  the module that registers it
    q, k, v, *scales = operands(torch.int8)  # opcheck cannot compare 8-bit floats
    arguments = (q, k, v, *(s[..., None] for s in scales), None, None, None, "int8", 1, None, 0, 0.25, None)
    torch.library.opcheck(torch.ops.twofold.quantized_cache_attention, arguments)


@pytest.mark.parametrize("dtype", [E4M3, torch.int8])
def test_compiled_graph_is_whole_and_equal(fast, dtype):
    def run(q, k, v, k_scale, v_scale):
        return fast.attention(2 * q, k, v, k_scale, v_scale, group=1, causal=True)[0] + 1

    torch._dynamo.reset()
    exactly(torch.compile(run, fullgraph=True, backend="aot_eager")(*operands(dtype)), run(*operands(dtype)))


@pytest.mark.skipif(target.device() != "cpu", reason="sparse tensors lie on the CPU")
def test_offsets_beyond_32_bits(fast):
    """Rows whose codes and scales lie 2^30 elements apart: the third one's offset does not fit 32 bits."""
    near = operands(torch.int8, 3)
    for actual, expected in zip(fast.attention(*map(far_apart, near), group=1), fast.attention(*near, group=1), strict=True):
        exactly(actual, expected)
