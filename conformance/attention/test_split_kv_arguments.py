"""Flash-Decoding: wrong arguments are named before anything runs; the operators work under torch.compile."""

import pytest
import torch

from twofold.conformance import inputs, target

OPTIONS = {"causal": True, "window": (30, None), "softcap": 2.0, "size": 16}


def tensors(dtype=torch.float32):
    shapes = (2, 3, 4, 16), (2, 40, 2, 16), (2, 40, 2, 8)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(target.device(), dtype) for shape in shapes]


BAD = [
    ("q is an array", TypeError, "q", lambda q, k, v: ((q.cpu().numpy(), k, v), {})),
    ("q has three axes", ValueError, "q", lambda q, k, v: ((q[0], k, v), {})),
    ("widths of q and k differ", ValueError, "k", lambda q, k, v: ((q, k[..., :8].contiguous(), v), {})),
    ("lengths of k and v differ", ValueError, "v", lambda q, k, v: ((q, k, v[:, :4]), {})),
    ("batches differ", ValueError, "k", lambda q, k, v: ((q, k[:1], v[:1]), {})),
    ("heads do not divide", ValueError, "q", lambda q, k, v: ((q[:, :, :3], k, v), {})),
    ("dtypes differ", TypeError, "v", lambda q, k, v: ((q, k, v.half()), {})),
    ("float64", TypeError, "q", lambda q, k, v: ((q.double(), k.double(), v.double()), {})),
    ("heads too wide", ValueError, "q", lambda q, k, v: ((q.repeat(1, 1, 1, 20), k.repeat(1, 1, 1, 20), v), {})),
    ("innermost axis strided", ValueError, "k", lambda q, k, v: ((q, k.repeat(1, 1, 1, 2)[..., ::2], v), {})),
    ("length of wrong shape", ValueError, "length", lambda q, k, v: ((q, k, v), {"length": torch.ones(3, dtype=torch.int32)})),
    ("length of floats", TypeError, "length", lambda q, k, v: ((q, k, v), {"length": q[:, 0, 0, 0]})),
    ("sink of wrong length", ValueError, "sink", lambda q, k, v: ((q, k, v), {"sink": q.new_zeros(3)})),
    ("negative window", ValueError, "window", lambda q, k, v: ((q, k, v), {"window": (-1, 0)})),
    ("scale 0", ValueError, "scale", lambda q, k, v: ((q, k, v), {"scale": 0.0})),
    ("negative cap", ValueError, "softcap", lambda q, k, v: ((q, k, v), {"softcap": -1.0})),
    ("size 0", ValueError, "size", lambda q, k, v: ((q, k, v), {"size": 0})),
    ("no splits", ValueError, "splits", lambda q, k, v: ((q, k, v), {"splits": 0})),
    ("bounds that fall", ValueError, "bounds", lambda q, k, v: ((q, k, v), {"bounds": [0, 30, 20, 40]})),
    ("bounds that end early", ValueError, "bounds", lambda q, k, v: ((q, k, v), {"bounds": [0, 30]})),
]


@pytest.mark.parametrize(("error", "name", "change"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_errors_name_the_argument(fast, error, name, change):
    arguments, options = change(*tensors())
    with pytest.raises(error, match=name):
        fast.attention(*arguments, **options)


@pytest.mark.skipif(target.device() != "cpu", reason="no GPU: there nobody waits for a kernel to complain")
def test_lengths_without_room_are_named_on_the_cpu(fast):
    q, k, v = tensors()
    for length in ([41, 3], [-1, 3]):
        with pytest.raises(ValueError, match="length"):
            fast.attention(q, k, v, length=torch.tensor(length))


def test_combine_checks_its_own_arguments(fast):
    o, lse = torch.zeros(2, 1, 3, 2, 4), torch.zeros(2, 1, 2, 3)
    for arguments, error, name in (
        ((o[0], lse), ValueError, "o"),
        ((o, lse[:, :, :1]), ValueError, "lse"),
        ((o, lse.half()), TypeError, "lse"),
    ):
        with pytest.raises(error, match=name):
            fast.combine(*arguments)


def test_occupancy_and_fixed_check_their_arguments(fast):
    for call, name in (
        (lambda: fast.occupancy(0, 4, 8), "tiles"),
        (lambda: fast.occupancy(1, 4, 0), "sms"),
        (lambda: fixed(fast, -1), "n "),
        (lambda: fixed(fast, 4, 0), "size"),
    ):
        with pytest.raises(ValueError, match=name):
            call()


def fixed(fast, n, size=2):
    return fast.fixed(n, size)


def test_compiled_graph_is_whole_and_equal(fast):
    """torch.compile(fullgraph=True) gives the bits of the eager call."""
    q, k, v = tensors()
    length = torch.tensor([40, 17], device=q.device)

    def attend(q, k, v, length):
        return *fast.attention(q, k, v, length=length, **OPTIONS), *fast.combine(*fast.partials(q, k, v, length=length, **OPTIONS))

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")(q, k, v, length)
    for x, y in zip(compiled, attend(q, k, v, length), strict=True):
        assert torch.equal(x, y)


@pytest.mark.skipif(target.target() != target.OURS, reason="our operators")
def test_operators_are_registered_in_full(fast):
    fast.attention  # noqa: B018  the module that registers them
    q, k, v = tensors()
    length, sink = torch.tensor([40, 17], device=q.device), torch.zeros(4, device=q.device)
    operators = torch.ops.twofold
    for size in (16, 512):
        torch.library.opcheck(operators.split_attention, (q, k, v, sink, None, None, None, length, None, size, 30, 0, 0.25, 2.0))
    bounds = torch.tensor([0, 20, 40], dtype=torch.int32, device=q.device)
    torch.library.opcheck(operators.split_attention_partials, (q, k, v, None, None, None, None, bounds, 512, None, None, 0.25, None))
    table = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32, device=q.device)
    torch.library.opcheck(operators.split_attention, (q, k, None, None, None, None, table, length, None, 16, None, 0, 0.25, None))
    torch.library.opcheck(
        operators.combine_splits, operators.split_attention_partials(q, k, v, None, None, None, None, None, 16, None, None, 0.25, None)
    )


def test_inputs_are_unchanged_and_outputs_keep_their_dtype(fast):
    for dtype in (torch.float16, torch.bfloat16):
        arguments = tensors(dtype)
        o, lse = fast.attention(*arguments, **OPTIONS)
        assert o.dtype == dtype and lse.dtype == torch.float32
        assert inputs.array(o).shape == (2, 3, 4, 8) and lse.shape == (2, 4, 3)
        assert all(torch.equal(x, y) for x, y in zip(arguments, tensors(dtype), strict=True))
