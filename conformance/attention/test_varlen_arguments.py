"""Packed sequences: wrong arguments are named, operators are whole, autograd is the backward pass, offsets are 64 bits wide."""

import numpy as np
import pytest
import torch

from twofold.conformance import inputs, target
from twofold.conformance.big_tensor import far_apart
from twofold.conformance.compare import exactly
from twofold.fast.kernels.packed_sequences import Packing, table


def arguments():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(target.device())
    cu = lambda *ends: torch.tensor(ends, device=target.device())
    return [draw(9, 4, 16), draw(12, 2, 16), draw(12, 2, 8), cu(0, 4, 4, 9), cu(0, 5, 8, 12)]


def changed(place, value):
    return lambda a: ((*a[:place], value, *a[place + 1 :]), {})


cu = lambda *ends, **options: torch.tensor(ends, device=target.device(), **options)


@pytest.mark.skipif(target.device() != "cpu", reason="boundaries are checked on the CPU")
@pytest.mark.parametrize(
    ("error", "name", "change"),
    [
        (ValueError, "q", changed(0, torch.zeros(1, 9, 4, 16))),
        (ValueError, "k", changed(1, torch.zeros(12, 2, 8))),
        (ValueError, "cu_", changed(3, cu())),
        (ValueError, "cu_q", changed(3, cu(1, 4, 4, 9))),
        (ValueError, "cu_q", changed(3, cu(0, 4, 3, 9))),
        (ValueError, "cu_k", changed(4, cu(0, 5, 8, 13))),
        (ValueError, "cu_k", changed(4, cu(0, 12))),
        (TypeError, "cu_k", changed(4, cu(0.0, 5.0, 8.0, 12.0))),
        (ValueError, "used_k", lambda a: (a, {"used_k": cu(5, 3)})),
        (ValueError, "used_k", lambda a: (a, {"used_k": cu(5, 4, 4)})),
        (ValueError, "used_k", lambda a: (a, {"used_k": cu(-1, 3, 4)})),
        (ValueError, "window", lambda a: (a, {"window": (-1, 0)})),
        (ValueError, "sink", lambda a: (a, {"sink": torch.zeros(3)})),
        (ValueError, "scale", lambda a: (a, {"scale": -1.0})),
    ],
)
def test_errors_name_the_argument(fast, error, name, change):
    positional, options = change(arguments())
    with pytest.raises(error, match=name):
        fast.attention(*positional, **options)


def test_autograd_is_the_backward_pass(fast):
    """Through both results; the sink's gradient, which `backward` does not return, is that of a difference of two losses."""
    *qkv, cu_q, cu_k = arguments()
    qkv, sink = [x.requires_grad_() for x in qkv], torch.zeros(4, device=target.device(), requires_grad=True)
    o, lse = fast.attention(*qkv, cu_q, cu_k, causal=True, sink=sink)
    do, dlse = torch.ones_like(o), torch.arange(36.0, device=o.device).view(4, 9) / 36
    dlse = torch.where(lse == -torch.inf, 0, dlse)
    gradients = torch.autograd.grad((o, lse), (*qkv, sink), (do, dlse))
    with torch.no_grad():
        explicit = fast.backward(*qkv, o, lse, do, cu_q, cu_k, dlse=dlse, causal=True, sink=sink)
        for x, y, name in zip(gradients, explicit, ("dq", "dk", "dv"), strict=False):
            exactly(x, y, name)
        loss = lambda z: fast.attention(*qkv, cu_q, cu_k, causal=True, sink=z)[0].double().sum()
        for h in range(4):
            step = torch.zeros_like(sink)
            step[h] = 2.0**-6
            slope = (loss(sink + step) - loss(sink - step)) / 2.0**-5
            assert abs(slope - gradients[3][h]) <= 2.0**-12 * 36 + 2.0**-24 * 2**6 * 36  # the third derivative is below 1 per element


def test_no_sequence_no_rows_no_keys(fast):
    q, k, v, *_ = arguments()
    for ends, rows, keys in ((cu(0), 9, 12), (cu(0, 0), 9, 12), (cu(0, 0, 0), 0, 12), (cu(0, 0), 9, 0)):
        o, lse = fast.attention(q[:rows], k[:keys], v[:keys], ends, ends)
        exactly(o, np.zeros((rows, 4, 8)), "output")
        exactly(lse, np.full((4, rows), -np.inf), "log-sum-exp")
        for x, like in zip(fast.backward(q[:rows], k[:keys], v[:keys], o, lse, o, ends, ends), (q[:rows], k[:keys], v[:keys]), strict=True):
            exactly(x, np.zeros(like.shape), "gradient")


def test_compiled_graph_is_whole_and_equal(fast):
    def run(q, k, v, cu_q, cu_k):
        return fast.attention(2 * q, k, v, cu_q, cu_k, causal=True)[0] + 1

    torch._dynamo.reset()
    exactly(torch.compile(run, fullgraph=target.device() != "cpu", backend="aot_eager")(*arguments()), run(*arguments()))


@pytest.mark.skipif(target.target() != target.OURS, reason="our operators")
def test_operator_is_registered_in_full(fast):
    fast.attention  # noqa: B018  the module that registers it
    q, k, v, cu_q, cu_k = arguments()
    q, k, v = (x[None].requires_grad_() for x in (q, k, v))
    packed = [cu_q, cu_k, torch.tensor([5, 2, 4], device=q.device)]
    torch.library.opcheck(
        torch.ops.twofold.tiled_attention_forward, (q, k, v, None, None, 0, 0.25, None, packed, None, None, None, [], [], [], [], [])
    )


@pytest.mark.skipif(target.device() != "cpu", reason="sparse tensors lie on the CPU")
def test_heads_beyond_two_billion_elements(fast):
    """Three heads 2^30 elements apart."""
    rng = np.random.default_rng(0)
    q, k, v = (inputs.tensor(rng.standard_normal((9, 3, n)), "float32") for n in (16, 16, 8))
    ends = cu(0, 4, 9)
    far = fast.attention(*(far_apart(x, 1) for x in (q, k, v)), ends, ends, causal=True)
    for x, y in zip(far, fast.attention(q, k, v, ends, ends, causal=True), strict=True):
        exactly(x, y)


def test_the_table_lists_every_block_once():
    """Whatever the lengths, of rows and of keys; what is left over are sequences without rows."""
    for lengths in ([], [0], [5], [16, 0, 1, 33], [1] * 7, [0, 0, 40]):
        ends = torch.tensor(np.cumsum([0, *lengths]))
        total = int(ends[-1]) + 3
        for keys in (False, True):
            entries = table(Packing(ends, ends), total, 16, keys).tolist()
            blocks = [(first, n, number) for first, n, _, _, number in entries if n]
            wanted = [(int(first), n, number) for first, n in zip(ends, lengths, strict=False) for number in range(-(-n // 16))]
            assert sorted(blocks) == sorted(wanted) and len(entries) == total // 16 + len(lengths)
