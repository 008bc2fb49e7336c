"""The short convolution on real values, within derived bounds; gradients, packing, memory; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.big_tensor import far_apart
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.state_space import short_conv

widths, channels = st.sampled_from([1, 2, 4, 8]), st.sampled_from([3, 37])


def leaves(arrays, dtype, layout="contiguous"):
    """x, w, b, tail of one sequence as tensors that want gradients."""
    x, w, b, tail = arrays
    given = x[None], w, b, tail[None]
    return [inputs.tensor(a, dtype, layout if i in (0, 3) else "contiguous").requires_grad_() for i, a in enumerate(given)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@few
@given(inputs.regimes, inputs.seeds, inputs.layouts, st.sampled_from([1, 5, 64, 70]), widths, channels)
def test_values_and_gradients_agree_with_the_definition(fast, dtype, regime, seed, layout, T, W, D):
    """The tail is inputs, so it is exact in every format; everything else is one sum of products in float32, rounded once."""
    shapes = (T, D), (W, D), (D,), (W - 1, D), (T, D), (W - 1, D)
    *arrays, dy, dtail = (inputs.rounded(a / 4, dtype) for a in inputs.values(regime, shapes, seed, dtype))
    x, w, b, tail = arrays
    given_ = leaves(arrays, dtype, layout)
    y, new = fast.causal(*given_)
    expected = bounded(short_conv.causal, x, w, b, tail, precision=Precision(dtype))
    agree(y[0].detach(), expected[0], "output")
    exactly(new[0], expected[1].value, "new tail")
    upstream = inputs.tensor(dy[None], dtype), inputs.tensor(dtail[None], dtype)
    gradients = torch.autograd.grad((y, new), given_, upstream)
    wanted = bounded(short_conv.backward, x, w, dy, dtail, tail, precision=Precision(dtype))
    for actual, bound, what in zip(gradients, wanted, ("dx", "dw", "db", "dtail"), strict=True):
        agree(actual[0] if what in ("dx", "dtail") else actual, bound, what)


@few
@given(inputs.seeds, st.sampled_from(["bfloat16", "float16"]))
def test_weights_may_be_wider_than_inputs(fast, seed, dtype):
    x, tail = inputs.values("normal", [(17, 5), (3, 5)], seed, dtype)
    w, b = inputs.values("normal", [(4, 5), (5,)], seed, "float32")
    filters = inputs.tensor(w, "float32"), inputs.tensor(b, "float32")
    y, _ = fast.causal(inputs.tensor(x[None], dtype), *filters, inputs.tensor(tail[None], dtype))
    agree(y[0], bounded(short_conv.causal, x, w, b, tail, precision=Precision(dtype))[0], "output")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 2, 5, 64, 70]), min_size=1, max_size=4), widths, st.booleans())
@example(0, [70, 0, 2, 1, 65], 4, True)
def test_packed_sequences_are_sequences(fast, seed, lengths, W, tailed):
    """Outputs, tails and gradients of each as if alone, an empty one returns its tail; every output counts once in dw and db."""
    rng, D, N = np.random.default_rng(seed), 3, len(lengths)
    x, dy = rng.integers(-3, 4, (2, sum(lengths), D)).astype(float)
    w, b = rng.integers(-3, 4, (W, D)).astype(float), rng.integers(-3, 4, D).astype(float)
    tail, dtail = rng.integers(-3, 4, (2, N, W - 1, D)).astype(float)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    given_ = [inputs.tensor(a, "float32").requires_grad_() for a in (x[None], w, b, tail)[: 4 if tailed else 3]]
    y, new = fast.causal(*given_, cu_seqlens=inputs.tensor(edges, "int32"))
    gradients = torch.autograd.grad((y, new), given_, (inputs.tensor(dy[None], "float32"), inputs.tensor(dtail, "float32")))
    dw, db = np.zeros_like(w), np.zeros_like(b)
    for n in range(N):
        here, what = slice(edges[n], edges[n + 1]), f"of sequence {n} of lengths {lengths}"
        alone = tail[n] if tailed else None
        output, after = short_conv.causal(x[here], w, b, alone)
        exactly(y[0, here], output, f"outputs {what}")
        exactly(new[n], after, f"new tail {what}")
        dx, *shares, dtail0 = short_conv.backward(x[here], w, dy[here], dtail[n], alone)
        exactly(gradients[0][0, here], dx, f"dx {what}")
        dw, db = dw + shares[0], db + shares[1]
        if tailed:
            exactly(gradients[3][n], dtail0, f"dtail {what}")
    exactly(gradients[1], dw, "dw: the sum over the sequences, each output once")
    exactly(gradients[2], db, "db")


@few
@given(inputs.seeds)
def test_sequences_of_a_batch_do_not_meet(fast, seed):
    """Each has the bits that it has alone, outputs and gradients of inputs and tails; so has a run over them again."""
    x, dy = inputs.values("normal", [(3, 70, 5)] * 2, seed, "float32")
    tail, dtail = inputs.values("normal", [(3, 3, 5)] * 2, seed ^ 1, "float32")
    w, b = inputs.values("normal", [(4, 5), (5,)], seed ^ 2, "float32")

    def of(where):
        given_ = [inputs.tensor(a, "float32").requires_grad_() for a in (x[where], w, b, tail[where])]
        results = fast.causal(*given_)
        upstream = inputs.tensor(dy[where], "float32"), inputs.tensor(dtail[where], "float32")
        return [*results, *torch.autograd.grad(results, given_, upstream)]

    whole, again = of(slice(None)), of(slice(None))
    for one, two in zip(whole, again, strict=True):
        exactly(two, one, "a second run")
    for n in range(3):
        alone = of(slice(n, n + 1))
        for i, what in ((0, "outputs"), (1, "new tail"), (2, "dx"), (5, "dtail")):
            exactly(whole[i][n], alone[i][0], f"{what} of sequence {n}")


@given(inputs.seeds, st.sampled_from([0, 1, 5]))
def test_a_tail_that_others_share_stays_as_it_is(fast, seed, T):
    """The tail may be a block of a shared prefix: the new one is written elsewhere, and inputs keep their bits."""
    x, w, tail = inputs.values("normal", [(1, T, 5), (4, 5), (2, 3, 5)], seed, "float32")
    given_ = [inputs.tensor(a, "float32") for a in (x, w, tail)]
    y, new = fast.causal(given_[0], given_[1], None, given_[2][:1])
    stepped = fast.step(given_[2][:1], inputs.tensor(tail[:1, 0], "float32"), given_[1])[1]
    new.fill_(7.0), y.fill_(7.0), stepped.fill_(7.0)
    for actual, expected, what in zip(given_, (x, w, tail), ("x", "w", "the shared tails"), strict=True):
        exactly(actual, expected, what)


@pytest.mark.parametrize("what", ["x", "w"])
def test_offsets_beyond_32_bits(fast, what):
    """Tokens, or rows of the filter, 2**30 elements apart: the same bits."""
    rng = np.random.default_rng(0)
    small = {"x": inputs.tensor(rng.integers(-3, 4, (1, 4, 3)).astype(float), "float32", device="cpu")}
    small |= {"w": inputs.tensor(rng.integers(-3, 4, (3, 3)).astype(float), "float32", device="cpu")}
    expected = fast.causal(**small)
    for actual, value in zip(fast.causal(**small | {what: far_apart(small[what], axis=-2)}), expected, strict=True):
        exactly(actual, value, f"with a huge stride of {what}")


def some(**changes):
    shapes = {"x": (2, 5, 4), "w": (3, 4), "b": (4,), "tail": (2, 2, 4)}
    return {name: torch.ones(shape, device=inputs.target.device()) for name, shape in shapes.items()} | changes


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"w": torch.ones(9, 4)}, ValueError, "w must have 1 to 8 rows"),
        ({"w": torch.ones(0, 4)}, ValueError, "w must have 1 to 8 rows"),
        ({"w": torch.ones(4, 1, 3)}, ValueError, "w must"),
        ({"w": torch.ones(3, 5)}, ValueError, "w must"),
        ({"w": torch.ones(3, 4, dtype=torch.float16)}, TypeError, "w must"),
        ({"b": torch.ones(3)}, ValueError, "b must"),
        ({"tail": torch.ones(2, 3, 4)}, ValueError, "tail must"),
        ({"tail": torch.ones(1, 2, 4)}, ValueError, "tail must"),
        ({"tail": torch.ones(2, 2, 4, dtype=torch.bfloat16)}, TypeError, "tail must"),
        ({"x": torch.ones(2, 5, 4, dtype=torch.int32)}, TypeError, "x must"),
        ({"cu_seqlens": torch.tensor([0, 5])}, ValueError, "cu_seqlens must come with B = 1"),
        ({"x": torch.ones(1, 5, 4), "tail": None, "cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must rise"),
        ({"x": torch.ones(1, 5, 4), "tail": None, "cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    wrong = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in wrong.items()}
    with pytest.raises(error, match=message):
        fast.causal(**some(**wrong), check=True)


def test_the_operator_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    compiled = torch.compile(lambda **x: fast.causal(**x), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(**some()), fast.causal(**some()), strict=True):
        exactly(actual, expected, "compiled")


@pytest.mark.parametrize("edges", [None, [0, 3, 3, 5]])
def test_the_operator_is_well_formed(fast, edges):
    """Schema, fake tensors and autograd registration, as PyTorch's own check sees them."""
    x, w, b, tail = (x.requires_grad_() for x in some().values())
    if edges is None:
        arguments = x, w, b, tail, None, 2, False
    else:
        arguments = x[:1].detach(), w, b, None, torch.tensor(edges, device=x.device), 3, False
    torch.library.opcheck(torch.ops.twofold.causal_convolution_forward.default, arguments)
