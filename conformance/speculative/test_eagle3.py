"""EAGLE-3: a vocabulary of its own loses no mass, drafting is EAGLE's on fused features, and training unrolls what drafting computes."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import array, regimes, seeds, tensor, values
from twofold.conformance.law import models
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds, tiny_models
from twofold.conformance.speculative.test_eagle import Forced, Rational, rational
from twofold.spec.speculative import chain, eagle, eagle3

FLOAT32 = Precision("float32")
places, steps = st.integers(1, 5), st.integers(0, 4)


@st.composite
def vocabularies(draw, V):
    """Different target ids for the draft ids 0, 1, …, in any order, as (ids, d2t)."""
    ids = np.array(draw(st.permutations(range(V)))[: draw(st.integers(1, V))])
    return ids, ids - np.arange(len(ids))


# Its own vocabulary


@given(vocabularies(6), seeds)
def test_every_draft_ids_probability_arrives_at_its_target_id(fast, vocabulary, seed):
    ids, d2t = vocabulary
    weights = np.random.default_rng(seed).integers(1, 9, len(ids)).tolist()
    q = np.array([Fraction(w, sum(weights)) for w in weights], dtype=object)
    row = eagle3.scatter(q, d2t, 6)
    assert row.sum() == 1 and [row[i] for i in ids] == q.tolist() and all(row[v] == 0 for v in set(range(6)) - set(ids.tolist()))
    rows = tensor(np.random.default_rng(seed).random((2, 3, len(ids))), "float32")
    expected = np.zeros((2, 3, 6))
    expected[..., ids] = array(rows)
    exactly(fast.scatter(rows, tensor(d2t), 6), expected, "laws")


def test_zero_offsets_are_the_identity_and_one_token_is_a_vocabulary(fast):
    q = np.array([0.5, 0.25, 0.25])
    exactly(eagle3.scatter(q, [0, 0, 0], 3), q, "law")
    exactly(fast.scatter(tensor(q, "float32"), torch.zeros(3, dtype=torch.int64), 3), q, "law")
    assert eagle3.scatter(np.ones(1), [4], 5).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("d2t", [[1, 0], [0, 2], [-1, 0]])
def test_offsets_that_collide_or_leave_the_vocabulary_are_an_error(d2t):
    with pytest.raises(ValueError, match="d2t must"):
        eagle3.scatter(np.array([0.5, 0.5]), d2t, 3)


@given(seeds, places, st.integers(0, 3), vocabularies(6))
def test_drafts_are_the_specs_in_the_targets_ids(fast, seed, T, gamma, vocabulary):
    """Integers; the next step is told the embedding of the target's id, not of the drafter's."""
    ids, d2t = vocabulary
    w, layer = tiny_models.weights(seed, V=6, D=3, T=T, exact=True), tiny_models.counting(seed, D=3)
    drafted, q = eagle3.draft(w.features, w.tokens, w.embed, w.fc, layer.spec, w.head[ids], gamma, d2t)
    assert q.shape == (gamma, 6) and set(drafted) <= set(ids.tolist())
    for step, token in enumerate(drafted):  # as if told them: one token after another, each from a draft of one
        states = np.concatenate([w.features, own_states(w, layer.spec, drafted[:step])])
        text = [*w.tokens, *drafted[:step]]
        assert eagle3.draft(states, text, w.embed, w.fc, layer.spec, w.head[ids], 1, d2t)[0] == [token]
    g, tokens, embed, fc, head = w.tensors(B=2)
    for options, face in (({}, layer.fast), ({"cache": ()}, layer.cached)):
        actual = fast.draft(g, tokens, embed, fc, face, head[tensor(ids)], gamma, tensor(d2t), **options)
        exactly(actual[0], np.array([drafted] * 2, dtype=int).reshape(2, gamma), "draft")
        assert actual[1].shape == (2, gamma, 6) and (actual[1][..., sorted(set(range(6)) - set(ids.tolist()))] == 0).all()


def own_states(w, layer, drafted):
    """The drafter's own states at these drafted places `(s, D)`, by EAGLE's recursion."""
    states = w.features
    for s in range(len(drafted)):
        states = np.concatenate([states, eagle.predict(states, [*w.tokens, *drafted[:s]], w.embed, w.fc, layer)[-1:]])
    return states[len(w.features) :]


@given(seeds, places, st.integers(1, 3))
def test_without_a_vocabulary_of_its_own_it_is_eagle_on_fused_features(fast, seed, T, gamma):
    low, mid, high, fuse = values("normal", [(T, 4), (T, 4), (T, 4), (4, 12)], seed, "float32")
    w, layer = tiny_models.weights(seed, V=5, D=4, T=T), tiny_models.attention(seed, D=4)
    g = eagle3.fuse(low, mid, high, fuse)
    ours = eagle3.draft(g, w.tokens, w.embed, w.fc, layer.spec, w.head, gamma)
    theirs = eagle.draft(g, w.tokens, w.embed, w.fc, layer.spec, w.head, gamma)
    assert ours[0] == theirs[0]
    exactly(ours[1], theirs[1], "laws")
    exactly(eagle3.unroll(g, w.tokens, w.embed, w.fc, layer.masked, 1)[0], eagle.predict(g, w.tokens, w.embed, w.fc, layer.spec), "step 0")
    _, tokens, embed, fc, head = w.tensors()
    fused = fast.fuse(*(tensor(x[None], "float32") for x in (low, mid, high)), tensor(fuse, "float32"))
    drafted, q = fast.draft(fused, tokens, embed, fc, layer.fast, head, gamma)

    def run(low, mid, high, fuse, embed, fc, head):
        return eagle3.draft(eagle3.fuse(low, mid, high, fuse), w.tokens, embed, fc, layer.spec, head, gamma, None, Forced(drafted[0]))[1]

    agree(fused[0], bounded(eagle3.fuse, low, mid, high, fuse, precision=FLOAT32), "fused features")
    agree(q[0], bounded(run, low, mid, high, fuse, w.embed, w.fc, w.head, precision=FLOAT32), "laws")


@given(models(3, 3), seeds, st.integers(0, 2), vocabularies(3))
def test_text_drafted_from_a_part_of_the_vocabulary_has_the_targets_law(target, seed, gamma, vocabulary):
    ids, d2t = vocabulary
    w, layer = tiny_models.weights(seed, V=3, D=2, T=2), tiny_models.attention(seed, D=2).spec

    def program(rng):
        drafted, q = eagle3.draft(w.features, w.tokens, w.embed, w.fc, layer, w.head[ids], gamma, d2t, Rational(rng))
        p = [target(tuple(drafted[:i])) for i in range(gamma + 1)]
        kept, token = chain.verify(p, [rational(row) for row in q], drafted, rng)
        return (*drafted[:kept], token)

    rounds.lossless(program, target, gamma + 1)


# Training-time test


@given(seeds, places, st.integers(1, 4))
def test_unrolled_training_is_what_drafting_computes_from_every_place(fast, seed, T, steps):
    """Integers: row n of step s, of one masked pass, against the draft that begins at place n and is told the true tokens."""
    w, layer = tiny_models.weights(seed, V=6, D=3, T=T, exact=True), tiny_models.counting(seed, D=3)
    unrolled = eagle3.unroll(w.features, w.tokens, w.embed, w.fc, layer.masked, steps)
    g, tokens, embed, fc, head = w.tensors()
    batched = fast.unroll(g, tokens, embed, fc, layer.cached, steps)
    assert [x.shape for x in unrolled] == [(max(T - s, 0), 3) for s in range(steps)] and len(batched) == steps
    for s in range(steps):
        exactly(batched[s][0], unrolled[s], f"step {s} of the batch")
    for n in range(T):
        drawn = min(steps, T - n)
        forced = Forced([*w.tokens[n + 2 :], 0])  # the last draw has no true token any more, and is not told to anybody
        _, q = eagle3.draft(w.features[: n + 1], w.tokens[: n + 2], w.embed, w.fc, layer.spec, w.head, drawn, None, forced)
        for s in range(drawn):
            exactly(q[s], eagle.softmax(w.head @ unrolled[s][n]), f"law of step {s} from place {n}")


@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_unrolled_states_agree(fast, seed, T, steps):
    w, layer = tiny_models.weights(seed, V=5, D=4, T=T), tiny_models.attention(seed, D=4)
    g, tokens, embed, fc, _ = w.tensors()
    run = lambda g, embed, fc: np.concatenate(eagle3.unroll(g, w.tokens, embed, fc, layer.masked, min(steps, T)))
    states = torch.cat(fast.unroll(g, tokens, embed, fc, layer.cached, min(steps, T)), 1)
    agree(states[0], bounded(run, w.features, w.embed, w.fc, precision=FLOAT32), "states")


@given(seeds, st.integers(2, 5), st.integers(1, 3), st.data())
def test_no_step_reads_what_comes_after_its_start(fast, seed, T, steps, data):
    """Later true features would be the answers: changing them moves no row of a draft that began before, at any step."""
    w, layer = tiny_models.weights(seed, V=6, D=3, T=T), tiny_models.attention(seed, D=3)
    n = data.draw(st.integers(0, T - 2))
    g, tokens, embed, fc, _ = w.tensors()
    changed = g.clone()
    changed[:, n + 1 :] += 1
    before, after = (fast.unroll(x, tokens, embed, fc, layer.cached, steps) for x in (g, changed))
    for s in range(steps):
        exactly(after[s][:, : n + 1], array(before[s][:, : n + 1]), f"step {s}")
        assert s >= T - n - 1 or (after[s][:, n + 1] != before[s][:, n + 1]).any(), "the row at the change does not hear of it"


@given(st.integers(0, 5), steps)
def test_masks_are_the_same_on_both_sides(fast, T, steps):
    expected, actual = eagle3.mask(T, steps), fast.mask(T, steps)
    exactly(actual[0], expected[0], "mask")
    exactly(actual[1], expected[1], "positions")
    sees, position = expected
    assert all(sorted(position[row].tolist()) == list(range(at + 1)) for row, at in zip(sees, position)), "a row sees each place once"


@given(regimes, seeds, st.sampled_from([(0, 1), (3, 1), (2, 7)]))
def test_fusing_agrees(fast, regime, seed, size):
    T, D = size
    parts = values(regime, [(T, D), (T, D), (T, D), (D, 3 * D)], seed, "float32")
    agree(fast.fuse(*(tensor(x, "float32") for x in parts)), bounded(eagle3.fuse, *parts, precision=FLOAT32), "fused features")


def test_gradients_reach_every_weight_through_all_steps(fast):
    w, layer = tiny_models.weights(3, V=5, D=4, T=4), tiny_models.attention(3, D=4)
    g, tokens, embed, fc, head = (x.requires_grad_() if x.is_floating_point() else x for x in w.tensors())
    states = fast.unroll(g, tokens, embed, fc, layer.cached, 3)
    laws = [fast.scatter(torch.softmax(x @ head.T, -1), torch.tensor([1, 0, 1, 1, 2]), 9) for x in states]
    for slope in torch.autograd.grad(laws[2][:, :, 1].sum(), [g, embed, fc, head]):
        assert slope.abs().sum() > 0 and slope.isfinite().all()


def some(**changes):
    right = {"g": torch.ones(2, 3, 4), "embed": torch.ones(5, 4), "fc": torch.ones(4, 8), "head": torch.ones(3, 4)}
    right |= {"tokens": torch.zeros(2, 4, dtype=torch.int64), "d2t": torch.tensor([0, 1, 2])}
    return right | {"layer": lambda z: z, "gamma": 2} | changes


@pytest.mark.parametrize(("wrong", "message"), [
    ({"g": torch.ones(3, 4)}, "g must"), ({"head": torch.ones(3, 5)}, "head must"), ({"d2t": None}, "head must"),
    ({"d2t": torch.zeros(4, dtype=torch.int64)}, "d2t must"), ({"d2t": torch.zeros(3)}, "d2t must"), ({"gamma": -1}, "gamma must"),
    ({"tokens": torch.zeros(2, 3, dtype=torch.int64)}, "tokens must"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.draft(**some(**wrong))
    with pytest.raises(ValueError, match="high must"):
        fast.fuse(torch.ones(2, 4), torch.ones(2, 4), torch.ones(3, 4), torch.ones(4, 12))
    with pytest.raises(ValueError, match="tokens must"):
        fast.unroll(torch.ones(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64), torch.ones(5, 4), torch.ones(4, 8), None, 1)


def test_it_compiles(fast):
    w, layer = tiny_models.weights(3, V=5, D=4, T=3), tiny_models.attention(3, D=4)
    g, tokens, embed, fc, head = w.tensors(B=2)
    d2t = torch.tensor([1, 1, 2])
    call = lambda g: (*fast.draft(g, tokens, embed, fc, layer.fast, head[:3], 2, d2t), *fast.unroll(g, tokens, embed, fc, layer.cached, 2))
    for compiled, eager in zip(torch.compile(call, fullgraph=True, backend="aot_eager")(g), call(g), strict=True):
        exactly(compiled, eager, "compiled")
