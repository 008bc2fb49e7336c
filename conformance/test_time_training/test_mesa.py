"""MesaNet: what it answers is the least-squares solution, by a solver that knows nothing of it; conjugate gradients get there."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine
from twofold.spec.test_time_training import mesa

lengths = st.sampled_from([0, 1, 2, 15, 17, 35])


def problem(seed, T, K=4, V=3, lam=(0.5, 2.0)):
    """Weights up to 1, decays that keep at least a half or nothing, a ridge between 0.5 and 2."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((T, K)), rng.standard_normal((T, K)), rng.standard_normal((T, V))
    g = np.where(rng.random(T) < 0.1, -np.inf, -rng.uniform(0, 0.7, T))
    factor = rng.standard_normal((K, K))
    beta = rng.uniform(0, 1, T) * (rng.random(T) < 0.9)
    return (q, k, v, g, beta, rng.uniform(*lam, K)), (factor @ factor.T, rng.standard_normal((K, V)))


def on_fast(form, arguments, S0, dtype="float64", **options):
    *tokens, lam = arguments
    place = lambda x: inputs.tensor(x, dtype)
    state = None if S0 is None else tuple(place(x[None, None]) for x in S0)
    output, state = form(*(place(x[None, :, None]) for x in tokens), place(lam[None]), state, **options)
    return inputs.array(output)[0, :, 0], tuple(inputs.array(x)[0, 0] for x in state)


def near(actual, arguments, S0, what, unit=2.0**-53):
    """Within what rounding explains of the definition: sums of T terms, then a backward-stable solution, whose error the condition bounds.

    A solver of K equations that perturbs its matrix by n units moves x by n units times the condition times its size; n = 8 (T + K).
    """
    q, k, v, g, beta, lam = arguments
    expected = mesa.recurrent(*arguments, S0)
    roundings = 8 * (len(q) + len(lam)) * unit
    state, sums, limits = S0, tuple(map(np.abs, S0)), [np.zeros((0, v.shape[1]))]
    for t in range(len(q)):
        _, state = mesa.step(state, q[t], k[t], v[t], g[t], beta[t], lam)
        _, sums = mesa.step(sums, q[t], np.abs(k[t]), np.abs(v[t]), g[t], beta[t], lam)  # what roundings are relative to
        values = np.linalg.eigvalsh(state[0] + np.diag(lam))
        x = np.linalg.norm(np.linalg.solve(state[0] + np.diag(lam), q[t]))
        limits.append((np.linalg.norm(sums[0] + np.diag(lam)) / values[0] * x * np.linalg.norm(sums[1], axis=0))[None])
    for name, a, e, limit in zip(("outputs", "H", "R"), flat(actual), flat(expected), (np.concatenate(limits), *sums), strict=True):
        assert a.shape == e.shape
        assert np.all(np.abs(a - e) <= roundings * limit + 1e-300), f"{name}, {what}"


def flat(result):
    return result[0], *result[1]


@given(inputs.seeds, st.integers(1, 9))
def test_answers_are_those_of_the_best_memory(seed, T):
    """Least squares over rows sqrt(weight) k and one row per channel for the ridge, solved from a decomposition of that tall matrix."""
    (q, k, v, g, beta, lam), _ = problem(seed, T)
    answers = []
    for t in range(T):
        since = np.array([np.exp(g[i + 1 : t + 1].sum()) for i in range(t + 1)])
        root = np.sqrt(beta[: t + 1] * since)[:, None]
        rows, wanted = np.concatenate([root * k[: t + 1], np.diag(np.sqrt(lam))]), np.concatenate([root * v[: t + 1], np.zeros((4, 3))])
        memory = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        answers.append(q[t] @ memory)
    arguments, zero = (q, k, v, g, beta, lam), (np.zeros((4, 4)), np.zeros((4, 3)))
    near((np.stack(answers), mesa.recurrent(*arguments)[1]), arguments, zero, "least squares")


@given(inputs.seeds, lengths, st.sampled_from([1, 2, 7, 16, 64]))
@example(0, 35, 16)
def test_conjugate_gradients_end_at_the_solution(fast, seed, T, chunk):
    """As many steps as equations are exact but for rounding; four more end what rounding left."""
    arguments, S0 = problem(seed, T)
    near(mesa.chunked_cg(*arguments, S0, chunk=chunk, iterations=8), arguments, S0, "spec")
    near(on_fast(fast.chunked_cg, arguments, S0, chunk=chunk, iterations=8), arguments, S0, "fast")
    near(on_fast(fast.recurrent, arguments, S0), arguments, S0, "recurrent")
    single = [inputs.rounded(x, "float32") for x in arguments], [inputs.rounded(x, "float32") for x in S0]
    near(on_fast(fast.chunked_cg, *single, "float32", chunk=chunk, iterations=8), *single, "float32", 2.0**-24)


@given(inputs.seeds, lengths, st.sampled_from([0, 1, 2]))
def test_before_the_end_spec_and_fast_are_equally_far(fast, seed, T, iterations):
    """An unfinished iteration is a definite number, too: the start, the step lengths and the directions are those of the definition.

    Every token writes, or its residual could be nothing but rounding, and the length of its next step anything.
    """
    (q, k, v, g, beta, lam), (H, R) = problem(seed, T)
    arguments, options = (q, k, v, g, np.maximum(beta, 0.25), lam), {"chunk": 16, "iterations": iterations}
    form = lambda *x: mesa.chunked_cg(*x[:6], x[6:], **options)[0]
    expected = bounded(form, *arguments, H, R, precision=Precision("float64", "float64"))
    assert np.all(expected.error <= 2.0**-30 * (1 + np.abs(expected.value))), "a bound that a step less would not pass"
    agree(on_fast(fast.chunked_cg, arguments, (H, R), **options)[0], expected, f"after {iterations} steps")


@given(inputs.seeds)
def test_a_diagonal_system_is_solved_by_its_start(seed):
    """One-hot keys and no step at all: the start divides by the diagonal, which is the whole matrix."""
    rng = np.random.default_rng(seed)
    k, q, v = np.eye(4)[rng.integers(0, 4, 9)], rng.integers(-3, 4, (9, 4)).astype(float), rng.integers(-3, 4, (9, 2)).astype(float)
    arguments = q, k, v, np.zeros(9), np.ones(9), np.ones(4)
    S0 = np.zeros((4, 4)), np.zeros((4, 2))
    near(mesa.chunked_cg(*arguments, chunk=4, iterations=0), arguments, S0, "no step")
    near(mesa.chunked_cg(*arguments, chunk=4, iterations=5), arguments, S0, "five steps from a residual of zero")


@given(inputs.seeds, lengths)
def test_a_heavy_ridge_leaves_a_linear_attention(seed, T):
    """With q times lam and lam beyond all sums, the memory is R / lam: decayed linear attention that writes beta k."""
    (q, k, v, g, beta, _), _ = problem(seed, T)
    lam = np.full(4, 2.0**40)
    o, _ = mesa.recurrent(q * lam, k, v, g, beta, lam)
    write, decay, H, R = beta[:, None] * k, g[:, None] * np.ones(4), np.zeros((4, 4)), np.zeros((4, 3))
    expected, _ = affine.recurrent(q, write, v, decay, 0 * k, 0 * k)
    sizes, _ = affine.recurrent(np.abs(q), np.abs(write), np.abs(v), decay, 0 * k, 0 * k)
    for t in range(T):
        _, (H, R) = mesa.step((H, R), q[t], k[t], v[t], g[t], beta[t], lam)
        left_out = np.linalg.norm(H, 2) / lam[0] * np.linalg.norm(q[t]) * np.linalg.norm(R, axis=0)  # lam / (lam + H) = 1 - H / (lam + H)
        assert np.all(np.abs(o[t] - expected[t]) <= left_out + 8 * (T + 4) * 2.0**-53 * sizes[t])


@given(inputs.seeds, lengths)
def test_both_sums_are_affine_recurrences_and_exact_on_integers(fast, seed, T):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.integers(-2, 3, (T, n)).astype(float) for n in (3, 3, 2))
    g, beta = np.where(rng.random(T) < 0.2, -np.inf, 0.0), rng.integers(0, 3, T).astype(float)
    S0 = np.eye(3), rng.integers(-2, 3, (3, 2)).astype(float)
    write, decay = beta[:, None] * k, g[:, None] * np.ones(3)
    wanted = [affine.recurrent(q, write, x, decay, 0 * k, 0 * k, s)[1] for x, s in zip((k, v), S0, strict=True)]
    for form, options in ((fast.recurrent, {}), (fast.chunked_cg, {"chunk": 7})):
        for actual, expected in zip(on_fast(form, (q, k, v, g, beta, np.ones(3)), S0, "float32", **options)[1], wanted, strict=True):
            exactly(actual, expected, form.__name__)
    for expected, mine in zip(wanted, mesa.recurrent(q, k, v, g, beta, np.ones(3), S0)[1], strict=True):
        exactly(mine, expected, "spec")
        assert len(mine) == 3
    assert np.all(np.linalg.eigvalsh(wanted[0]) >= -1e-9) and np.array_equal(wanted[0], wanted[0].T)


@given(inputs.seeds, st.integers(1, 20), st.data())
def test_runs_resume_steps_are_the_prefill_and_the_future_does_not_matter(fast, seed, T, data):
    arguments, S0 = problem(seed, T)
    *tokens, lam = arguments
    at = data.draw(st.integers(0, T))
    parts = [(*(x[where] for x in tokens), lam) for where in (slice(0, at), slice(at, None))]
    for form, options in ((fast.recurrent, {}), (fast.chunked_cg, {"chunk": 4, "iterations": 8})):
        first, state = on_fast(form, parts[0], S0, **options)
        second, state = on_fast(form, parts[1], state, **options)
        near((np.concatenate([first, second]), state), arguments, S0, f"resumed at {at}")
    others = problem(seed + 1, T)[0][:5]
    changed = (*(np.concatenate([x[:at], y[at:]]) for x, y in zip(tokens, others, strict=True)), lam)
    exactly(on_fast(fast.recurrent, changed, S0)[0][:at], on_fast(fast.recurrent, arguments, S0)[0][:at], "earlier outputs")
    state = tuple(inputs.tensor(x[None, None], "float64") for x in S0)
    outputs = []
    for t in range(T):
        token = (inputs.tensor(x[t][None, None], "float64") for x in tokens)
        output, state = fast.step(state, *token, inputs.tensor(lam[None], "float64"))
        outputs.append(inputs.array(output)[0, 0])
    near((np.stack(outputs), tuple(inputs.array(x)[0, 0] for x in state)), arguments, S0, "step by step")


@given(inputs.seeds, st.permutations([0, 1, 5, 17]))
def test_packed_sequences_are_sequences(fast, seed, sizes):
    parts = [problem(seed + n, size) for n, size in enumerate(sizes)]
    lam = parts[0][0][5]
    rows = [np.concatenate([part[0][i] for part in parts]) for i in range(5)]
    tensors = [inputs.tensor(x[None, :, None], "float64") for x in rows]
    S0 = tuple(inputs.tensor(np.stack([part[1][i] for part in parts])[:, None], "float64") for i in range(2))
    ends = torch.tensor([0, *np.cumsum(sizes)])
    for form, options in ((fast.recurrent, {}), (fast.chunked_cg, {"chunk": 4})):
        output, state = form(*tensors, inputs.tensor(lam[None], "float64"), S0, cu_seqlens=ends, **options)
        for n, (own, start) in enumerate(parts):
            got = inputs.array(output)[0, ends[n] : ends[n + 1], 0], tuple(inputs.array(x)[n, 0] for x in state)
            near(got, (*own[:5], lam), start, f"sequence {n}")


@pytest.mark.parametrize(("dtype", "layout"), [("float32", "transposed"), ("bfloat16", "contiguous"), ("float16", "sliced")])
def test_heads_and_sequences_do_not_meet_and_inputs_stay(fast, dtype, layout):
    """Each within its own bound, in two sequences of two heads; outputs are rounded to the dtype of v once."""
    q, k, v = inputs.values("normal", [(2, 9, 2, 4), (2, 9, 2, 4), (2, 9, 2, 3)], 0, dtype)
    rng = np.random.default_rng(0)
    rows = [inputs.rounded(rng.uniform(0, 1, (2, 9, 2)), "float32") for _ in range(2)]
    g, beta, lam = -rows[0], rows[1], inputs.rounded(rng.uniform(1, 2, (2, 4)), "float32")
    tensors = [inputs.tensor(x, dtype, layout) for x in (q, k, v)] + [inputs.tensor(x, "float32") for x in (g, beta, lam)]
    output, state = fast.chunked_cg(*tensors, chunk=4, iterations=8)
    assert output.dtype == tensors[2].dtype and state[0].dtype == torch.float32
    zero = np.zeros((4, 4)), np.zeros((4, 3))
    wide = fast.chunked_cg(*(x.float() for x in tensors), chunk=4, iterations=8)[0]
    exactly(output, wide.to(output.dtype), "one rounding")
    for b, h in np.ndindex(2, 2):
        got = inputs.array(wide[b, :, h]), tuple(inputs.array(x[b, h]) for x in state)
        near(got, (*(x[b, :, h] for x in (q, k, v, g, beta)), lam[h]), zero, f"sequence {b}, head {h}", 2.0**-24)
    for x, y in zip(tensors, (q, k, v, g, beta, lam), strict=True):
        exactly(x, y, "input")


def test_gradients_are_those_of_finite_differences(fast):
    arguments, S0 = problem(0, 5)
    arguments = [inputs.tensor(x[None, :, None] if i < 5 else x[None], "float64") for i, x in enumerate(arguments)]
    arguments[3] = arguments[3].clamp(min=-1)
    arguments = [x.requires_grad_() for x in (*arguments, *(inputs.tensor(x[None, None], "float64") for x in S0))]
    for form, options in ((fast.recurrent, {}), (fast.chunked_cg, {"chunk": 2, "iterations": 3})):
        run = lambda *x, f=form, o=options: (lambda y: (y[0], *y[1]))(f(*x[:6], x[6:], **o))
        assert torch.autograd.gradcheck(run, arguments)


@pytest.mark.parametrize(
    ("error", "name", "change"),
    [
        (ValueError, "g", {"g": torch.zeros(1, 5, 2, 4)}),
        (ValueError, "lam", {"lam": torch.ones(4)}),
        (ValueError, "iterations", {"iterations": -1}),
        (ValueError, "chunk", {"chunk": 0}),
        (ValueError, r"S0\[1\]", {"S0": (torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))}),
        (ValueError, "cu_seqlens", {"cu_seqlens": torch.tensor([1, 5])}),
    ],
)
def test_bad_input_is_named(fast, error, name, change):
    device = inputs.target.device()
    arguments = {"q": torch.zeros(1, 5, 2, 4), "k": torch.zeros(1, 5, 2, 4), "v": torch.zeros(1, 5, 2, 3)}
    arguments |= {"g": torch.zeros(1, 5, 2), "beta": torch.zeros(1, 5, 2), "lam": torch.ones(2, 4)} | change
    place = lambda x: tuple(map(place, x)) if isinstance(x, tuple) else x.to(device) if isinstance(x, torch.Tensor) else x
    with pytest.raises(error, match=name):
        fast.chunked_cg(**{name: place(x) for name, x in arguments.items()})
