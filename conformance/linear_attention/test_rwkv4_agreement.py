"""RWKV-4 on real values, within derived bounds: gates, outputs, states and gradients; packing and rows; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.test_rwkv4 import channels, exact_state, exact_tokens
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import hgrn, rwkv4

exact64 = Precision("float64", "float64")
NAMES = ("k", "v", "w", "u", "p", "q", "o")
KEYS = {  # mild; weights that a float32 cannot hold, alone or all of them
    "mild": lambda rng, shape: 2 * rng.standard_normal(shape),
    "wild": lambda rng, shape: rng.choice([-80.0, 0.0, 80.0], shape),
    "low": lambda rng, shape: rng.standard_normal(shape) - 120,
}
regimes = st.sampled_from(sorted(KEYS))
formats = st.sampled_from(["float32", "bfloat16", "float16"])


def real(seed, regime, T, dtype, D=70):
    """k, v, w, u, p, q, o; d outputs and d state. Some channels hardly fade, some at once."""
    rng = np.random.default_rng(seed)
    v, do = inputs.values("normal", [(T, D), (T, D)], seed, dtype)
    k = inputs.rounded(KEYS[regime](rng, (T, D)), dtype)
    w = np.where(rng.random(D) < 0.2, 20.0, np.exp(2 * rng.standard_normal(D) - 2))
    state = rng.standard_normal(D), np.exp(rng.standard_normal(D)), KEYS[regime](rng, D)
    dstate = rng.standard_normal((3, D))
    return (k, v, *(inputs.rounded(x, "float32") for x in (w, rng.standard_normal(D), *state))), (
        do,
        *(inputs.rounded(x, "float32") for x in dstate),
    )


def tensors(k, v, w, u, *state, dtype="float32"):
    return (
        *(inputs.tensor(x[None], dtype) for x in (k, v)),
        *(inputs.tensor(x, "float32") for x in (w, u)),
        *(inputs.tensor(x[None], "float32") for x in state),
    )


def by_doubling(k, w, o):
    """`rwkv4.gates` in log2(T) rounds."""
    units, decay, reach = np.concatenate([np.maximum(o[None] - w, k[:1]), k[1:]]), -w + np.zeros_like(k), 1
    while reach < len(k):
        units = np.concatenate([units[:reach], np.maximum(units[:-reach] + decay[reach:], units[reach:])])
        decay = np.concatenate([decay[:reach], decay[:-reach] + decay[reach:]])
        reach *= 2
    return np.exp(k - units), np.minimum(np.concatenate([o[None], units[:-1]]) - w - units, 0.0), units


def of_both(write, g, v, p, q, chunk):
    """Both sums by a scan, before every token and at the end."""
    rows, decays, first = (np.concatenate(pair, axis=-1) for pair in ((write * v, write), (g, g), (p, q)))
    sums, last = hgrn.scan(rows, decays, first, chunk)
    return np.concatenate([first[None], sums])[:-1], last


def in_one_scan(k, v, w, u, p, q, o, chunk):
    write, g, units = by_doubling(k, w, o)
    found, last = of_both(write, g, v, p, q, chunk)
    D, before, own = len(w), np.concatenate([o[None], units[:-1]]), u + k
    kept, added = np.exp(before - np.maximum(before, own)), np.exp(own - np.maximum(before, own))
    return (kept * found[:, :D] + added * v) / (kept * found[:, D:] + added), last[:D], last[D:], units[-1]


@few
@given(inputs.seeds, regimes, st.sampled_from([1, 17, 35]), formats, st.sampled_from([64, 16]), st.booleans())
@example(0, "mild", 35, "float32", 64, True)
@example(1, "wild", 35, "bfloat16", 16, True)
def test_outputs_and_state_agree_with_the_definition(fast, seed, regime, T, dtype, chunk, continued):
    case, _ = real(seed, regime, T, dtype)
    if not continued:
        case = *case[:4], 0 * case[4], 0 * case[5], np.full_like(case[6], -np.inf)
    *rows, p, q, o = tensors(*case, dtype=dtype)
    y, state = fast.scan(*rows, (p, q, o) if continued else None, chunk)
    expected = bounded(in_one_scan, *case, chunk, precision=Precision(dtype), outputs=(dtype, "float32", "float32", "float32"))
    output, after = rwkv4.recurrent(*case[:4], case[4:])
    for actual, bound, value, what in zip((y, *state), expected, (output, *after), ("output", *NAMES[4:]), strict=True):
        bound.value = value
        agree(actual[0], bound, what)


@few
@given(inputs.seeds, regimes, st.sampled_from([1, 17, 35]))
def test_gates_agree_with_the_definition(fast, seed, regime, T):
    (k, _, w, *_, o), _ = real(seed, regime, T, "float32")
    actual = fast.gates(inputs.tensor(k[None], "float32"), inputs.tensor(w, "float32"), inputs.tensor(o[None], "float32"))
    expected = bounded(by_doubling, k, w, o, precision=Precision("float32"))
    for one, bound, value, what in zip(actual, expected, rwkv4.gates(k, w, o), ("write", "log-decay", "unit"), strict=True):
        bound.value = value
        agree(one[0], bound, what)
    assert actual[0].max() <= 1 and actual[1].max() <= 0


def adjoint(k, v, w, u, p, q, o, dy, dp, dq, do):
    """What is read is a quotient, in which a unit cancels; a state is divided by its unit, whose gradient goes to the largest term."""
    write, g, units = by_doubling(k, w, o)
    found, last = of_both(write, g, v, p, q, 64)
    D, before, own = len(w), np.concatenate([o[None], units[:-1]]), u + k
    kept, added = np.exp(before - np.maximum(before, own)), np.exp(own - np.maximum(before, own))
    below = kept * found[:, D:] + added
    dabove = dy / below
    dbelow = -dabove * ((kept * found[:, :D] + added * v) / below)
    down = added * (dabove * v + dbelow)
    dfound = np.concatenate([kept * dabove, kept * dbelow], axis=1)
    first, dlast = np.concatenate([p, q]), np.concatenate([dp, dq])
    dsums = np.concatenate([dfound[1:], np.zeros_like(dfound[:1])])
    rows, decays = np.concatenate([write * v, write], axis=1), np.concatenate([g, g], axis=1)
    drows, dg, dfirst = hgrn.backward(rows, decays, dsums, dlast, first)
    dg = dg[:, :D] + dg[:, D:]
    dk, dfirst = down + write * (drows[:, :D] * v + drows[:, D:]), dfirst + dfound[0]
    dv = write * drows[:, :D] + added * dabove
    unit, dw, rows = do - (last[:D] * dp + last[D:] * dq), -np.sum(dg, axis=0), []
    by_state = before - w >= k
    for t in reversed(range(len(k))):
        rows.append((dk[t] + np.where(by_state[t], 0.0, unit))[None])
        unit = np.where(by_state[t], unit, 0.0)
        dw = dw - unit
    d_o = unit + dg[0] + kept[0] * (dabove[0] * p + dbelow[0] * q)
    return np.concatenate(rows[::-1]), dv, dw, np.sum(down, axis=0), dfirst[:D], dfirst[D:], d_o


@few
@given(inputs.seeds, st.sampled_from(["mild", "low"]), st.sampled_from([1, 5, 18]))
def test_the_adjoint_is_the_slope_of_the_definition(seed, regime, T):
    """By complex steps along random directions, through the definition with every choice made by real parts."""
    case, (dy, *dstate) = real(seed, regime, T, "float64", 3)
    larger, rng = lambda a, b: np.where(a.real >= b.real, a, b), np.random.default_rng(seed)

    def loss(k, v, w, u, p, q, o):
        total = 0
        for t in range(T):
            unit = larger(o, u + k[t])
            kept, added = np.exp(o - unit), np.exp(u + k[t] - unit)
            total = total + np.sum((kept * p + added * v[t]) / (kept * q + added) * dy[t])
            unit = larger(o - w, k[t])
            kept, added = np.exp(o - w - unit), np.exp(k[t] - unit)
            p, q, o = kept * p + added * v[t], kept * q + added, unit
        return total + sum(np.sum(x * d) for x, d in zip((p, q, o), dstate, strict=True))

    for n, gradient in enumerate(bounded(adjoint, *case, dy, *dstate, precision=exact64)):
        ways = rng.standard_normal((5, *case[n].shape))
        slopes = [loss(*(x + 1e-100j * way if m == n else x for m, x in enumerate(case))).imag / 1e-100 for way in ways]
        agree(np.array(slopes), np.stack([np.sum(gradient * way) for way in ways]), NAMES[n])


@few
@given(inputs.seeds, st.sampled_from(["mild", "low"]), st.lists(st.sampled_from([1, 5, 17, 35]), min_size=1, max_size=2))
@example(0, "mild", [17, 35])
def test_gradients_agree_with_the_adjoint(fast, seed, regime, lengths):
    """Of packed sequences, the state included: each as if alone; those of decays and bonuses add up over them."""
    parts = [real(seed, regime, T, "float32") for T in lengths]
    w, u = parts[0][0][2:4]
    margin = lambda k, w, o: np.concatenate([o[None], by_doubling(k, w, o)[2][:-1]]) - w - k
    cases = [(*case[:2], w, u, *(x + n for x in case[4:])) for n, (case, _) in enumerate(parts)]
    for k, *_, o in cases:
        close = bounded(margin, k, w, o, precision=Precision("float32"))
        assume(np.all(np.abs(close.value) > close.error))
    each = [tensors(*case) for case in cases]
    leaves = [column[0] if n in (2, 3) else torch.cat(column, 1 if n < 2 else 0) for n, column in enumerate(zip(*each))]
    leaves = [x.requires_grad_() for x in leaves]
    edges = np.concatenate([[0], np.cumsum(lengths)])
    y, state = fast.scan(*leaves[:4], tuple(leaves[4:]), 64, cu_seqlens=inputs.tensor(edges, "int64"))
    upstream = [np.concatenate([d[0] for _, d in parts])[None], *(np.stack([d[n] for _, d in parts]) for n in (1, 2, 3))]
    gradients = torch.autograd.grad((y, *state), leaves, [inputs.tensor(x, "float32") for x in upstream])
    expected = [bounded(adjoint, *case, *d, precision=Precision("float32")) for case, (_, d) in zip(cases, parts)]
    for m, (name, actual) in enumerate(zip(NAMES, gradients, strict=True)):
        if name in "wu":
            agree(actual, sum((x[m] for x in expected[1:]), expected[0][m]), f"d {name}")
        else:
            for n, bounds in enumerate(expected):
                agree(actual[0, edges[n] : edges[n + 1]] if name in "kv" else actual[n], bounds[m], f"d {name}")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 16, 35]), min_size=1, max_size=4), st.sampled_from([64, 16]), st.booleans())
@example(0, [19, 5, 0, 35], 16, True)
def test_packed_sequences_are_sequences(fast, seed, lengths, chunk, continued):
    """Boundaries inside a chunk, empty sequences that return their own state: each as if alone."""
    rng, (w, u) = np.random.default_rng(seed), channels(130)
    parts = [exact_tokens(rng, T, 1, 130) for T in lengths]
    states = [exact_state(rng, 1, 130) for _ in lengths]
    k, v = (np.concatenate([part[name] for part in parts])[None] for name in "kv")
    S0 = tuple(inputs.tensor(x, "float32") for x in np.stack(states, 1)) if continued else None
    edges = np.concatenate([[0], np.cumsum(lengths)])
    y, after = fast.scan(*(inputs.tensor(x, "float32") for x in (k, v, w, u)), S0, chunk, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, part in enumerate(parts):
        output, state = rwkv4.recurrent(part["k"], part["v"], w, u, tuple(states[n]) if continued else None)
        exactly(y[0, edges[n] : edges[n + 1]], output.astype(np.float32), f"outputs of sequence {n} of lengths {lengths}")
        for actual, expected, what in zip(after, state, NAMES[4:], strict=True):
            exactly(actual[n], expected, f"{what} of sequence {n} of lengths {lengths}")


@few
@given(inputs.seeds, inputs.layouts)
def test_rows_do_not_meet(fast, seed, layout):
    """Three sequences side by side, however they lie in memory: each as if alone."""
    rng, (w, u) = np.random.default_rng(seed), channels(5)
    rows, states = [exact_tokens(rng, 19, 1, 5) for _ in range(3)], [exact_state(rng, 1, 5) for _ in range(3)]
    k, v = (inputs.tensor(np.stack([row[name] for row in rows]), "float32", layout) for name in "kv")
    S0 = tuple(inputs.tensor(x, "float32") for x in np.stack(states, 1))
    y, after = fast.scan(k, v, inputs.tensor(w, "float32"), inputs.tensor(u, "float32"), S0)
    for n, row in enumerate(rows):
        output, state = rwkv4.recurrent(row["k"], row["v"], w, u, tuple(states[n]))
        exactly(y[n], output.astype(np.float32), f"outputs of row {n}")
        for actual, expected, what in zip(after, state, NAMES[4:], strict=True):
            exactly(actual[n], expected, f"{what} of row {n}")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"k": torch.zeros(1, 5, 3)}, ValueError, "k must"), ({"w": torch.zeros(3)}, ValueError, "w must"),
        ({"u": torch.zeros(1, 4)}, ValueError, "u must"), ({"v": torch.zeros(1, 5, 4).int()}, TypeError, "v must"),
        ({"w": torch.ones(4).int()}, TypeError, "w must"), ({"S0": (torch.zeros(1, 4),) * 2}, ValueError, "S0 must"),
        ({"S0": (torch.zeros(1, 4), torch.zeros(1, 3), torch.zeros(1, 4))}, ValueError, "q must"),
        ({"S0": (torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 4).half())}, TypeError, "o must"),
        ({"chunk": 0}, ValueError, "chunk must"), ({"cu_seqlens": torch.tensor([0, 3, 4])}, ValueError, "cu_seqlens must"),
        ({"cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, error, message):
    on_device = lambda x: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    arguments = {"k": torch.ones(1, 5, 4), "v": torch.ones(1, 5, 4), "w": torch.ones(4), "u": torch.ones(4)} | wrong
    arguments = {name: tuple(map(on_device, x)) if isinstance(x, tuple) else on_device(x) for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.scan(**arguments)


def test_it_compiles(fast):
    """In one graph, packed sequences among it, with the eager results bit for bit."""
    k, v, w, u, *_ = tensors(*real(0, "mild", 19, "float32")[0])
    edges = inputs.tensor(np.array([0, 5, 5, 19]))
    for form in (lambda k, v: fast.scan(k, v, w, u), lambda k, v: fast.scan(k, v, w, u, cu_seqlens=edges)):
        eager, compiled = form(k, v), torch.compile(form, fullgraph=True, backend="aot_eager")(k, v)
        for one, two in zip((compiled[0], *compiled[1]), (eager[0], *eager[1]), strict=True):
            exactly(one, two, "compiled")
