"""KIVI: wrong arguments are named, the operator is registered in full, offsets are 64 bits wide."""

import pytest
import torch

from twofold.conformance import target
from twofold.conformance.attention.test_kivi import batch, padded
from twofold.conformance.big_tensor import far_apart
from twofold.conformance.compare import exactly
from twofold.spec.attention import kivi


def x(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype, device=target.device())


def filled(fast):
    cache = fast.Cache(2, 4, 4)
    cache.prefill(x(2, 9, 2, 16), x(2, 9, 2, 8))
    return cache


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (ValueError, "bits", lambda f: f.Cache(9, 4, 4)),
        (ValueError, "group", lambda f: f.Cache(2, 0, 4)),
        (ValueError, "residual", lambda f: f.Cache(2, 4, 6)),
        (ValueError, "residual", lambda f: f.Cache(2, 4, 0)),
        (ValueError, "given tokens", lambda f: f.Cache(2, 4, 4).attend(x(1, 1, 1, 16))),
        (ValueError, "given tokens", lambda f: f.Cache(2, 4, 4).contents()),
        (TypeError, "k", lambda f: f.Cache(2, 4, 4).prefill([1.0], x(1, 3, 1, 16))),
        (TypeError, "k", lambda f: f.Cache(2, 4, 4).prefill(x(1, 3, 1, 16).double(), x(1, 3, 1, 16).double())),
        (ValueError, "v", lambda f: f.Cache(2, 4, 4).prefill(x(1, 3, 1, 16), x(1, 4, 1, 16))),
        (TypeError, "v", lambda f: f.Cache(2, 4, 4).prefill(x(1, 3, 1, 16), x(1, 3, 1, 16).half())),
        (ValueError, "lengths", lambda f: f.Cache(2, 4, 4).prefill(x(2, 3, 1, 16), x(2, 3, 1, 16), lengths=[3])),
        (ValueError, "lengths", lambda f: f.Cache(2, 4, 4).prefill(x(2, 3, 1, 16), x(2, 3, 1, 16), lengths=[3, 4])),
        (ValueError, "lengths", lambda f: f.Cache(2, 4, 4).prefill(x(2, 3, 1, 16), x(2, 3, 1, 16), lengths=[-1, 3])),
        (ValueError, "k", lambda f: filled(f).prefill(x(3, 1, 2, 16), x(3, 1, 2, 8))),
        (ValueError, "v", lambda f: filled(f).prefill(x(2, 1, 2, 16), x(2, 1, 2, 16))),
        (TypeError, "k", lambda f: filled(f).prefill(x(2, 1, 2, 16).half(), x(2, 1, 2, 8).half())),
        (ValueError, "k", lambda f: filled(f).append(x(2, 1, 4, 16), x(2, 2, 2, 16), x(2, 2, 2, 8))),
        (ValueError, "q", lambda f: filled(f).attend(x(2, 1, 3, 16))),
        (ValueError, "q", lambda f: filled(f).attend(x(2, 1, 2, 8))),
        (TypeError, "q", lambda f: filled(f).attend(x(2, 1, 2, 16).half())),
        (ValueError, "scale", lambda f: filled(f).attend(x(2, 1, 2, 16), scale=0.0)),
        (ValueError, "x", lambda f: f.quantize(x(2, 3, 4), 2, 4, 0)),
        (TypeError, "x", lambda f: f.quantize(x(1, 2, 3, 4, dtype=torch.int32), 2, 4, 0)),
        (ValueError, "bits", lambda f: f.quantize(x(1, 2, 3, 4), 0, 4, 0)),
        (ValueError, "group", lambda f: f.quantize(x(1, 2, 3, 4), 2, 0, 0)),
        (ValueError, "axis", lambda f: f.quantize(x(1, 2, 3, 4), 2, 4, 2)),
        (TypeError, "codes", lambda f: f.dequantize(x(1, 2, 3, 4), x(1, 1, 3, 4), x(1, 1, 3, 4), 2, 0)),
        (ValueError, "scale", lambda f: f.dequantize(x(1, 2, 3, 4, dtype=torch.uint8), x(1, 2, 3, 4), x(1, 2, 3, 4), 2, 0)),
        (TypeError, "zero", lambda f: f.dequantize(x(1, 2, 3, 4, dtype=torch.uint8), x(1, 1, 3, 4), x(1, 1, 3, 4).half(), 2, 0)),
        (ValueError, "axis", lambda f: f.dequantize(x(1, 2, 3, 4, dtype=torch.uint8), x(1, 1, 3, 4), x(1, 1, 3, 4), 2, 5)),
    ],
)  # fmt: skip
def test_errors_name_the_argument(fast, error, name, call):
    with pytest.raises(error, match=name):
        call(fast)


def test_a_refused_append_leaves_the_cache_as_it_was(fast):
    cache = filled(fast)
    before = cache.contents()
    with pytest.raises(ValueError, match="heads"):
        cache.append(x(2, 1, 3, 16), 5 * x(2, 1, 2, 16), 5 * x(2, 1, 2, 8))
    for now, then in zip(cache.contents(), before, strict=True):
        exactly(now, then)
    assert cache.lengths.tolist() == [9, 9]


def test_the_definition_refuses_a_window_that_groups_do_not_fill():
    for group, residual in ((4, 6), (4, 0), (0, 4)):
        with pytest.raises(ValueError, match="residual"):
            kivi.Cache(2, group, residual)


def operands(fast, requests=3):
    """What the operator reads of a cache of requests that are old enough to have codes."""
    k, v, _, _ = batch(0, [11] * requests, 1, 16, 16, 2, 4)
    cache = fast.Cache(2, 4, 4)
    cache.prefill(*(padded(part, [11] * requests, 0, 11, "float32") for part in (k, v)))
    old, recent = (torch.tensor([n] * requests, device=target.device()) for n in (7, 4))
    q = torch.randn(requests, 1, 2, 16, generator=torch.Generator().manual_seed(0)).to(target.device())
    return q, *cache.keys, *cache.values, old, cache.recent_k, cache.recent_v, recent, 2, 4, 0.25


@pytest.mark.skipif(target.target() != target.OURS, reason="our operators")
def test_operator_is_registered_in_full(fast):
    torch.library.opcheck(torch.ops.twofold.quantized_cache_attend, operands(fast, 1))


@pytest.mark.skipif(target.target() != target.OURS, reason="our operators")
def test_compiled_graph_is_whole_and_equal(fast):
    arguments = operands(fast, 2)
    run = lambda q: torch.ops.twofold.quantized_cache_attend(2 * q, *arguments[1:])[0] + 1
    torch._dynamo.reset()
    exactly(torch.compile(run, fullgraph=True, backend="aot_eager")(arguments[0]), run(arguments[0]))


@pytest.mark.skipif(target.device() != "cpu" or target.target() != target.OURS, reason="sparse tensors lie on the CPU")
def test_offsets_beyond_32_bits(fast):
    """Requests whose codes, parameters and rings lie 2^30 elements apart: the third one's offset does not fit 32 bits."""
    near = operands(fast)
    far = [far_apart(part) if i in (1, 2, 3, 4, 5, 6, 8, 9) else part for i, part in enumerate(near)]
    attend = torch.ops.twofold.quantized_cache_attend
    for actual, expected in zip(attend(*far), attend(*near), strict=True):
        exactly(actual, expected)
