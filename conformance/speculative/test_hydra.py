"""Hydra: each head hears of the tokens before its own and of no other, and without hearing it is Medusa."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.inputs import array, rounded, seeds, tensor
from twofold.conformance.law import models
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.test_eagle import Forced, Rational, rational
from twofold.conformance.tape import Certified, exact
from twofold.fast.kernels import philox
from twofold.spec.speculative import chain, hydra, match, medusa

FLOAT32 = Precision("float32")
few = settings(max_examples=max(3, settings().max_examples // 5))  # each draw takes the interpreter some milliseconds
counts = st.integers(1, 3)
ranks = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), max_size=5)
trees = ranks.map(lambda nodes: [node[:d] for node in nodes for d in range(1, len(node) + 1)])  # with all parents


def toy(seed, K=3, V=5, D=3, exact=False):
    """A state and a token, then embed, w1, b1, w2: normal, or small integers."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.integers(-1, 2, shape).astype(float) if exact else rounded(rng.standard_normal(shape), "float32")
    heads = draw(V, D), [draw(D, (k + 2) * D) for k in range(K)], draw(K, D), draw(K, V, D)
    return draw(D), int(rng.integers(0, V)), heads


def tensors(heads):
    return [[tensor(w, "float32") for w in x] if isinstance(x, list) else tensor(x, "float32") for x in heads]


def deaf(heads, D=3):
    """The same heads with zeros in every column of w1 that reads a token."""
    embed, w1, b1, w2 = heads
    return embed, [np.hstack([w[:, :D], 0 * w[:, D:]]) for w in w1], b1, w2


# What a head hears


@given(seeds, counts, st.data())
def test_a_head_hears_of_the_tokens_before_its_own_and_of_no_other(seed, K, data):
    h, _, heads = toy(seed, K)
    told = np.random.default_rng(seed).integers(0, 5, K)
    j, changed = data.draw(st.integers(0, K - 1)), told.copy()
    changed[j] = (changed[j] + 1) % 5
    before, after = hydra.heads(h, told, *heads), hydra.heads(h, changed, *heads)
    exactly(after[:j], before[:j], "heads before the changed token")
    assert all(np.any(after[k] != before[k]) for k in range(j, K)), "a head that does not hear of a token before its own"


@given(seeds, counts, trees)
def test_heads_that_are_deaf_to_tokens_are_medusas(seed, K, tree):
    h, token, heads = toy(seed, K, exact=True)
    tree, (embed, w1, b1, w2) = [node for node in tree if len(node) <= K], deaf(heads)
    logits = medusa.heads(h, np.stack([w[:, :3] for w in w1]), b1, w2)
    exactly(hydra.heads(h, [token] * K, embed, w1, b1, w2), logits, "logits")
    tokens, parents = medusa.candidates(np.argsort(-logits, axis=1, kind="stable"), tree)
    assert hydra.candidates(h, token, embed, w1, b1, w2, tree) == ([token, *tokens[1:]], parents)


@given(seeds, trees)
def test_every_candidate_is_a_guess_given_its_own_path(seed, tree):
    h, token, heads = toy(seed)
    tokens, parents = hydra.candidates(h, token, *heads, tree)
    order = [(), *sorted(set(tree), key=lambda node: (len(node), node))]
    assert tokens[0] == token and parents[0] == -1 and len(tokens) == len(order)
    for n in range(1, len(tokens)):
        assert order[parents[n]] == order[n][:-1]
        path, at = [], parents[n]
        while at >= 0:
            path, at = [tokens[at], *path], parents[at]
        logits = hydra.heads(h, path, *heads)[-1]
        better = sum((logits > logits[tokens[n]]) | ((logits == logits[tokens[n]]) & (np.arange(5) < tokens[n])))
        assert better == order[n][-1], f"node {n} is not of rank {order[n][-1]}"
    chain_of_best = hydra.candidates(h, token, *heads, [(0,), (0, 0), (0, 0, 0)])[0]
    assert chain_of_best[1:] == hydra.draft(h, token, *heads, 3)[0]


@given(models(3, 3), seeds, st.integers(0, 2), trees)
def test_chains_and_trees_of_any_heads_keep_the_targets_law(target, seed, gamma, tree):
    h, token, heads = toy(seed, K=2, V=3)

    def by_chain(rng):
        drafted, q = hydra.draft(h, token, *heads, gamma, Rational(rng))
        p = [target(tuple(drafted[:i])) for i in range(gamma + 1)]
        kept, last = chain.verify(p, [rational(row) for row in q], drafted, rng)
        return (*drafted[:kept], last)

    tokens, parents = hydra.candidates(h, token, *heads, [node for node in tree if len(node) <= 2])
    contexts = [()]
    for n in range(1, len(tokens)):
        contexts.append((*contexts[parents[n]], tokens[n]))

    def by_tree(rng):
        path, last = match.verify_tree([target(context) for context in contexts], tokens, parents, rng)
        return (*(tokens[node] for node in path), last)

    rounds.lossless(by_chain, target, gamma + 1)
    rounds.lossless(by_tree, target, 3)


@pytest.mark.parametrize("told", [[], [0, 0, 0, 0]])
def test_no_head_is_told_nothing_or_more_than_all(told):
    h, _, heads = toy(0)
    with pytest.raises(ValueError, match="told must"):
        hydra.head(h, told, *heads)


# The batch


@given(seeds, counts, st.sampled_from([1, 4]))
def test_logits_agree(fast, seed, K, D):
    _, _, heads = toy(seed, K, V=7, D=D)
    rng = np.random.default_rng(seed + 1)
    h, told = rounded(rng.standard_normal((2, D)), "float32"), rng.integers(0, 7, (2, K))
    logits = fast.heads(tensor(h, "float32"), tensor(told), *tensors(heads))
    last = fast.head(tensor(h, "float32"), tensor(told), *tensors(heads))
    embed, w1, b1, w2 = heads
    run = lambda told: lambda h, embed, b1, w2, *w1: hydra.heads(h, told, embed, w1, b1, w2)
    for b in range(2):
        expected = bounded(run(told[b]), h[b], embed, b1, w2, *w1, precision=FLOAT32)
        agree(logits[b], expected, "logits")
        agree(last[b], expected[-1], "logits of the last head")


@given(seeds, st.integers(0, 3))
def test_laws_agree_along_a_chain(fast, seed, gamma):
    """On the tokens that the batch drafted."""
    states, heads = [toy(seed + b)[:2] for b in range(2)], toy(seed)[2]
    h, token = tensor(np.stack([h for h, _ in states]), "float32"), torch.tensor([token for _, token in states])
    drafted, q = fast.draft(h, token, *tensors(heads), gamma)
    assert drafted.shape == (2, gamma) and q.shape == (2, gamma, 5)
    exactly(q.gather(2, drafted[:, :, None])[:, :, 0], q.amax(2), "the drafted token's probability")
    embed, w1, b1, w2 = heads
    forced = lambda b: lambda h, embed, b1, w2, *w1: hydra.draft(h, states[b][1], embed, w1, b1, w2, gamma, Forced(drafted[b]))[1]
    for b in range(2):
        agree(q[b], bounded(forced(b), states[b][0], embed, b1, w2, *w1, precision=FLOAT32), "laws")


@given(seeds, trees)
def test_trees_are_the_specs_wherever_rounding_could_not_exchange_ranks(fast, seed, tree):
    states, (_, _, heads) = [toy(seed + b) for b in range(3)], toy(seed)
    h, token = np.stack([s[0] for s in states]), np.array([s[1] for s in states])
    tokens, parents = fast.candidates(tensor(h, "float32"), tensor(token), *tensors(heads), tree)
    for b in range(3):
        expected = hydra.candidates(h[b], token[b], *heads, tree)
        exactly(parents[b], np.array(expected[1]), "parents")
        if all(certain(h[b], path, heads) for path in paths(*expected) if len(path) <= 3):
            exactly(tokens[b], np.array(expected[0]), f"tokens of request {b}")


def certain(h, told, heads):
    """Whether no two of a head's logits lie within their bounds of each other."""
    embed, w1, b1, w2 = heads
    run = lambda h, embed, b1, w2, *w1: hydra.head(h, told, embed, w1, b1, w2)
    logits = bounded(run, h, embed, b1, w2, *w1, precision=FLOAT32)
    return np.diff(np.sort(logits.value)).min() > 2 * logits.error.max()


def paths(tokens, parents):
    found = [[tokens[0]]]
    for n in range(1, len(tokens)):
        found.append([*found[parents[n]], tokens[n]])
    return found


def test_ties_go_to_the_lowest_id(fast):
    h, _, heads = toy(1, K=1)
    embed, w1, b1, w2 = heads
    flat = embed, w1, b1, 0 * w2
    assert hydra.candidates(h, 4, *flat, [(0,), (2,), (1,)]) == ([4, 0, 1, 2], [-1, 0, 0, 0])
    tokens, parents = fast.candidates(tensor(h[None], "float32"), torch.tensor([4]), *tensors(flat), [(0,), (2,), (1,)])
    assert tokens.tolist() == [[4, 0, 1, 2]] and parents.tolist() == [[-1, 0, 0, 0]]
    assert fast.draft(tensor(h[None], "float32"), torch.tensor([4]), *tensors(flat), 1)[0].tolist() == [[0]]


@few
@given(seeds)
def test_tokens_are_drawn_from_the_rows_that_come_back(fast, seed):
    h, token, heads = toy(seed)
    state, root = tensor(np.stack([h, h, -h]), "float32"), torch.tensor([token] * 3)
    request, position = torch.tensor([3, 2**40, 0]), torch.tensor([0, 7, 2**33])
    drafted, q = fast.draft(state, root, *tensors(heads), 2, seed=seed, request=request, position=position)
    uniform = philox.uniform(seed, philox.DRAFT, request, position, 2)
    exactly(fast.draft(state, root, *tensors(heads), 2, uniform=uniform)[0], array(drafted), "the same uniforms, given")
    for b in range(3):
        for step in range(2):
            tape = Certified(token=[float(uniform[b, step])])
            expected = tape.categorical(exact(array(q[b, step])))
            assert not tape.sure or int(drafted[b, step]) == expected


def test_a_state_that_is_not_a_number_gives_minus_one_and_harms_no_other(fast):
    h, token, heads = toy(0)
    state, root = tensor(np.stack([h, h * np.nan]), "float32"), torch.tensor([token, token])
    for uniform in (None, torch.full((2, 2), 0.5)):
        drafted, q = fast.draft(state, root, *tensors(heads), 2, uniform=uniform)
        assert drafted[1].tolist() == [-1, -1] and (drafted[0] >= 0).all() and not q[0].isnan().any()


def some(**changes):
    right = {"h": torch.ones(2, 3), "token": torch.zeros(2, dtype=torch.int64), "embed": torch.ones(5, 3), "b1": torch.ones(2, 3)}
    return right | {"w1": [torch.ones(3, 6), torch.ones(3, 9)], "w2": torch.ones(2, 5, 3)} | changes


@pytest.mark.parametrize(("wrong", "message"), [
    ({"h": torch.ones(2, 4)}, "h must"), ({"token": torch.zeros(3, dtype=torch.int64)}, "token must"),
    ({"token": torch.zeros(2)}, "token must"),
    ({"embed": torch.ones(5)}, "embed must"), ({"b1": torch.ones(3, 3)}, "w2 must"), ({"w1": [torch.ones(3, 6)]}, "w1 must"),
    ({"w1": [torch.ones(3, 6), torch.ones(3, 6)]}, "w1.1. must"), ({"w2": torch.ones(2, 5, 3).double()}, "w2 must"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.draft(**some(**wrong), gamma=1)
    with pytest.raises(ValueError, match="gamma must"):
        fast.draft(**some(), gamma=3)
    for tree in ([(0, 0)], [(0,), (0, 0), (0, 0, 0)], [(5,)]):
        with pytest.raises(ValueError, match="choices must"):
            fast.candidates(**some(), choices=tree)


def test_it_compiles_and_gradients_reach_every_weight(fast):
    h, token, heads = toy(2)
    state, root, weights = tensor(h[None], "float32"), torch.tensor([token]), tensors(heads)
    call = lambda h: (*fast.draft(h, root, *weights, 3), *fast.candidates(h, root, *weights, [(0,), (1,), (0, 1)]))
    for compiled, eager in zip(torch.compile(call, fullgraph=True, backend="aot_eager")(state), call(state), strict=True):
        exactly(compiled, eager, "compiled")
    leaves = [x.requires_grad_() for x in (state, weights[0], *weights[1], *weights[2:])]
    logits = fast.heads(state, torch.tensor([[token, 1, 2]]), *weights)
    assert all(slope.abs().sum() > 0 and slope.isfinite().all() for slope in torch.autograd.grad(logits[..., 0].sum(), leaves))
