"""FlashAttention-4's numerics: wrong arguments are named, the operators are registered in full, offsets are 64 bits wide."""

import numpy as np
import pytest
import torch

from twofold.conformance import inputs, target
from twofold.conformance.big_tensor import far_apart
from twofold.conformance.compare import exactly


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(target.device(), dtype) for shape in ((1, 5, 2, 16), (1, 9, 1, 16), (1, 9, 1, 8))]


@pytest.mark.parametrize(
    ("error", "name", "change"),
    [
        (TypeError, "q", lambda q, k, v: ((q.double(), k.double(), v.double()), {})),
        (TypeError, "v", lambda q, k, v: ((q, k, v.half()), {})),
        (ValueError, "k", lambda q, k, v: ((q, k[..., :8].contiguous(), v), {})),
        (ValueError, "q", lambda q, k, v: ((q[:, :, [0, 1, 0]], k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1)), {})),
        (ValueError, "window", lambda q, k, v: ((q, k, v), {"window": (-1, 0)})),
        (ValueError, "scale", lambda q, k, v: ((q, k, v), {"scale": -1.0})),
        (ValueError, "tau", lambda q, k, v: ((q, k, v), {"tau": -1.0})),
        (ValueError, "tau", lambda q, k, v: ((q, k, v), {"tau": float("nan")})),
        (ValueError, "tau", lambda q, k, v: ((q.half(), k.half(), v.half()), {"tau": 16.0})),
        (ValueError, "emulate", lambda q, k, v: ((q, k, v), {"emulate": 0})),
    ],
)
def test_errors_name_the_argument(fast, error, name, change):
    arguments, options = change(*tensors())
    with pytest.raises(error, match=name):
        fast.lazy_rescale(*arguments, **options)


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (TypeError, "x", lambda f: f.exp2(1.0)),
        (TypeError, "x", lambda f: f.exp2(torch.zeros(2, dtype=torch.float16))),
        (ValueError, "degree", lambda f: f.exp2(torch.zeros(2), degree=6)),
    ],
)
def test_errors_of_powers_name_the_argument(fast, error, name, call):
    with pytest.raises(error, match=name):
        call(fast)


def test_powers_of_any_shape(fast):
    x = inputs.tensor(np.arange(24.0).reshape(2, 3, 4), "float32", "transposed")
    exactly(fast.exp2(x), 2.0 ** inputs.array(x))
    assert fast.exp2(x[:0]).shape == (0, 3, 4)


def test_compiled_graph_is_whole_and_equal(fast):
    def run(q, k, v):
        o, lse = fast.lazy_rescale(q, k, v, causal=True, emulate=2)
        return o, fast.exp2(-lse.abs())

    torch._dynamo.reset()
    for x, y in zip(torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors()), run(*tensors()), strict=True):
        exactly(x, y)


@pytest.mark.skipif(target.target() != target.OURS, reason="our operators")
def test_operators_are_registered_in_full(fast):
    fast.exp2  # noqa: B018  the module that registers them
    torch.library.opcheck(torch.ops.twofold.lazy_attention_forward, (*tensors(), 3, 0, 0.25, 8.0, 2))
    torch.library.opcheck(torch.ops.twofold.lazy_attention_exp2, (tensors()[0], 3))


@pytest.mark.skipif(target.device() != "cpu", reason="sparse tensors lie on the CPU")
@pytest.mark.parametrize("axis", [0, 2])
def test_offsets_beyond_32_bits(fast, axis):
    """Batches or heads that lie 2^30 elements apart: the third one's offset does not fit 32 bits."""
    rng = np.random.default_rng(0)
    shape = (3, 4, 1, 16) if axis == 0 else (1, 4, 3, 16)
    q, k, v = (torch.from_numpy(rng.standard_normal(shape)).float() for _ in range(3))
    near = fast.lazy_rescale(q, k, v, causal=True)
    far = fast.lazy_rescale(*(far_apart(x, axis) for x in (q, k, v)), causal=True)
    for x, y in zip(far, near, strict=True):
        exactly(x, y)
