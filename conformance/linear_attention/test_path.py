"""PaTH attention: the laws of every causal operation, exactly, on a softmax that has one winner; what reflections do; its neighbors."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide, exactly
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.laws import (  # noqa: F401  the laws that hold here
    ACROSS,
    test_a_run_resumes_at_any_token,
    test_every_form_is_the_definition,
    test_steps_are_the_prefill,
    test_the_future_does_not_matter,
    test_two_runs_give_the_same_bits,
)
from twofold.conformance.linear_attention.paths import hops, of_fast, of_spec
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense
from twofold.spec.linear_attention import path

exact64 = Precision("float64", "float64")


@pytest.fixture(scope="module", params=[(side, forgets) for side in battery.SIDES for forgets in (False, True)], ids=str)
def operation(request):
    side, forgets = request.param
    with battery.side(side, "linear_attention.path", lambda: of_spec(forgets), lambda fast: of_fast(fast, forgets)) as operation:
        yield operation


@pytest.fixture(scope="module", params=battery.SIDES)
def scores(request):
    def of_fast(fast):
        rows = lambda *xs: [inputs.tensor(x[None, :, None], "float32") for x in xs]
        return lambda q, k, w, beta, keys: inputs.array(fast.scores(*rows(q, k, w, beta), inputs.tensor(keys[None, None], "float32")))[0, 0]

    with battery.side(request.param, "linear_attention.path", lambda: path.scores, of_fast) as scores:
        yield scores


@pytest.mark.parametrize("T", [0, 1, 17, 35])
@pytest.mark.parametrize("cached", [False, True])
def test_no_token_no_cache_one_token_and_three_blocks(operation, T, cached):
    """A first token sees itself and nothing else; the cache grows by a row for each token."""
    tokens, S0, *_ = operation.run(battery.Case(T, K=5, V=4, at=0, seed=T))
    S0 = S0 if cached else S0[:0]
    output, state = operation.demand(tokens, S0, f"T = {T}, {len(S0)} cached")
    assert output.shape == tokens["v"].shape and len(state) == len(S0) + T
    exactly(state[:, 5:9], np.concatenate([S0[:, 5:9], tokens["v"]]), "values in the cache")
    if T and not cached:
        exactly(output[0], tokens["v"][0], "output of the first token")


@few
@given(battery.cases())
@example(ACROSS)
def test_strength_zero_is_softmax_attention(operation, case):
    """And gates are its bias, which is not scaled; keys stay what they are."""
    tokens, *_ = operation.run(case)
    still = tokens | {"beta": 0 * tokens["beta"]}
    F = tokens.get("F", np.zeros(case.T))
    mask = np.tri(case.T, dtype=bool)
    expected, _ = dense.attention(tokens["q"], tokens["k"], tokens["v"], mask=mask, scale=1.0, bias=F[:, None] - F)
    for name, form in operation.forms.items():
        output, state = form(still, np.zeros((0, case.K + case.V + 1)))
        exactly(output, expected, f"{name}: outputs without transformations")
        exactly(state[:, : case.K], tokens["k"], f"{name}: keys without transformations")


@few
@given(battery.cases())
@example(ACROSS)
def test_reflections_preserve_norms(operation, case):
    """A flipped channel, or two that are exchanged: cached keys keep their length."""
    tokens, S0, *_ = operation.run(case)
    full = tokens | {"beta": np.where(np.count_nonzero(tokens["w"], axis=1) == 2, 1.0, 2.0)}
    before = np.concatenate([S0[:, : case.K], tokens["k"]])
    for name, form in operation.forms.items():
        keys = form(full, S0)[1][:, : case.K]
        exactly(np.sum(keys**2, axis=1), np.sum(before**2, axis=1), f"{name}: squared lengths of cached keys")


@few
@given(battery.cases())
@example(ACROSS)
def test_what_is_erased_is_erased_for_all_keys_before(operation, case):
    """After a token of strength 1 earlier keys have nothing along its direction; its own key is untouched."""
    tokens, S0, *_ = operation.run(case)
    w, beta = tokens["w"].copy(), tokens["beta"].copy()
    w[-1], beta[-1] = np.eye(case.K)[0], 1.0
    for name, form in operation.forms.items():
        keys = form(tokens | {"w": w, "beta": beta}, S0)[1][:, : case.K]
        exactly(keys[:-1, 0], np.zeros(len(keys) - 1), f"{name}: what was erased")
        exactly(keys[-1], tokens["k"][-1], f"{name}: the last key")


@few
@given(battery.cases())
@example(ACROSS)
def test_forgetting_is_two_more_channels(operation, case):
    """F as a channel of the queries, -F as one of the keys, and no transformation touches them."""
    tokens, S0, *_ = operation.run(case)
    F = tokens.get("F", np.zeros(case.T))
    wider = lambda x, a, b: np.concatenate([x, np.broadcast_to(a, (len(x), 1)), np.broadcast_to(b, (len(x), 1))], axis=1)
    widened = tokens | {"q": wider(tokens["q"], F[:, None], 1.0), "k": wider(tokens["k"], 1.0, -F[:, None])}
    widened |= {"w": wider(tokens["w"], 0.0, 0.0)} | ({"F": 0 * F} if "F" in tokens else {})
    keys, values, sums = np.split(S0, [case.K, case.K + case.V], axis=1)
    S = np.concatenate([wider(keys, 1.0, -sums), values, 0 * sums], axis=1)
    for name, form in operation.forms.items():
        exactly(form(widened, S)[0], operation.definition(tokens, S0)[0], f"{name}: outputs with gates as channels")


def test_a_cache_that_has_taken_in_a_draft_cannot_be_cut_back(operation):
    """The keys from before are what a rejected draft needs."""
    tokens, S0, *_ = operation.run(battery.Case(T=9, K=5, V=3, at=0, seed=3))
    _, S0 = operation.definition(tokens, S0[:0])
    draft = {name: x[0] for name, x in tokens.items()} | {"w": np.eye(5)[0], "beta": np.array(2.0)}
    cut = operation.step(S0, draft)[1][: len(S0)]
    exactly(cut, S0 * np.where(np.arange(S0.shape[1]) == 0, -1, 1), "the cache, cut back")
    assert np.any(cut != S0)


@few
@given(battery.cases())
@example(ACROSS)
def test_scores_are_products_of_matrices_in_order(scores, case):
    """Whole numbers, by explicit products; scores are linear in q."""
    rng, (T, K) = np.random.default_rng(case.seed), (min(case.T, 17), case.K)
    q, other, k, keys = (rng.integers(-3, 4, (n, K)).astype(float) for n in (T, T, T, 3))
    w, beta = hops(rng, T, K)
    expected, H = np.full((T, 3 + T), -np.inf), np.eye(K) - beta[:, None, None] * w[:, :, None] * w[:, None, :]
    for i in range(T):
        on_path = np.eye(K)  # H_i … H_{j+1}
        for j in reversed(range(i + 1)):
            expected[i, 3 + j], on_path = q[i] @ on_path @ k[j], on_path @ H[j]
        expected[i, :3] = q[i] @ on_path @ keys.T
    actual, past = scores(q, k, w, beta, keys), np.isfinite(expected)
    exactly(actual, expected, "scores")
    exactly(scores(q + 2 * other, k, w, beta, keys)[past], (actual + 2 * scores(other, k, w, beta, keys))[past], "scores of q + 2 q'")


def real(rng, T, K=5, V=3):
    q, k, v, w = (rng.standard_normal((T, n)) for n in (K, K, V, K))
    w = w / np.sqrt(np.sum(w**2, axis=1, keepdims=True))
    return q, k, v, w, 2 / (1 + np.exp(-rng.standard_normal(T))), -np.cumsum(np.abs(rng.standard_normal(T)))


@given(inputs.seeds, st.integers(0, 40), st.sampled_from([1, 5, 16, 64]), st.integers(0, 9))
def test_forms_of_the_spec_are_equal_on_real_values(seed, T, block, cached):
    rng = np.random.default_rng(seed)
    tokens, (keys, _, values, *_, sums) = real(rng, T), real(rng, cached)
    flat = lambda o, state: (o, *state)
    forms = (
        lambda *x: flat(*path.parallel_forgetting(*x[:6], x[6:])), lambda *x: flat(*path.blockwise(*x[:5], x[6:], block, x[5])),
    )  # fmt: skip
    first, other = (bounded(form, *tokens, keys, values, sums, precision=exact64) for form in forms)
    for one, two, what in zip(first, other, ("outputs", "keys", "values", "sums"), strict=True):
        coincide(one, two, what)


@given(inputs.seeds)
def test_gates_are_added_after_the_scale(seed):
    """The other reading, in which the scale multiplies both, is another function."""
    q, k, v, w, beta, F = real(np.random.default_rng(seed), 9)
    mask, products = np.tri(9, dtype=bool), np.where(np.tri(9, dtype=bool), path.scores(q, k, w, beta), 0.0)
    ages = F[:, None] - F
    reading = lambda s: dense.attention(s, np.eye(9), v, mask=mask, scale=1.0)[0]
    ours = bounded(lambda *x: path.parallel_forgetting(*x)[0], q / 4, k, v, w, beta, F, precision=exact64)
    agree(reading(products / 4 + ages), ours, "outputs")
    with pytest.raises(AssertionError, match="error over bound"):
        agree(reading((products + ages) / 4), ours, "outputs with scaled gates")
