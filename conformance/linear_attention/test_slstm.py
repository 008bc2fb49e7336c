"""sLSTM: the laws of every recurrence that is read as a quotient, exactly; a mean; and what it becomes where gates do not look back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import coincide, exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
    test_a_run_resumes_at_any_token,
    test_every_form_is_the_definition,
    test_no_token_one_token_two_and_three_chunks,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import mlstm, slstm

exact64 = Precision("float64", "float64")
FAR = 2.0**16  # a share of the last output, 1/76 at least, times this: enough to open or shut a gate for good


def weights(D):
    """Every candidate, output gate and, in even channels, forget gate sees one channel of the last output, its neighbor's."""
    R = np.zeros((4, D, D))
    for d in range(D):
        R[:, (d + 1) % D, d] = FAR, 0.0, FAR * (d % 2 == 0), -FAR
    return R


def exact_tokens(rng, T, K, V):
    """Candidates of -1, 0, 1 and gates that are open, shut or half open, so that cells and normalizers are whole numbers.

    Where a forget gate sees an output, which is a fraction, all weights are 1: a unit is then never a fraction.
    """
    i = np.where(np.arange(V) % 2 == 0, 0.0, rng.choice([-FAR, 0.0, FAR], (T, V)))
    gate = lambda *choices: rng.choice(choices, (T, V))
    return {"v": gate(-4 * FAR, 0.0, 4 * FAR), "i": i, "f": gate(-4 * FAR, 4 * FAR, 4 * FAR), "o": gate(-4 * FAR, 0.0, 4 * FAR)}


def exact_state(rng, K, V):
    """Cell, normalizer, output and unit as one array (4, V); where the unit is -inf, nothing may be seen of cell and normalizer."""
    unit = np.where(np.arange(V) % 2 == 0, rng.choice([-np.inf, 0.0], V), rng.choice([-np.inf, -FAR, 0.0, FAR], V))
    return np.stack([rng.integers(-2, 3, V), rng.integers(1, 4, V), rng.integers(-2, 3, V) / 2, unit])


def joined(form, round_to=np.float64):
    """A form whose state is one array, as the laws hand it on; candidates go by the name of v."""

    def run(tokens, S0):
        o, state = form(*(tokens[name] for name in "vifo"), weights(S0.shape[1]), False, tuple(S0))
        return o.astype(round_to).astype(float), np.stack(state).astype(round_to).astype(float)

    return run


def of_spec():
    one = lambda state, token: joined(lambda *a: slstm.step(a[-1], *a[:-1]))(token, state)
    return battery.Operation(joined(slstm.recurrent), {"recurrent": joined(slstm.recurrent)}, one, exact_tokens, exact_state)


def of_fast(fast):
    """Quotients of two whole numbers, rounded to float32, and the halves of some."""

    def on_arrays(form, place, back):
        def run(*arguments):
            *rows, R, _, S0 = arguments
            tokens = [inputs.tensor(place(x), "float32") for x in rows]
            o, state = form(*tokens, inputs.tensor(R[None], "float32"), S0=tuple(inputs.tensor(x[None, None], "float32") for x in S0))
            return back(inputs.array(o)), tuple(inputs.array(x)[0, 0] for x in state)

        return joined(run)

    whole = on_arrays(fast.recurrent, lambda x: x[None, :, None], lambda x: x[0, :, 0])
    step = on_arrays(lambda *a, S0: fast.step(S0, *a), lambda x: x[None, None], lambda x: x[0, 0])
    definition = joined(slstm.recurrent, np.float32)
    return battery.Operation(definition, {"recurrent": whole}, lambda state, token: step(token, state), exact_tokens, exact_state)


@pytest.fixture(scope="module", params=battery.SIDES)
def operation(request):
    with battery.side(request.param, "linear_attention.slstm", of_spec, of_fast) as operation:
        yield operation


@few
@given(battery.cases())
def test_units_do_not_matter(operation, case):
    """Input gates and the unit of the state higher by the same: the same outputs, cells and normalizers, in a higher unit."""
    tokens, S0, *_ = operation.run(case)
    expected = operation.definition(tokens, S0)
    by = np.array([[0.0], [0.0], [0.0], [2 * FAR]])
    for name, form in operation.forms.items():
        output, state = form(tokens | {"i": tokens["i"] + 2 * FAR}, S0 + by)
        exactly(output, expected[0], f"{name}: outputs with higher input gates")
        exactly(state, expected[1] + by, f"{name}: final state with higher input gates")


def real(seed, T, D=4):
    rng = np.random.default_rng(seed)
    R, state = rng.standard_normal((4, D, D)), (*rng.standard_normal((1, D)), *np.exp(rng.standard_normal((1, D))))
    return (*(2 * rng.standard_normal((4, T, D))), R, *state, *rng.standard_normal((2, D)))


def without_units(z, i, f, o, R, c, n, h, m, exp_forget):
    """As the paper begins: sums of candidates and of weights that fade by the forget gate, their quotient times the output gate."""
    c, n, rows = np.exp(m) * c, np.exp(m) * n, [z[:0]]
    for t in range(len(z)):
        candidate, write, keep, gate = (x[t] + h @ R[j] for j, x in enumerate((z, i, f, o)))
        keep = np.exp(keep) if exp_forget else 1 / (1 + np.exp(-keep))
        c, n = keep * c + np.exp(write) * np.tanh(candidate), keep * n + np.exp(write)
        h = c / n / (1 + np.exp(-gate))
        rows.append(h[None])
    return np.concatenate(rows), c, n


@given(inputs.seeds, st.sampled_from([0, 1, 4, 8]), st.booleans())
def test_it_is_the_recurrence_without_units(seed, T, exp_forget):
    def ours(*a):
        o, (c, n, _, m) = slstm.recurrent(*a[:5], exp_forget, a[5:])
        return o, np.exp(m) * c, np.exp(m) * n

    case = real(seed, T)
    pair = (bounded(text, *case, precision=exact64) for text in (ours, lambda *a: without_units(*a, exp_forget)))
    for one, two, what in zip(*pair, ("outputs", "cell", "normalizer"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds, st.integers(1, 30), st.booleans(), st.sampled_from([1.0, 100.0]))
def test_no_output_leaves_its_range(seed, T, exp_forget, size):
    """A cell is a mean of candidates between -1 and 1, whatever the gates, however large; roundings keep an order, so exactly."""
    *rows, R = real(seed, T)[:5]
    h, (c, n, _, m) = slstm.recurrent(*(size * x for x in rows), R, exp_forget)
    assert np.all(np.abs(h) <= 1) and np.all(np.abs(c) <= n) and np.all(n >= 1) and np.all(np.isfinite(m))


@given(inputs.seeds, st.sampled_from([0, 1, 9, 20]))
def test_where_gates_do_not_look_back_it_is_mlstm_channel_by_channel(seed, T):
    """A key and a query of 1, so that the normalizer is the sum of weights; of at least 1 each, so that it is above its floor."""
    z, i, f, o, R, *_ = real(seed, T)
    i = np.abs(i)

    def theirs(z, i, f, o):
        ones, columns = np.ones((T, 1)), []
        for d in range(z.shape[1]):
            columns.append(mlstm.recurrent(ones, ones, np.tanh(z[:, d : d + 1]), i[:, d], f[:, d], 0.0)[0])
        return np.concatenate(columns, axis=1) / (1 + np.exp(-o))

    ours = lambda z, i, f, o: slstm.recurrent(z, i, f, o, 0 * R)[0]
    coincide(*(bounded(text, z, i, f, o, precision=exact64) for text in (ours, theirs)))


@given(st.lists(st.booleans(), max_size=60))
def test_one_cell_keeps_the_parity_of_a_text(fast, bits):
    """A one overwrites the cell with the opposite of the last output, a zero writes nothing."""
    one = np.array([[1.0], *([float(bit)] for bit in bits)])
    z, i, f = np.where(np.arange(len(one)) == 0, 2 * FAR, 0.0)[:, None], FAR * (one - 1), FAR * (1 - 2 * one)
    R = np.array([[[-FAR]], [[0.0]], [[0.0]], [[0.0]]])
    parity = (-1.0) ** (np.cumsum(one, axis=0) - 1)
    exactly(slstm.recurrent(z, i, f, 0 * z + FAR, R)[0], parity, "of the definition")
    rows = [inputs.tensor(x[None, :, None], "float32") for x in (z, i, f, 0 * z + FAR)]
    exactly(fast.recurrent(*rows, inputs.tensor(R[None], "float32"))[0][0, :, 0], parity, "of the implementation")
