"""S5: the laws of a causal recurrence, exactly, with decays of 1 and 0; it is a convolution, a bank of S4Ds, and a real recurrence."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import coincide, exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here: a model that is the same for all samples has no gate
    ACROSS,
    test_a_run_resumes_at_any_token,
    test_every_form_is_the_definition,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.conformance.state_space.test_s4d import back, complex_tensor
from twofold.spec.linear_attention import gla, hgrn
from twofold.spec.state_space import s4d, s5

FLOAT64 = Precision("float64", "float64")


def whole(rng, *shape):
    return rng.integers(-1, 2, shape) + 1j * rng.integers(-1, 2, shape)


def exact_model(N, H):
    """Lam, B, C, D, dt: oscillators of rate 0, which add, and of -1024, which forget at once and write 1/1024."""
    rng = np.random.default_rng(1000 * N + H)
    rate = np.where(rng.random(N) < 0.5, -1024.0, 0.0)
    return rate + 0j, whole(rng, N, H), whole(rng, H, N) * np.where(rate, 1024, 1), rng.integers(-2, 3, H) + 0.0, np.ones(N)


def with_model(form):
    """A form as the laws call it: its only tokens are the inputs."""
    return lambda tokens, S0: form(tokens["v"], *exact_model(len(S0), tokens["v"].shape[1]), S0)


def tokens_of(rng, T, K, V):
    return {"v": rng.integers(-2, 3, (T, V)).astype(float)}


def state_of(rng, K, V):
    return whole(rng, K)


def model_tensors(Lam, B, C, D, dt, dtype="float32"):
    pairs = [complex_tensor(x, "complex128" if dtype == "float64" else "complex64") for x in (Lam, B, C)]
    return *pairs, *(inputs.tensor(np.asarray(x), dtype) for x in (D, dt))


def on_tensors(form, **options):
    def run(u, Lam, B, C, D, dt, S0):
        y, state = form(inputs.tensor(u[None], "float32"), *model_tensors(Lam, B, C, D, dt), complex_tensor(S0[None]), **options)
        return back(y)[0], back(state)[0]

    return run


def of_spec():
    step = lambda state, token: s5.step(state, token["v"], *exact_model(len(state), len(token["v"])))
    return battery.Operation(with_model(s5.recurrent), {"scan": with_model(s5.scan)}, step, tokens_of, state_of)


def of_fast(fast):
    forms = {"scan": with_model(on_tensors(fast.scan)), "scan in 16": with_model(on_tensors(fast.scan, chunk=16))}
    forms |= {"recurrent": with_model(on_tensors(fast.recurrent))}

    def step(state, token):
        model = model_tensors(*exact_model(len(state), len(token["v"])))
        y, after = fast.step(complex_tensor(state[None]), inputs.tensor(token["v"][None], "float32"), *model)
        return back(y)[0], back(after)[0]

    return battery.Operation(with_model(s5.recurrent), forms, step, tokens_of, state_of)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "state_space.s5", of_spec, of_fast) as operation:
        yield operation


@pytest.mark.parametrize("T", [0, 1, 2, 17, 35])
def test_no_sample_one_and_several_chunks(operation, T):
    rng = np.random.default_rng(T)
    output, state = operation.demand(tokens_of(rng, T, 5, 3), state_of(rng, 5, 3), f"T = {T}")
    assert output.shape == (T, 3) and state.shape == (5,)


@few
@given(battery.cases())
@example(ACROSS)
def test_outputs_and_state_are_linear_in_inputs_and_state(operation, case):
    tokens, S0, _, others, S1 = operation.run(case)
    for name, form in operation.forms.items():
        first, second = form(tokens, S0), form(others, S1)
        both = form({"v": tokens["v"] + 2 * others["v"]}, S0 + 2 * S1)
        for what, a, b, c in zip(("outputs", "final state"), first, second, both, strict=True):
            exactly(c, a + 2 * b, f"{name}: {what} of u + 2 u'")


@few
@given(battery.cases())
@example(ACROSS)
def test_it_is_a_convolution_with_its_responses_to_impulses(operation, case):
    """Every channel's impulse is heard in every channel; what comes later is heard later; and the responses give all outputs."""
    tokens, S0, at, *_ = operation.run(case)
    u = tokens["v"]
    T, H = u.shape
    H = min(H, 3)
    Lam, B, C, D, dt = exact_model(len(S0), u.shape[1])
    held = s4d.held(Lam, dt)[:, None] * B
    K = np.stack([2 * np.real(C @ (np.exp(Lam * dt * j)[:, None] * held)) for j in range(T)])  # (T, H, H)
    K[0] += np.diag(D)
    for name, form in operation.forms.items():
        expected = [sum(K[t - s] @ u[s] for s in range(t + 1)) for t in range(T)]
        exactly(form(tokens, 0 * S0)[0], np.stack(expected), f"outputs of {name}")
        for h in range(H):
            impulse = np.zeros_like(u)
            impulse[at, h] = 1.0
            answer = np.concatenate([np.zeros((at, u.shape[1])), K[: T - at, :, h]])
            exactly(form({"v": impulse}, 0 * S0)[0], answer, f"{name}: response to channel {h} at sample {at}")


def real(seed, T, H=3, N=5, dtype="float64"):
    """u, Lam, B, C, D, dt, S0, all of them numbers of float32 or pairs of such, u of `dtype`."""
    rng = np.random.default_rng(seed)
    pair = lambda x: inputs.rounded(x.real, "float32") + 1j * inputs.rounded(x.imag, "float32")
    normal = lambda *shape: pair(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    Lam = pair(-rng.uniform(0, 2, N) + 1j * rng.uniform(0, 30, N))
    dt = inputs.rounded(np.exp2(rng.uniform(-6, -2, N)), "float32")
    u = inputs.rounded(rng.standard_normal((T, H)), dtype)
    return u, Lam, normal(N, H), normal(H, N), inputs.rounded(rng.standard_normal(H), "float32"), dt, normal(N)


def constants(u, Lam, B, C, D, dt, S0):
    """What implementations take from float64, in real numbers: the held B, C, D, the decay, S0; cosines and sines of the angles so far."""
    split = lambda x: (np.ascontiguousarray(x.real), np.ascontiguousarray(x.imag))
    angle = np.arange(1.0, len(u) + 1)[:, None] * (Lam.imag * dt)
    return u, *split(s4d.held(Lam, dt)[:, None] * B), *split(C), D, Lam.real * dt, *split(S0), np.cos(angle), np.sin(angle)


def in_frame(u, Br, Bi, Cr, Ci, D, g, Sr, Si, cos, sin, chunk):
    """2 N real channels of HGRN, in a frame that turns with the oscillators: outputs, real and imaginary parts of the last state."""
    Br, Bi, g, cos, sin = (x * 1.0 for x in (Br, Bi, g, cos, sin))  # rounded once
    real, imaginary, N = u @ Br.T, u @ Bi.T, len(g)
    z = np.concatenate([real * cos + imaginary * sin, imaginary * cos - real * sin], axis=1)
    z, last = hgrn.scan(z, np.broadcast_to(np.concatenate([g, g]), z.shape), np.concatenate([Sr, Si]), chunk)
    real, imaginary = z[:, :N] * cos - z[:, N:] * sin, z[:, N:] * cos + z[:, :N] * sin
    y = 2 * (real @ Cr.T - imaginary @ Ci.T) + D * u
    return (y, real[-1], imaginary[-1]) if len(u) else (y, last[:N], last[N:])


def sample_by_sample(u, Br, Bi, Cr, Ci, D, g, Sr, Si, cos, sin):
    """The definition in real numbers; the first cosines and sines are those of one step."""
    Br, Bi = Br * 1.0, Bi * 1.0
    outputs = [u[:0]]
    for x in u:
        a, b = np.exp(g) * cos[0], np.exp(g) * sin[0]
        Sr, Si = a * Sr - b * Si + Br @ x, b * Sr + a * Si + Bi @ x
        outputs.append((2 * (Cr @ Sr - Ci @ Si) + D * x)[None])
    return np.concatenate(outputs), Sr, Si


def parts(y, state):
    return y, state.real, state.imag


@given(inputs.seeds, st.sampled_from([1, 7, 20]), st.sampled_from([1, 4, 64]))
def test_a_frame_that_turns_along_leaves_a_real_recurrence(seed, T, chunk):
    """x_t = e^{i theta t} z_t: of z only the decay is left, and real and imaginary parts are channels that never meet."""
    arguments = real(seed, T)
    theirs = bounded(sample_by_sample, *constants(*arguments), precision=FLOAT64)
    ours = bounded(in_frame, *constants(*arguments), chunk, precision=FLOAT64)
    for one, two, what in zip(ours, theirs, ("outputs", "real parts", "imaginary parts"), strict=True):
        coincide(one, two, what)
    for form in (s5.recurrent, s5.scan):
        for value, two, what in zip(parts(*form(*arguments)), theirs, ("outputs", "real parts", "imaginary parts"), strict=True):
            coincide(Rounded(value, two.error, precision=FLOAT64), two, f"{what} of {form.__name__}")


@given(inputs.seeds, st.sampled_from([1, 7, 20]))
def test_what_one_channel_reads_is_gated_linear_attention(seed, T):
    """Keys and queries that turn, twice as long, with one value of 1: the complex rows of the table of models on the real recurrence."""
    arguments = real(seed, T)

    def attention(u, Br, Bi, Cr, Ci, D, g, Sr, Si, cos, sin):
        real, imaginary = u @ Br.T, u @ Bi.T
        k = np.concatenate([real * cos + imaginary * sin, real * sin - imaginary * cos], axis=1)  # conj(B u) e^{i theta t}
        decay = np.broadcast_to(np.concatenate([g, g]), k.shape)
        start = np.concatenate([Sr, -Si])[:, None]
        outputs = []
        for h in range(u.shape[1]):
            q = np.concatenate([Cr[h] * cos - Ci[h] * sin, Cr[h] * sin + Ci[h] * cos], axis=1)  # C e^{i theta t}
            outputs.append(2 * gla.recurrent(q, k, np.ones((T, 1)), decay, start)[0] + D[h] * u[:, h : h + 1])
        return np.concatenate(outputs, axis=1)

    given_ = constants(*arguments)
    coincide(bounded(attention, *given_, precision=FLOAT64), bounded(sample_by_sample, *given_, precision=FLOAT64)[0], "outputs")


@few
@given(battery.cases())
@example(ACROSS)
def test_blocks_of_oscillators_are_a_bank_of_s4d(case):
    """Every channel with oscillators of its own; one channel alone is S4D, whose B is 1."""
    rng = np.random.default_rng(case.seed)
    u, (H, N) = rng.integers(-2, 3, (case.T, 3)) + 0.0, (3, case.K)
    models = [exact_model(N, 100 + h) for h in range(H)]
    Lam, dt = np.concatenate([m[0] for m in models]), np.ones(H * N)
    B, C, S0 = np.zeros((H * N, H), complex), np.zeros((H, H * N), complex), whole(rng, H * N)
    for h, model in enumerate(models):
        B[h * N : (h + 1) * N, h], C[h, h * N : (h + 1) * N] = 1, model[2][0]
    D = rng.integers(-2, 3, H) + 0.0
    y, state = s5.recurrent(u, Lam, B, C, D, dt, S0)
    for h in range(H):
        mine = slice(h * N, (h + 1) * N)
        output, after = s4d.recurrent(u[:, h], Lam[mine], C[h, mine], D[h], 1.0, S0[mine])
        alone = s5.recurrent(u[:, h : h + 1], Lam[mine], B[mine, h : h + 1], C[h : h + 1, mine], D[h : h + 1], 1.0, S0[mine])
        exactly(y[:, h], output, f"outputs of channel {h}")
        exactly(state[mine], after, f"state of channel {h}")
        exactly(alone[0][:, 0], output, f"outputs of channel {h} alone")
        exactly(alone[1], after, f"state of channel {h} alone")
