"""mLSTM on real values, within derived bounds: gates, outputs, states and gradients; packing and heads; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.test_mlstm import apart, exact_state, exact_tokens
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import gla, mlstm, simple_gla
from twofold.spec.linear_attention.hgrn import log_forget

NAMES = ("q", "k", "v", "i", "f", "C", "n", "m")
GATES = {  # i and f: mild; far apart, with a gate that forgets at once; weights so small, and so large, that a float32 cannot hold them
    "mild": lambda rng, T: 2 * rng.standard_normal((2, T)) + [[0], [2]],
    "loud": lambda rng, T: np.stack([rng.choice([-100.0, 0.0, 100.0], T), rng.choice([-20.0, 20.0], T)]),
    "quiet": lambda rng, T: rng.standard_normal((2, T)) - [[100], [0]],
    "high": lambda rng, T: rng.standard_normal((2, T)) + [[100], [4]],
}
gates = st.sampled_from(sorted(GATES))
formats = st.sampled_from(["float32", "bfloat16", "float16"])


def contract(dtype):
    return Precision(dtype, operand="tf32x3" if dtype == "float32" else None)


def real(seed, regime, T, dtype, K=20, V=7):
    """q, k, v, i, f, C, n, m; d outputs and d state."""
    q, k, v, do = (x / 2 for x in inputs.values("normal", [(T, K), (T, K), (T, V), (T, V)], seed, dtype))
    rng = np.random.default_rng(seed)
    i, f = (inputs.rounded(x, "float32") for x in GATES[regime](rng, T))
    state, dstate = ([inputs.rounded(rng.standard_normal(n), "float32") for n in ((K, V), K, 1)] for _ in range(2))
    return (q, k, v, i, f, *state), (do, *dstate)


def tensors(*case, dtype="float32"):
    rows = [inputs.tensor(x[None, :, None], dtype if n < 3 else "float32") for n, x in enumerate(case[:5])]
    return *rows, *(inputs.tensor(x[None, None] if n < 2 else x[None], "float32") for n, x in enumerate(case[5:]))


def by_doubling(i, f, m):
    """`mlstm.gates` in log2(T) rounds."""
    keep = log_forget(f)
    units, decay, reach = np.concatenate([np.maximum(keep[:1] + m, i[:1]), i[1:]]), keep, 1
    while reach < len(i):
        units = np.concatenate([units[:reach], np.maximum(units[:-reach] + decay[reach:], units[reach:])])
        decay = np.concatenate([decay[:reach], decay[:-reach] + decay[reach:]])
        reach *= 2
    known = np.where(units > -np.inf, units, 0.0)
    return np.exp(i - known), np.minimum(keep + np.concatenate([m, units[:-1]]) - known, 0.0), units


def in_columns(q, k, v, i, f, C, n, m, dtype, eps):
    """What is written is rounded to the format, and so are numerator and denominator before they are divided."""
    write, g, units = by_doubling(i, f, m)
    pairs = (write[:, None] * np.concatenate([v, np.ones_like(v[:, :1])], axis=1)).rounded_to(dtype)
    both, S = simple_gla.chunked(q, k, pairs, g, np.concatenate([C, n[:, None]], axis=1), 32)
    above, below, *_ = quotient(both.rounded_to(dtype), units, eps)
    return above / below[:, None], S[:, :-1], S[:, -1], units[-1]


def quotient(both, units, eps):
    """Numerator and denominator times e^min(m, 0); the two that the denominator is the larger of; the factor."""
    scale, least = np.exp(np.minimum(units, 0.0)), np.exp(-np.maximum(units, 0.0))
    total = scale * np.abs(both[:, -1])
    return scale[:, None] * both[:, :-1], np.maximum(total, least) + eps * scale, total, least, scale


@few
@given(inputs.seeds, gates, st.sampled_from([1, 17, 35]), formats, st.sampled_from([1e-6, 0.5]), st.booleans())
@example(0, "mild", 35, "float32", 0.5, True)
@example(1, "loud", 35, "float32", 1e-6, False)
@example(3, "high", 35, "float16", 1e-6, True)
def test_outputs_and_state_agree_with_the_definition(fast, seed, regime, T, dtype, eps, continued):
    case, _ = real(seed, regime, T, dtype)
    if not continued:
        case = *case[:5], 0 * case[5], 0 * case[6], np.array([-np.inf])
    *rows, C, n, m = tensors(*case, dtype=dtype)
    o, state = fast.chunked(*rows, eps, (C, n, m) if continued else None, 32)
    stored = dtype, "float32", "float32", "float32"
    expected = bounded(in_columns, *case, dtype, eps, precision=contract(dtype), outputs=stored)
    output, (C, n, m) = mlstm.recurrent(*case[:5], eps, (*case[5:7], case[7][0]))
    actual = o[0, :, 0], state[0][0, 0], state[1][0, 0], state[2][0, 0]
    for one, bound, value, what in zip(actual, expected, (output, C, n, m), ("output", "cell", "normalizer", "unit"), strict=True):
        bound.value = value
        agree(one, bound, what)


@few
@given(inputs.seeds, gates, st.sampled_from([1, 17, 35]))
@example(0, "mild", 2048)
def test_gates_agree_with_the_definition(fast, seed, regime, T):
    case, _ = real(seed, regime, T, "float32")
    actual = fast.gates(*(tensors(*case)[n] for n in (3, 4, 7)))
    expected = bounded(by_doubling, *case[3:5], case[7], precision=Precision("float32"))
    for one, bound, value, what in zip(actual, expected, mlstm.gates(*case[3:5], case[7][0]), ("write", "log-decay", "unit"), strict=True):
        bound.value = value
        agree(one[0, :, 0], bound, what)
    assert actual[0].max() <= 1 and actual[1].max() <= 0


def adjoint(q, k, v, i, f, C, n, m, do, dC, dn, dm, eps):
    """A quotient knows its unit by eps only, and a state as a factor; the unit's gradient goes to the term that was the maximum."""
    column, keep = np.concatenate([v, np.ones_like(v[:, :1])], axis=1), log_forget(f)
    write, g, units = by_doubling(i, f, m)
    pairs, (first, dlast) = write[:, None] * column, (np.concatenate([C, n[:, None]], axis=1) for C, n in ((C, n), (dC, dn)))
    both, last = simple_gla.chunked(q, k, pairs, g, first, 32)
    above, below, total, least, scale = quotient(both, units, eps)
    dbelow = -np.sum(do * (above / below[:, None]), axis=1) / below
    dtotal = dbelow * scale * np.where(total > least, np.sign(both[:, -1]), 0.0)
    dboth = np.concatenate([do * (scale / below)[:, None], dtotal[:, None]], axis=1)
    spread = np.repeat(g[:, None], q.shape[1], axis=1)
    dq, dk, dpairs, dg, dfirst = gla.backward(q, k, pairs, spread, dboth, dlast, first)
    di, dkeep = write * np.sum(dpairs * column, axis=1), np.sum(dg, axis=1)
    dunits, taken, kept = dbelow * scale * eps, [], []
    dunit, dm = dm[0] - np.sum(last * dlast), dkeep[:1]
    by_state = keep + np.concatenate([m, units[:-1]]) >= i
    for t in reversed(range(len(q))):
        dunit = dunit + dunits[t]
        kept.append((dkeep[t] + by_state[t] * dunit)[None])
        taken.append((di[t] + (not by_state[t]) * dunit)[None])
        dunit = by_state[t] * dunit
    df = np.concatenate(kept[::-1]) * np.exp(log_forget(-f))
    return dq, dk, write[:, None] * dpairs[:, :-1], np.concatenate(taken[::-1]), df, dfirst[:, :-1], dfirst[:, -1], dm + dunit


def margins(q, k, v, i, f, C, n, m):
    """How far the larger is from the smaller wherever one of two is taken."""
    write, g, units = by_doubling(i, f, m)
    total, _ = simple_gla.chunked(q, k, write[:, None], g, n[:, None], 32)
    *_, total, least, _ = quotient(total, units, 0.0)
    return np.concatenate([total - least, log_forget(f) + np.concatenate([m, units[:-1]]) - i])


@few
@given(inputs.seeds, st.sampled_from(["mild", "quiet", "high"]), st.sampled_from([1, 5, 18]))
def test_the_adjoint_is_the_slope_of_the_definition(seed, regime, T):
    """By complex steps along random directions, through the definition with every choice made by real parts."""
    case, (do, dC, dn, dm) = real(seed, regime, T, "float64", 3, 2)
    larger, rng = lambda a, b: a if a.real >= b.real else b, np.random.default_rng(seed)

    def loss(q, k, v, i, f, C, n, m):
        m, total = m[0], 0
        for t in range(T):
            keep = -np.log1p(np.exp(-f[t]))
            unit = larger(keep + m, i[t])
            C, n = (np.exp(keep + m - unit) * old + np.exp(i[t] - unit) * new for old, new in ((C, np.outer(k[t], v[t])), (n, k[t])))
            m, below = unit, q[t] @ n
            total = total + q[t] @ C / (larger(below * np.sign(below.real), np.exp(-m)) + 0.5) @ do[t]
        return total + np.sum(C * dC) + np.sum(n * dn) + m * dm[0]

    for n, gradient in enumerate(bounded(adjoint, *case, do, dC, dn, dm, 0.5, precision=Precision("float64", "float64"))):
        ways = rng.standard_normal((5, *case[n].shape))
        slopes = [loss(*(x + 1e-100j * way if m == n else x for m, x in enumerate(case))).imag / 1e-100 for way in ways]
        agree(np.array(slopes), np.stack([np.sum(gradient * way) for way in ways]), NAMES[n])


@few
@given(inputs.seeds, st.sampled_from(["mild", "quiet", "high"]), st.lists(st.sampled_from([1, 5, 17, 35]), min_size=1, max_size=2))
@example(0, "mild", [17, 35])
def test_gradients_agree_with_the_adjoint(fast, seed, regime, lengths):
    """Of packed sequences, the state included: each as if alone; where no choice between two is as close as its rounding."""
    parts = [real(seed + n, regime, T, "float32") for n, T in enumerate(lengths)]
    for case, _ in parts:
        margin = bounded(margins, *case, precision=contract("float32"))
        assume(np.all(np.abs(margin.value) > margin.error))
    edges = np.concatenate([[0], np.cumsum(lengths)])
    each = [tensors(*case) for case, _ in parts]
    leaves = [torch.cat(column, 1 if n < 5 else 0).requires_grad_() for n, column in enumerate(zip(*each))]
    o, state = fast.chunked(*leaves[:5], 0.5, tuple(leaves[5:]), 32, cu_seqlens=inputs.tensor(edges, "int64"))
    upstream = [tensors(*case[:2], do, *case[3:5], *dstate)[2:3] + tensors(*case[:5], *dstate)[5:] for case, (do, *dstate) in parts]
    upstream = [torch.cat(column, 0 if n else 1) for n, column in enumerate(zip(*upstream))]
    gradients = torch.autograd.grad((o, *state), leaves, upstream)
    for n, (case, dcase) in enumerate(parts):
        for name, actual, bound in zip(NAMES, gradients, bounded(adjoint, *case, *dcase, 0.5, precision=contract("float32")), strict=True):
            one = actual[0, edges[n] : edges[n + 1], 0] if name in "qkvif" else actual[n] if name == "m" else actual[n, 0]
            agree(one, bound, f"d {name}")


def test_at_the_kink_a_gradient_lies_between_both_sides(fast):
    """|q·n| = e^-m: the slope is that of a mean if the sum of weights is larger, and of a sum if it is smaller."""
    q, k, v, i = (torch.tensor([[[[x]]]], device=inputs.target.device()).requires_grad_() for x in (1.0, 1.0, 8.0, 0.0))
    gates = i[..., 0], torch.full((1, 1, 1), 100.0, device=i.device)
    (dq,) = torch.autograd.grad(fast.chunked(q, k, v, *gates, 0.0)[0].sum(), q)
    assert 0.0 <= dq.item() <= 8.0


@pytest.mark.parametrize("i", [-np.inf, -100.0, 100.0])
def test_gradients_stay_finite_at_the_ends_of_the_range(fast, i):
    """Weights that a float32 cannot hold, or none for a while, or for ever; what writes nothing gets no gradient."""
    (q, k, v, _, f, *_), _ = real(0, "mild", 9, "float32")
    for where in (slice(None), slice(0, 4), slice(3, 6)):
        weight = np.zeros(9)
        weight[where] = i
        leaves = [x.requires_grad_() for x in tensors(q, k, v, weight, f)]
        o, state = fast.chunked(*leaves)
        gradients = torch.autograd.grad(o.square().sum() + sum(x.square().sum() for x in state[:2]), leaves)
        assert all(torch.isfinite(x).all() for x in (o, *gradients))
        if i == -np.inf:
            exactly(gradients[2][0, :, 0][where], np.zeros_like(v[where]), "d v of what is not written")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 19]), min_size=1, max_size=3), st.booleans())
@example(0, [19, 5, 0, 19], True)
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths, continued):
    """Two value heads with gates of their own on one query and key head: quotients of whole numbers, rounded once; each as if alone."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    heads = [exact_tokens(rng, T, 5, 3) for _ in range(2)]
    rows = [np.stack([head[name] for head in (heads[:1] if name in "qk" else heads)], 1)[None] for name in "qkvif"]
    states = [[apart(exact_state(rng, 5, 3)) for _ in range(2)] for _ in lengths]
    edges = inputs.tensor(np.concatenate([[0], np.cumsum(lengths)]), "int32")
    S0 = tuple(inputs.tensor(np.array([[state[n] for state in row] for row in states]), "float32") for n in range(3)) if continued else None
    o, after = fast.chunked(*(inputs.tensor(x, "float32") for x in rows), 1.0, S0, 16, cu_seqlens=edges)
    for n, h in np.ndindex(len(lengths), 2):
        here = slice(int(edges[n]), int(edges[n + 1]))
        alone = [heads[0 if name in "qk" else h][name][here] for name in "qkvif"]
        with np.errstate(over="ignore"):
            output, state = mlstm.recurrent(*alone, 1.0, states[n][h] if continued else None)
        exactly(o[0, here, h], output.astype(np.float32), f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        for actual, expected, what in zip(after, state, ("cell", "normalizer", "unit"), strict=True):
            exactly(actual[n, h], expected, f"{what} of sequence {n}, head {h}, of lengths {lengths}")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"eps": -1.0}, ValueError, "eps must"), ({"chunk": 24}, ValueError, "chunk must"),
        ({"i": torch.zeros(1, 5, 1)}, ValueError, "i must"), ({"f": torch.zeros(1, 4, 2)}, ValueError, "f must"),
        ({"f": torch.zeros(1, 5, 2).int()}, TypeError, "f must"),
        ({"S0": (torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 4))}, ValueError, "S0 must"),
        ({"S0": (torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2))}, ValueError, "n must"),
        ({"S0": (torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 4), torch.zeros(2, 2))}, ValueError, "m must"),
        ({"S0": (torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 4), torch.zeros(1, 2).half())}, TypeError, "m must"),
        ({"cu_seqlens": torch.tensor([0, 3, 4])}, ValueError, "cu_seqlens must"),
        ({"cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, error, message):
    shapes = {"q": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3), "i": (1, 5, 2), "f": (1, 5, 2)}
    on_device = lambda x: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    arguments = {name: torch.ones(shape) for name, shape in shapes.items()} | wrong
    arguments = {name: tuple(map(on_device, x)) if isinstance(x, tuple) else on_device(x) for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.chunked(**arguments)
