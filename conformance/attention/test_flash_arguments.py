"""FlashAttention-2: wrong arguments are named before anything runs; the operators work under torch.compile."""

import pytest
import torch

from twofold.conformance import inputs, target
from twofold.conformance.compare import exactly

OPTIONS = {"causal": True, "window": (3, None), "softcap": 2.0}


def tensors(dtype=torch.float32, heads=2, kv_heads=1):
    shapes = (1, 5, heads, 16), (1, 9, kv_heads, 16), (1, 9, kv_heads, 8)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(target.device(), dtype) for shape in shapes]


BAD = [
    ("q is an array", TypeError, "q", lambda q, k, v: ((q.cpu().numpy(), k, v), {})),
    ("q has three axes", ValueError, "q", lambda q, k, v: ((q[0], k, v), {})),
    ("widths of q and k differ", ValueError, "k", lambda q, k, v: ((q, k[..., :8].contiguous(), v), {})),
    ("lengths of k and v differ", ValueError, "v", lambda q, k, v: ((q, k, v[:, :4]), {})),
    ("batches differ", ValueError, "k", lambda q, k, v: ((q, k.repeat(2, 1, 1, 1), v), {})),
    ("heads do not divide", ValueError, "q", lambda q, k, v: ((q[:, :, [0, 1, 0]], k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1)), {})),
    ("dtypes differ", TypeError, "v", lambda q, k, v: ((q, k, v.half()), {})),
    ("float64", TypeError, "q", lambda q, k, v: ((q.double(), k.double(), v.double()), {})),
    ("heads too wide", ValueError, "q", lambda q, k, v: ((q.repeat(1, 1, 1, 20), k.repeat(1, 1, 1, 20), v), {})),
    ("innermost axis strided", ValueError, "k", lambda q, k, v: ((q, k.repeat(1, 1, 1, 2)[..., ::2], v), {})),
    ("sink of wrong length", ValueError, "sink", lambda q, k, v: ((q, k, v), {"sink": q.new_zeros(3)})),
    ("integer sink", TypeError, "sink", lambda q, k, v: ((q, k, v), {"sink": torch.zeros(2, dtype=torch.int32)})),
    ("negative window", ValueError, "window", lambda q, k, v: ((q, k, v), {"window": (-1, 0)})),
    ("scale 0", ValueError, "scale", lambda q, k, v: ((q, k, v), {"scale": 0.0})),
    ("negative cap", ValueError, "softcap", lambda q, k, v: ((q, k, v), {"softcap": -1.0})),
]


@pytest.mark.parametrize(("error", "name", "change"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_errors_name_the_argument(fast, error, name, change):
    arguments, options = change(*tensors())
    with pytest.raises(error, match=name):
        fast.forward(*arguments, **options)


def test_backward_checks_its_own_arguments(fast):
    q, k, v = tensors()
    o, lse = fast.forward(q, k, v)
    for arguments, options, error, name in (
        ((q, k, v, o[:, :3], lse, o), {}, ValueError, "o"),
        ((q, k, v, o, lse, o.half()), {}, TypeError, "do"),
        ((q, k, v, o, lse[:, :1], o), {}, ValueError, "lse"),
        ((q, k, v, o, lse.half(), o), {}, TypeError, "lse"),
        ((q, k, v, o, lse, o), {"dlse": lse[..., :3]}, ValueError, "dlse"),
    ):
        with pytest.raises(error, match=name):
            fast.backward(*arguments, **options)


def test_compiled_graph_is_whole_and_equal(fast):
    """torch.compile(fullgraph=True), forward and backward, gives the bits of the eager call."""
    leaves = [x.requires_grad_() for x in tensors()]

    def loss(q, k, v):
        o, lse = fast.forward(q, k, v, **OPTIONS)
        return o.square().sum() + lse.sum()

    torch._dynamo.reset()
    eager = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves), leaves)
    for x, y in zip(compiled, eager, strict=True):
        assert torch.equal(x, y)


@pytest.mark.skipif(target.target() != target.OURS, reason="our operators")
def test_operators_are_registered_in_full(fast):
    fast.forward  # noqa: B018  the module that registers them
    q, k, v = (x.requires_grad_() for x in tensors())
    sink = torch.zeros(2, device=q.device, requires_grad=True)
    operators, plain = torch.ops.twofold, ([], None, None, None, [], [], [], [], [])  # not packed, no functions, no blocks
    torch.library.opcheck(operators.tiled_attention_forward, (q, k, v, sink, 3, 0, 0.25, 2.0, *plain))
    torch.library.opcheck(operators.tiled_attention_forward, (q, k, v, None, None, None, 0.25, None, *plain))
    detached = [x.detach() for x in (q, k, v)]
    o, lse = operators.tiled_attention_forward(*detached, None, None, None, 0.25, None, *plain)
    torch.library.opcheck(operators.tiled_attention_backward, (*detached, None, o, lse, o, lse, None, None, 0.25, None, *plain))


def test_half_precision_inputs_keep_their_dtype(fast):
    for dtype in (torch.float16, torch.bfloat16):
        o, lse = fast.forward(*tensors(dtype), **OPTIONS)
        assert o.dtype == dtype and lse.dtype == torch.float32
        assert inputs.array(o).shape == (1, 5, 2, 8) and lse.shape == (1, 2, 5)


def test_a_batch_of_nothing_is_nothing(fast):
    """No sequences, no rows, no keys: results of the right shapes, gradients included."""
    for b, t_q, t_k in ((0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)):
        q, k = torch.ones(b, t_q, 4, 16, device=inputs.target.device()), torch.ones(b, t_k, 2, 16, device=inputs.target.device())
        o, lse = fast.forward(q, k, k, causal=True)
        assert o.shape == q.shape and lse.shape == (b, 4, t_q)
        dq, dk, dv, _, _ = fast.backward(q, k, k, o, lse, o, causal=True)
        for gradient, like in ((dq, q), (dk, k), (dv, k)):
            exactly(gradient, torch.zeros_like(like), "gradient")
