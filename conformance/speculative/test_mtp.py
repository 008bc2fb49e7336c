"""Multi-token prediction: drafting computes what training computes, with a cache or without, and each depth hears of one token more."""

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
from twofold.conformance.speculative.test_eagle import Forced, Rational, rational
from twofold.conformance.tape import Certified, exact
from twofold.fast.kernels import philox
from twofold.spec.speculative import chain, eagle, mtp

FLOAT32, FLOAT64 = Precision("float32"), Precision("float64", "float64")
few = settings(max_examples=max(3, settings().max_examples // 5))  # each draw takes the interpreter some milliseconds
places, gammas = st.integers(1, 5), st.integers(0, 3)


def toy(seed, T, V=5, D=4):
    """Weights (the tokens are t_0 … t_T, `fc` is M) and an attention layer."""
    return tiny_models.weights(seed, V, D, T), tiny_models.attention(seed, D)


def trained(h, tokens, embed, m, layer, depth):
    """The states of depths 1 … depth in one pass over the text: at depth k the places 0 … T - k, told t_k … t_T."""
    states = []
    for k in range(1, depth + 1):
        h = mtp.module(h[: len(tokens) - k], tokens[k:], embed, m, layer)
        states.append(h)
    return states


def drafted_laws(w, layer, place, steps, tokens):
    """The laws of the draft that begins at this place and is told these tokens, as a function of its weights."""
    return lambda h, embed, m, head: mtp.draft(h, w.tokens[1 : place + 2], steps, embed, m, layer.spec, head, Forced([*tokens, 0]))[1]


# Training and drafting


@given(seeds, st.integers(2, 5), st.integers(1, 3))
def test_drafting_computes_what_training_computes_at_every_depth_and_place(seed, T, gamma):
    """Told the true tokens, step k of the draft that begins at place i has the law of depth k at place i."""
    w, layer = toy(seed, T)
    states = trained(w.features, w.tokens, w.embed, w.fc, layer.spec, min(gamma, T))
    for i in range(T):
        steps = min(gamma, T - i)
        run = drafted_laws(w, layer, i, steps, w.tokens[i + 2 :])
        expected = bounded(run, w.features[: i + 1], w.embed, w.fc, w.head, precision=FLOAT64)
        agree(np.stack([eagle.softmax(w.head @ states[k][i]) for k in range(steps)]), expected, "laws")


@given(seeds, st.integers(2, 5), st.integers(1, 3))
def test_states_of_all_depths_agree(fast, seed, T, depth):
    w, layer = toy(seed, T)
    h, tokens, embed, m, _ = w.tensors()
    depth, actual = min(depth, T), []
    for k in range(1, depth + 1):
        h = fast.module(h[:, : T + 1 - k], tokens[:, k:], embed, m, layer.fast)
        actual.append(h)
    run = lambda h, embed, m: np.concatenate(trained(h, w.tokens, embed, m, layer.spec, depth))
    agree(torch.cat(actual, 1)[0], bounded(run, w.features, w.embed, w.fc, precision=FLOAT32), "states")


@given(seeds, st.integers(2, 5), st.integers(1, 3), st.data())
def test_depth_k_hears_of_one_token_more_than_the_depth_before(seed, T, depth, data):
    """To the bit: changing t_j moves place j - k of depth k, and no place before it."""
    w, layer = toy(seed, T)
    j = data.draw(st.integers(1, T))
    changed = w.tokens.copy()
    changed[j] = (changed[j] + 1) % 5
    depth = min(depth, T)
    before, after = (trained(w.features, tokens, w.embed, w.fc, layer.spec, depth) for tokens in (w.tokens, changed))
    for k in range(1, depth + 1):
        first = max(j - k, 0)
        exactly(after[k - 1][:first], before[k - 1][:first], f"places before {first} of depth {k}")
        assert j < k or first >= len(after[k - 1]) or np.any(after[k - 1][first] != before[k - 1][first]), f"depth {k} does not hear of it"


@given(seeds, places)
def test_the_first_depth_is_eagle_on_normalized_inputs(seed, T):
    """M reads the state first, EAGLE's FC the embedding."""
    w, layer = toy(seed, T)
    swapped = np.concatenate([w.fc[:, 4:], w.fc[:, :4]], axis=1)
    run = lambda h, embed, m: mtp.module(h, w.tokens[1:], embed, m, layer.spec)
    expected = bounded(run, w.features, w.embed, w.fc, precision=FLOAT64)
    agree(eagle.predict(mtp.normalize(w.features), w.tokens, mtp.normalize(w.embed), swapped, layer.spec), expected, "states")


@given(models(3, 3), seeds, st.integers(1, 2), st.integers(0, 2))
def test_text_drafted_by_any_module_has_the_targets_law(target, seed, n, gamma):
    w, layer = toy(seed, n, V=3, D=2)

    def program(rng):
        drafted, q = mtp.draft(w.features, w.tokens[1:], gamma, w.embed, w.fc, layer.spec, w.head, Rational(rng))
        p = [target(tuple(drafted[:i])) for i in range(gamma + 1)]
        kept, token = chain.verify(p, [rational(row) for row in q], drafted, rng)
        return (*drafted[:kept], token)

    rounds.lossless(program, target, gamma + 1)


@given(seeds, st.lists(places, min_size=1, max_size=3), gammas)
def test_laws_agree_for_requests_of_any_lengths(fast, seed, lengths, gamma):
    """On the tokens that the batch drafted; padding is not read."""
    n = max(lengths)
    ws, layer = [toy(seed + b, n)[0] for b in range(len(lengths))], tiny_models.attention(seed, 4)
    h, token = np.stack([w.features for w in ws]), np.stack([w.tokens[1:] for w in ws])
    for b, length in enumerate(lengths):
        h[b, length:], token[b, length:] = np.nan, 10**15
    embed, m, head = (tensor(x, "float32") for x in ws[0][2:])
    drafted, q = fast.draft(tensor(h, "float32"), tensor(token), gamma, embed, m, layer.fast, head, lengths=tensor(np.array(lengths)))
    assert drafted.shape == (len(lengths), gamma) and q.shape == (len(lengths), gamma, 5)
    exactly(q.gather(2, drafted[:, :, None])[:, :, 0], q.amax(2), "the drafted token's probability")
    for b, length in enumerate(lengths):
        run = drafted_laws(ws[b], layer, length - 1, gamma, drafted[b])
        agree(q[b], bounded(run, h[b, :length], *ws[0][2:], precision=FLOAT32), "laws")


@few
@given(seeds)
def test_tokens_are_drawn_from_the_rows_that_come_back(fast, seed):
    w, layer = toy(seed, 2)
    h, tokens, embed, m, head = w.tensors(B=4)
    run = lambda **how: fast.draft(h, tokens[:, 1:], 2, embed, m, layer.fast, head, **how)
    request, position = torch.tensor([3, 1, 2**40, 0]), torch.tensor([0, 7, 1, 2**33])
    drafted, q = run(seed=seed, request=request, position=position)
    uniform = philox.uniform(seed, philox.DRAFT, request, position, 2)
    exactly(run(uniform=uniform)[0], array(drafted), "the same uniforms, given")
    for b in range(4):
        for step in range(2):
            tape = Certified(token=[float(uniform[b, step])])
            expected = tape.categorical(exact(array(q[b, step])))
            assert not tape.sure or int(drafted[b, step]) == expected


@given(seeds, st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=3), st.integers(1, 3))
def test_with_a_cache_every_round_drafts_as_from_scratch(fast, seed, news, gamma):
    """Requests of different lengths, some without news; the tokens of the text are not those that were drafted."""
    ends = np.cumsum(news, axis=0)
    ws, layer = [toy(seed + b, int(ends[-1].max()))[0] for b in range(2)], tiny_models.attention(seed, 4)
    embed, m, head = (tensor(x, "float32") for x in ws[0][2:])
    cache, done = (), np.zeros(2, dtype=int)
    for new, end in zip(news, ends, strict=True):
        h, token = np.full((2, 3, 4), np.nan), np.full((2, 3), 10**15)
        for b in range(2):
            h[b, : new[b]], token[b, : new[b]] = ws[b].features[done[b] : end[b]], ws[b].tokens[done[b] + 1 : end[b] + 1]
        drafted, q, cache = fast.draft(
            tensor(h, "float32"), tensor(token), gamma, embed, m, layer.cached, head, lengths=torch.tensor(new), cache=cache
        )
        assert new[1] or (drafted[1] == -1).all()
        for b in range(1 + (new[1] > 0)):
            run = drafted_laws(ws[b], layer, end[b] - 1, gamma, drafted[b])
            agree(q[b], bounded(run, ws[b].features[: end[b]], *ws[0][2:], precision=FLOAT32), "laws, with a cache")
        done = end
    assert cache.places.tolist() == ends[-1].tolist()
    with pytest.raises(ValueError, match="gamma must stay"):
        fast.draft(tensor(h, "float32"), tensor(token), gamma + 1, embed, m, layer.cached, head, cache=cache)


@pytest.mark.parametrize("cached", [False, True])
def test_no_place_to_draft_from_gives_minus_one(fast, cached):
    w, layer = toy(0, 2)
    h, tokens, embed, m, head = w.tensors(B=2)
    h[1] = torch.nan
    face, options = (layer.cached, {"cache": ()}) if cached else (layer.fast, {})
    for uniform in (None, torch.full((2, 2), 0.5)):
        drafted, q, *_ = fast.draft(h, tokens[:, 1:], 2, embed, m, face, head, lengths=torch.tensor([2, 0]), uniform=uniform, **options)
        nothing = fast.draft(h[:, :0], tokens[:, :0], 2, embed, m, face, head, uniform=uniform, **options)
        assert (nothing[0] == -1).all() and nothing[1].isnan().all()
        assert (drafted[0] >= 0).all() and drafted[1].tolist() == [-1, -1] and q[1].isnan().all() and not q[0].isnan().any()


def some(**changes):
    right = {"h": torch.ones(2, 3, 4), "token": torch.zeros(2, 3, dtype=torch.int64), "embed": torch.ones(5, 4), "m": torch.ones(4, 8)}
    return right | {"head": torch.ones(5, 4), "layer": lambda z: z, "gamma": 2} | changes


@pytest.mark.parametrize(("wrong", "message"), [
    ({"h": torch.ones(3, 4)}, "h must"), ({"token": torch.zeros(2, 4, dtype=torch.int64)}, "token must"),
    ({"token": torch.zeros(2, 3)}, "token must"), ({"embed": torch.ones(5, 3)}, "embed must"), ({"m": torch.ones(4, 4)}, "m must"),
    ({"m": torch.ones(4, 8).double()}, "m must"), ({"head": torch.ones(6, 4)}, "head must"), ({"gamma": -1}, "gamma must"),
    ({"lengths": torch.ones(3, dtype=torch.int64)}, "lengths must"), ({"uniform": torch.ones(2, 3)}, "uniform must"),
    ({"uniform": torch.ones(2, 2), "seed": 1}, "uniform excludes"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.draft(**some(**wrong))


@pytest.mark.parametrize("cached", [False, True])
def test_it_compiles_and_gradients_reach_every_weight(fast, cached):
    w, layer = toy(3, 3)
    h, tokens, embed, m, head = w.tensors(B=2)
    face, options = (layer.cached, {"cache": ()}) if cached else (layer.fast, {})
    call = lambda h, **how: fast.draft(h, tokens[:, 1:], 2, embed, m, face, head, **how, **options)[:2]
    uniform = torch.full((2, 2), 0.4)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(h, uniform=uniform)
    for actual, eager in zip(compiled, call(h, uniform=uniform), strict=True):
        exactly(actual, eager, "compiled")
    weights = [x.requires_grad_() for x in (h, embed, m, head)]
    q = call(h)[1]
    assert all(slope.abs().sum() > 0 and slope.isfinite().all() for slope in torch.autograd.grad(q[:, :, 0].sum(), weights))
