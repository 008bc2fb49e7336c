"""sLSTM on real values, within derived bounds: outputs, states and gradients; packing and heads; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.test_slstm import exact_state, exact_tokens, weights
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import slstm
from twofold.spec.linear_attention.hgrn import log_forget

exact64 = Precision("float64", "float64")
NAMES = ("z", "i", "f", "o", "R", "c", "n", "h", "m")
GATES = {"mild": lambda i: i, "loud": lambda i: 100 * np.sign(i)}  # input gates, in a float32 and beyond it
formats = st.sampled_from(["float32", "bfloat16", "float16"])


def real(seed, regime, T, dtype, D=7):
    """z, i, f, o, R, c, n, h, m; d outputs and d state. R is small enough that a rounding does not grow from token to token."""
    rng = np.random.default_rng(seed)
    z, i, f, o, do = rng.standard_normal((5, T, D))
    z, i, f, o, do = (inputs.rounded(x, dtype) for x in (z, GATES[regime](i), f + 2, o, do))
    R = rng.standard_normal((4, D, D)) / 16
    state = rng.standard_normal(D), np.exp(rng.standard_normal(D)), rng.standard_normal(D) / 2, rng.standard_normal(D)
    small = [inputs.rounded(x, "float32") for x in (R, *state, *rng.standard_normal((4, D)))]
    return (z, i, f, o, *small[:5]), (do, *small[5:])


def tensors(*case, dtype="float32"):
    """One sequence, one head."""
    rows = [inputs.tensor(x[None, :, None], dtype) for x in case[:4]]
    return *rows, inputs.tensor(case[4][None], "float32"), *(inputs.tensor(x[None, None], "float32") for x in case[5:])


def flat(text):
    """A form of the spec as a function that returns one tuple."""

    def run(*a):
        h, state = text(*a)
        return h, *state

    return run


@few
@given(inputs.seeds, st.sampled_from(sorted(GATES)), st.sampled_from([1, 5, 9]), formats, st.booleans(), st.booleans())
@example(0, "mild", 9, "float32", False, True)
@example(1, "mild", 9, "bfloat16", True, True)
def test_outputs_and_state_agree_with_the_definition(fast, seed, regime, T, dtype, exp_forget, continued):
    case, _ = real(seed, regime, T, dtype)
    if not continued:
        case = *case[:5], 0 * case[5], 0 * case[6], 0 * case[7], np.full_like(case[8], -np.inf)
    given_ = tensors(*case, dtype=dtype)
    h, state = fast.recurrent(*given_[:5], exp_forget, given_[5:] if continued else None)
    text = flat(lambda *a: slstm.recurrent(*a[:5], exp_forget, a[5:]))
    expected = bounded(text, *case, precision=Precision(dtype, operand="float32"), outputs=(dtype, *("float32",) * 4))
    for actual, bound, what in zip((h[0, :, 0], *(x[0, 0] for x in state)), expected, ("output", *NAMES[5:]), strict=True):
        agree(actual, bound, what)


def adjoint(z, i, f, o, R, c, n, h, m, dy, dc, dn, dh, dm, exp_forget):
    """Last token first. Outputs do not know their unit; the final state does, and the unit's gradient goes to the term that was larger."""
    kept_rows, margins = [], []
    for t in range(len(z)):
        a, b, g, e = (x[t] + h @ R[j] for j, x in enumerate((z, i, f, o)))
        keep = g if exp_forget else log_forget(g)
        unit, old = np.maximum(keep + m, b), keep + m - b
        kept, added = np.exp(keep + m - unit), np.exp(b - unit)
        fc, fn = kept * c + added * np.tanh(a), kept * n + added
        fh = np.exp(log_forget(e)) * (fc / fn)
        kept_rows.append((a, g, e, kept, added, c, n, h, fc, fn, old > 0))
        margins.append(old[None])
        c, n, h, m = fc, fn, fh, unit
    dunit, dR, rows = dm - (c * dc + n * dn), np.zeros_like(R), []
    dfirst = 0 * dm
    for t in reversed(range(len(z))):
        a, g, e, kept, added, c0, n0, h0, c1, n1, by_state = kept_rows[t]
        dh, gate, candidate = dh + dy[t], np.exp(log_forget(e)), np.tanh(a)
        dc, dn = dc + dh * gate / n1, dn - dh * gate * (c1 / n1) / n1
        dkeep = kept * (dc * c0 + dn * n0)
        dfirst = dkeep
        dkeep, din = dkeep + np.where(by_state, dunit, 0.0), added * (dc * candidate + dn) + np.where(by_state, 0.0, dunit)
        dunit = np.where(by_state, dunit, 0.0)
        dforget = dkeep if exp_forget else dkeep * np.exp(log_forget(-g))
        parts = dc * added * (1 - candidate * candidate), din, dforget, dh * (c1 / n1) * gate * np.exp(log_forget(-e))
        rows.append(np.stack(parts)[:, None])
        dR = dR + np.stack([np.outer(h0, part) for part in parts])
        dh = sum((part @ R[j].T for j, part in enumerate(parts)), 0 * dh)
        dc, dn = kept * dc, kept * dn
    dtokens = np.concatenate(rows[::-1], axis=1)
    return *(dtokens[j] for j in range(4)), dR, dc, dn, dh, dunit + dfirst, np.concatenate(margins)


@few
@given(inputs.seeds, st.sampled_from([1, 4, 7]), st.booleans())
def test_the_adjoint_is_the_slope_of_the_definition(seed, T, exp_forget):
    """By complex steps along random directions, through the definition with every choice made by real parts."""
    case, (dy, *dstate) = real(seed, "mild", T, "float64", 3)
    larger, rng = lambda a, b: np.where(a.real >= b.real, a, b), np.random.default_rng(seed)

    def loss(z, i, f, o, R, c, n, h, m):
        total = 0
        for t in range(T):
            a, b, g, e = (x[t] + h @ R[j] for j, x in enumerate((z, i, f, o)))
            keep = g if exp_forget else -np.log1p(np.exp(-g))
            unit = larger(keep + m, b)
            c, n = (np.exp(keep + m - unit) * old + np.exp(b - unit) * new for old, new in ((c, np.tanh(a)), (n, 1)))
            m, h = unit, c / n / (1 + np.exp(-e))
            total = total + np.sum(h * dy[t])
        return total + sum(np.sum(x * d) for x, d in zip((c, n, h, m), dstate, strict=True))

    gradients = bounded(lambda *a: adjoint(*a, exp_forget)[:-1], *case, dy, *dstate, precision=exact64)
    for n, gradient in enumerate(gradients):
        ways = rng.standard_normal((5, *case[n].shape))
        slopes = [loss(*(x + 1e-100j * way if m == n else x for m, x in enumerate(case))).imag / 1e-100 for way in ways]
        agree(np.array(slopes), np.stack([np.sum(gradient * way) for way in ways]), NAMES[n])


@few
@given(inputs.seeds, st.sampled_from(sorted(GATES)), st.sampled_from([1, 5, 9]), st.booleans())
@example(0, "mild", 9, False)
def test_gradients_agree_with_the_adjoint(fast, seed, regime, T, exp_forget):
    """The state included, where no choice between two is as close as its rounding."""
    case, dcase = real(seed, regime, T, "float32")
    *expected, margin = bounded(lambda *a: adjoint(*a, exp_forget), *case, *dcase, precision=Precision("float32"))
    assume(np.all(np.abs(margin.value) > margin.error))
    leaves = [x.requires_grad_() for x in tensors(*case)]
    h, state = fast.recurrent(*leaves[:5], exp_forget, tuple(leaves[5:]))
    upstream = inputs.tensor(dcase[0][None, :, None], "float32"), *(inputs.tensor(x[None, None], "float32") for x in dcase[1:])
    gradients = torch.autograd.grad((h, *state), leaves, upstream)
    for name, actual, bound in zip(NAMES, gradients, expected, strict=True):
        agree(actual[0, :, 0] if name in "zifo" else actual[0] if name == "R" else actual[0, 0], bound, f"d {name}")


def test_gradients_stay_finite_from_the_start(fast):
    """A unit of -inf, and input gates that a float32 cannot hold the weight of."""
    for size in (1.0, 100.0, -100.0):
        case, _ = real(0, "mild", 5, "float32")
        leaves = [x.requires_grad_() for x in tensors(case[0], case[1] + size, *case[2:])[:5]]
        h, state = fast.recurrent(*leaves)
        gradients = torch.autograd.grad(h.square().sum() + sum(x.square().sum() for x in state), leaves)
        assert all(torch.isfinite(x).all() for x in (h, *gradients))


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 9]), min_size=1, max_size=3), st.booleans())
@example(0, [9, 0, 5], True)
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths, continued):
    """Two heads with weights of their own, several sequences: quotients of whole numbers, rounded once; each as if alone."""
    rng, T, D = np.random.default_rng(seed), sum(lengths), 5
    heads, R = [exact_tokens(rng, T, 1, D) for _ in range(2)], [weights(D), weights(D)[[0, 1, 2, 0]]]
    states = np.stack([[exact_state(rng, 1, D) for _ in range(2)] for _ in lengths])
    rows = [inputs.tensor(np.stack([head[name] for head in heads], 1)[None], "float32") for name in "vifo"]
    S0 = tuple(inputs.tensor(states[:, :, j], "float32") for j in range(4)) if continued else None
    edges = np.concatenate([[0], np.cumsum(lengths)])
    options = {"S0": S0, "cu_seqlens": inputs.tensor(edges, "int32")}
    o, after = fast.recurrent(*rows, inputs.tensor(np.stack(R), "float32"), **options)
    for n, head in np.ndindex(len(lengths), 2):
        here = slice(edges[n], edges[n + 1])
        alone = [heads[head][name][here] for name in "vifo"]
        output, state = slstm.recurrent(*alone, R[head], S0=tuple(states[n, head]) if continued else None)
        exactly(o[0, here, head], output.astype(np.float32), f"outputs of sequence {n}, head {head}, of lengths {lengths}")
        for actual, expected, what in zip(after, state, NAMES[5:], strict=True):
            exactly(actual[n, head], expected.astype(np.float32), f"{what} of sequence {n}, head {head}, of lengths {lengths}")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"i": torch.zeros(1, 5, 2, 3)}, ValueError, "i must"), ({"R": torch.zeros(2, 3, 4, 4)}, ValueError, "R must"),
        ({"R": torch.zeros(4, 4, 4)}, ValueError, "R must"), ({"z": torch.zeros(1, 5, 2, 4).int()}, TypeError, "z must"),
        ({"S0": (torch.zeros(1, 2, 4),) * 3}, ValueError, "S0 must"), ({"cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"S0": (*(torch.zeros(1, 2, 4),) * 3, torch.zeros(1, 2, 3))}, ValueError, "m must"),
        ({"S0": (torch.zeros(1, 2, 4).half(), *(torch.zeros(1, 2, 4),) * 3)}, TypeError, "c must"),
        ({"cu_seqlens": torch.tensor([0.0, 5.0])}, TypeError, "cu_seqlens must"),
    ],
)  # fmt: skip
def test_bad_input_is_named(fast, wrong, error, message):
    on_device = lambda x: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x
    arguments = {name: torch.ones(1, 5, 2, 4) for name in "zifo"} | {"R": torch.ones(2, 4, 4, 4)} | wrong
    arguments = {name: tuple(map(on_device, x)) if isinstance(x, tuple) else on_device(x) for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.recurrent(**arguments)
