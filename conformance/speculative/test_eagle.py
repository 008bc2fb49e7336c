"""EAGLE: what a drafted row may depend on, that a perfect layer loses no token, and that the batch drafts as the spec does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import array, seeds, tensor
from twofold.conformance.law import models
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds, tiny_models
from twofold.conformance.tape import Certified, exact
from twofold.fast.kernels import philox
from twofold.spec.rng import Sampler
from twofold.spec.speculative import chain, eagle

FLOAT32 = Precision("float32")
few = settings(max_examples=max(3, settings().max_examples // 5))  # each draw takes the interpreter some milliseconds
places, gammas = st.integers(1, 5), st.integers(0, 3)


class Forced:
    """An rng that draws what it is told to."""

    def __init__(self, tokens):
        self.tokens = iter(tokens)

    def categorical(self, row):
        return int(next(self.tokens))


class Rational:
    """An exact rng behind rows of floats: each is divided by its exact sum."""

    def __init__(self, rng):
        self.rng = rng

    def categorical(self, row):
        return self.rng.categorical(rational(row))


def rational(row):
    return exact(row) / exact(row).sum()


# What a row depends on


@given(seeds, st.integers(2, 6), st.data())
def test_a_token_acts_on_its_own_row_and_a_feature_one_row_later(seed, T, data):
    """Row i predicts f_{i+1}, hence the law after x_{i+1}. Changing x_{i+1} moves it; changing f_{i+1} moves only the rows after it."""
    w, layer = tiny_models.weights(seed, V=7, D=4, T=T), tiny_models.attention(seed, D=4)
    i = data.draw(st.integers(0, T - 2))
    before = eagle.predict(w.features, w.tokens, w.embed, w.fc, layer.spec)
    tokens, features = w.tokens.copy(), w.features.copy()
    tokens[i + 1], features[i + 1] = (tokens[i + 1] + 1) % 7, features[i + 1] + 1
    other_token = eagle.predict(w.features, tokens, w.embed, w.fc, layer.spec)
    other_feature = eagle.predict(features, w.tokens, w.embed, w.fc, layer.spec)
    exactly(other_token[:i], before[:i], "rows before the changed token")
    assert np.any(other_token[i] != before[i]), "the row beside the changed token does not hear of it"
    exactly(other_feature[: i + 1], before[: i + 1], "rows up to the one that predicts the changed feature")
    assert np.any(other_feature[i + 1] != before[i + 1]), "the row of the changed feature does not hear of it"


@given(seeds, places, gammas)
def test_the_first_token_is_never_read_and_a_longer_draft_begins_like_a_shorter_one(seed, T, gamma):
    w, layer = tiny_models.weights(seed, V=7, D=4, T=T), tiny_models.attention(seed, D=4).spec
    tokens = w.tokens.copy()
    tokens[0] = (tokens[0] + 1) % 7
    drafted, q = eagle.draft(w.features, w.tokens, w.embed, w.fc, layer, w.head, gamma)
    longer, rows = eagle.draft(w.features, tokens, w.embed, w.fc, layer, w.head, gamma + 1)
    assert longer[:gamma] == drafted and q.shape == (gamma, 7)
    exactly(rows[:gamma], q, "rows")


@given(seeds, places, st.integers(1, 4))
def test_with_a_perfect_layer_q_is_p_and_every_token_is_kept(seed, T, gamma):
    """A target of integers whose next feature is (A f + e) mod 5: with FC = [1, A] and the remainder as layer, nothing is left to guess."""
    rng = np.random.default_rng(seed)
    embed, A, head = (rng.integers(-2, 3, shape).astype(float) for shape in ((5, 4), (4, 4), (5, 4)))

    def features(tokens):
        found = [embed[tokens[0]]]
        for token in tokens[1:]:
            found.append(np.mod(A @ found[-1] + embed[token], 5))
        return np.stack(found)

    text = rng.integers(0, 5, T + 1)
    fc, layer = np.hstack([np.eye(4), A]), lambda z: np.mod(z, 5)
    drafted, q = eagle.draft(features(text[:T]), text, embed, fc, layer, head, gamma, Sampler(rng))
    p = np.stack([eagle.softmax(head @ f) for f in features([*text, *drafted])[T:]])  # (gamma + 1, V)
    exactly(q, p[:gamma], "laws")
    assert chain.verify(p, q, drafted, Sampler(rng))[0] == gamma


@given(models(3, 3), seeds, st.integers(1, 2), st.integers(0, 2))
def test_text_drafted_by_any_layer_has_the_targets_law(target, seed, T, gamma):
    w, layer = tiny_models.weights(seed, V=3, D=2, T=T), tiny_models.attention(seed, D=2).spec

    def program(rng):
        drafted, q = eagle.draft(w.features, w.tokens, w.embed, w.fc, layer, w.head, gamma, Rational(rng))
        p = [target(tuple(drafted[:i])) for i in range(gamma + 1)]
        kept, token = chain.verify(p, [rational(row) for row in q], drafted, rng)
        return (*drafted[:kept], token)

    rounds.lossless(program, target, gamma + 1)


def test_a_row_with_a_nan_is_an_error_and_not_a_token():
    w = tiny_models.weights(0, V=3, D=2, T=2)
    with pytest.raises(ValueError, match="probabilities"):
        eagle.draft(w.features * np.nan, w.tokens, w.embed, w.fc, lambda z: z, w.head, 1)


# The batch


@given(seeds, st.lists(places, min_size=1, max_size=3), gammas, st.booleans())
def test_tokens_are_the_specs_where_arithmetic_is_exact(fast, seed, lengths, gamma, cached):
    """Integer weights and a layer that counts: greedy drafts are equal for requests of any lengths, and padding is not read."""
    T, layer = max(lengths), tiny_models.counting(seed, D=3)
    ws = [tiny_models.weights(seed + b, V=6, D=3, T=T, exact=True) for b in range(len(lengths))]
    features, tokens = np.stack([w.features for w in ws]), np.stack([w.tokens for w in ws])
    for b, n in enumerate(lengths):
        features[b, n:], tokens[b, n + 1 :] = np.nan, 10**15
    embed, fc, head = (tensor(x, "float32") for x in ws[0][2:])
    options = {"cache": ()} if cached else {}
    drafted, q, *_ = fast.draft(
        tensor(features, "float32"), tensor(tokens), embed, fc, layer.cached if cached else layer.fast, head, gamma,
        lengths=tensor(np.array(lengths)), **options,
    )  # fmt: skip
    assert q.shape == (len(lengths), gamma, 6)
    for b, n in enumerate(lengths):
        expected = eagle.draft(ws[b].features[:n], ws[b].tokens[: n + 1], *ws[0][2:4], layer.spec, ws[0].head, gamma)
        exactly(drafted[b], np.array(expected[0], dtype=int), f"draft of request {b}")


@given(seeds, places, st.integers(1, 3), st.booleans())
def test_laws_agree(fast, seed, T, gamma, cached):
    """On the tokens that the batch drafted: what was likeliest may be close, what it was drawn from is bounded."""
    w, layer = tiny_models.weights(seed, V=5, D=4, T=T), tiny_models.attention(seed, D=4)
    features, tokens, *weights = w.tensors()
    drafted, q, *_ = fast.draft(
        features, tokens, *weights[:2], layer.cached if cached else layer.fast, weights[2], gamma, **({"cache": ()} if cached else {})
    )
    exactly(q.gather(2, drafted[:, :, None])[:, :, 0], q.amax(2), "the drafted token's probability")
    run = lambda features, embed, fc, head: eagle.draft(features, w.tokens, embed, fc, layer.spec, head, gamma, Forced(drafted[0]))[1]
    agree(q[0], bounded(run, w.features, w.embed, w.fc, w.head, precision=FLOAT32), "laws")


@given(seeds, st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=3), st.integers(1, 3))
def test_a_cache_changes_nothing_over_several_rounds(fast, seed, news, gamma):
    """Each round brings new true features, not those that the round before had predicted; to some requests it brings none."""
    layer, D, V = tiny_models.counting(seed, D=3), 3, 6
    rng, rounds_of = np.random.default_rng(seed), [sum(new[b] for new in news) for b in range(2)]
    w = tiny_models.weights(seed, V, D, 1, exact=True)
    features, tokens = rng.integers(-1, 2, (2, max(rounds_of), D)).astype(float), rng.integers(0, V, (2, max(rounds_of) + 1))
    embed, fc, head = (tensor(x, "float32") for x in w[2:])
    cache, done = (), np.zeros(2, dtype=int)
    for new in news:
        at = done[:, None] + np.arange(4)  # longer than any request's news: the rest is not read
        pick = lambda x, at: np.stack([x[b, np.minimum(at[b], x.shape[1] - 1)] for b in range(2)])
        part = tensor(pick(features, at[:, :3]), "float32"), tensor(pick(tokens, at))
        drafted, q, cache = fast.draft(*part, embed, fc, layer.cached, head, gamma, lengths=tensor(np.array(new)), cache=cache)
        done = done + new
        whole = tensor(features, "float32"), tensor(tokens)
        expected = fast.draft(*whole, embed, fc, layer.fast, head, gamma, lengths=tensor(done))
        some = slice(1 + (new[1] > 0))
        assert new[1] or (drafted[1] == -1).all()
        exactly(drafted[some], array(expected[0][some]), "draft")
        exactly(q[some], array(expected[1][some]), "laws")
    assert cache.real.sum(1).tolist() == done.tolist()


@few
@given(seeds)
def test_tokens_are_drawn_from_the_rows_that_come_back(fast, seed):
    w, layer = tiny_models.weights(seed, V=5, D=4, T=2), tiny_models.attention(seed, D=4)
    features, tokens, embed, fc, head = w.tensors(B=4)
    uniform = np.random.default_rng(seed).integers(0, 2**24, (4, 2)) / 2**24
    drafted, q = fast.draft(features, tokens, embed, fc, layer.fast, head, 2, token=tensor(uniform, "float32"))
    for b in range(4):
        for step in range(2):
            tape = Certified(token=[uniform[b, step]])
            expected = tape.categorical(exact(array(q[b, step])))
            assert not tape.sure or int(drafted[b, step]) == expected


@few
@given(seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, seed):
    """Integers, so that no sum depends on the batch; the uniforms belong to the request and the place where the round begins."""
    w, layer = tiny_models.weights(seed, V=6, D=3, T=3, exact=True), tiny_models.counting(seed, D=3)
    _, _, embed, fc, head = w.tensors()
    rng = np.random.default_rng(seed)
    features, tokens = tensor(rng.integers(-1, 2, (2, 3, 3)), "float32"), tensor(rng.integers(0, 6, (2, 4)))
    request, position = torch.tensor([5, 2**40]), torch.tensor([4, 2**33])
    run = lambda b, **how: fast.draft(features[b], tokens[b], embed, fc, layer.fast, head, 2, **how)
    drafted, q = run(slice(None), seed=seed, request=request, position=position)
    for b in range(2):
        alone = run(slice(b, b + 1), seed=seed, request=request[b : b + 1], position=position[b : b + 1])
        exactly(alone[0][0], array(drafted[b]), f"draft of request {b}")
        exactly(alone[1][0], array(q[b]), f"laws of request {b}")
    uniform = philox.uniform(seed, philox.DRAFT, request, position, 2)
    exactly(run(slice(None), token=uniform)[0], array(drafted), "the same uniforms, given")


def test_nothing_to_draft_from_gives_minus_one(fast):
    w, layer = tiny_models.weights(0, V=5, D=4, T=2), tiny_models.attention(0, D=4)
    features, tokens, embed, fc, head = w.tensors(B=2)
    features[1] = torch.nan
    for options, face in (({}, layer.fast), ({"cache": ()}, layer.cached)):
        for uniform in (None, torch.full((2, 2), 0.5)):
            drafted, q, *_ = fast.draft(
                features, tokens, embed, fc, face, head, 2, lengths=torch.tensor([2, 0]), token=uniform, **options
            )
            assert (drafted[0] >= 0).all() and drafted[1].tolist() == [-1, -1] and q[1].isnan().all() and not q[0].isnan().any()
    assert [x.shape for x in fast.draft(features[:, :0], tokens[:, :1], embed, fc, layer.fast, head, 0)] == [(2, 0), (2, 0, 5)]
    broken = fast.draft(features, tokens, embed, fc, layer.fast, head, 1)  # a feature that is not a number
    assert broken[0][1].item() == -1 and broken[0][0].item() >= 0
