"""From logits and settings to tokens: the rule of the chain on the warped laws, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, seeds, tensor
from twofold.fast.speculative import chain as fast_chain
from twofold.fast.speculative import cutoff as fast_cutoff
from twofold.fast.speculative import match as fast_match
from twofold.spec.rng import Tape
from twofold.spec.speculative import chain, from_logits, match, warp

settings = st.fixed_dictionaries(
    {}, optional={"T": st.sampled_from([0, 0.5, 2]), "k": st.sampled_from([1, 3]), "mass": st.just(0.8), "ratio": st.just(0.2)}
)


def problem(rng, B, gamma, V, certain, T=1.0, **cuts):
    """Logits of target and drafter, alike here and there, and drafts that the drafter's warped law could have drawn."""
    d = rng.standard_normal((B, gamma, V))
    target = 2 * np.where(rng.random((B, gamma + 1, 1)) < 0.5, np.concatenate([d, rng.standard_normal((B, 1, V))], 1), 0)
    target = target + rng.standard_normal((B, gamma + 1, V)) * (target == 0)
    rows = [[warp.pipeline(row, T=T, **cuts) for row in rows] for rows in d]
    draft = np.array([[rng.choice(V, p=row) for row in some] for some in rows], dtype=np.int64).reshape(B, gamma)
    return target, None if certain else d, draft, rng.integers(0, gamma + 1, B)


class Told(Tape):
    """A tape that writes down every probability that it is asked for."""

    def __init__(self, accept, token):
        super().__init__(accept, token)
        self.asked = []

    def bernoulli(self, probability):
        self.asked.append(float(probability))
        return super().bernoulli(probability)

    def categorical(self, probabilities):
        self.asked += np.asarray(probabilities, dtype=float).tolist()
        return super().categorical(probabilities)


@given(st.integers(0, 3), st.sampled_from([1, 5]), seeds, settings, st.booleans())
@example(2, 5, 1, {"k": 3}, False)
@example(2, 5, 2, {"mass": 0.8}, False)
def test_the_spec_is_the_chain_on_warped_rows(gamma, V, seed, setting, certain):
    rng = np.random.default_rng(seed)
    target, drafter, draft, _ = problem(rng, 1, gamma, V, certain, **setting)
    one, other = (Told(*uniforms) for uniforms in [(rng.random(gamma), rng.random(1))] * 2)
    p = [warp.pipeline(row, **setting) for row in target[0]]
    q = [np.eye(V)[x] for x in draft[0]] if certain else [warp.pipeline(row, **setting) for row in drafter[0]]
    found = from_logits.verify(target[0], draft[0].tolist(), None if certain else drafter[0], one, **setting)
    assert found == chain.verify(p, q, draft[0].tolist(), other)
    assert one.asked == other.asked  # not only the same decisions: the same probabilities


@given(st.integers(1, 4), seeds, settings)
def test_a_tree_is_matched_on_warped_rows(N, seed, setting):
    rng = np.random.default_rng(seed)
    logits, tokens, parents = rng.standard_normal((N, 5)), rng.integers(0, 5, N), [-1, *(int(rng.integers(0, n)) for n in range(1, N))]
    uniforms = rng.random(N)
    expected = match.verify_tree([warp.pipeline(row, **setting) for row in logits], tokens, parents, Tape(token=uniforms))
    assert from_logits.verify_tree(logits, tokens, parents, Tape(token=uniforms), **setting) == expected


@given(st.integers(0, 3), st.sampled_from([1, 5]), seeds, settings, st.booleans(), dtypes())
@example(3, 5, 1, {"T": 2, "k": 3}, False, "bfloat16")
@example(2, 2049, 2, {"mass": 0.8}, False, "float32")
@example(2, 5, 3, {}, True, "float32")
def test_tokens_are_those_of_the_chain_bit_for_bit(fast, gamma, V, seed, setting, certain, dtype):
    rng = np.random.default_rng(seed)
    target, drafter, draft, lengths = problem(rng, 3, gamma, V, certain, **setting)
    logits, draft = tensor(target, dtype), tensor(draft)
    drafts = None if certain else tensor(drafter, dtype)
    uniforms = {"accept": tensor(rng.random((3, gamma)), "float32"), "token": tensor(rng.random(3), "float32"), "lengths": tensor(lengths)}
    found = fast.verify(logits, draft, drafts, **setting, **uniforms)
    p = fast_cutoff.restore(logits, fast_cutoff.row(logits, **setting))
    if certain:
        expected = fast_chain.verify_onehot(p, draft, **uniforms)
    else:
        expected = fast_chain.verify(p, fast_cutoff.restore(drafts, fast_cutoff.row(drafts, **setting)), draft, **uniforms)
    exactly(array(found[0]), array(expected[0]), "kept")
    exactly(array(found[1]), array(expected[1]), "token")


@given(st.integers(1, 4), seeds, settings)
def test_trees_are_those_of_exact_match_bit_for_bit(fast, N, seed, setting):
    rng = np.random.default_rng(seed)
    logits = tensor(rng.standard_normal((3, N, 7)), "float32")
    tokens = tensor(rng.integers(0, 7, (3, N)))
    parents = tensor(np.array([[-1, *(int(rng.integers(0, n)) for n in range(1, N))] for _ in range(3)]))
    options = {"lengths": tensor(rng.integers(1, N + 1, 3)), "token": tensor(rng.random((3, N)), "float32")}
    found = fast.verify_tree(logits, tokens, parents, **setting, **options)
    p = fast_cutoff.restore(logits, fast_cutoff.row(logits, **setting))
    for actual, expected in zip(found, fast_match.verify_tree(p, tokens, parents, **options), strict=True):
        exactly(array(actual), array(expected), "tree")


def test_greedy_and_sampled_requests_share_a_batch(fast):
    rng = np.random.default_rng(3)
    target, drafter, draft, _ = problem(rng, 8, 2, 6, False)
    T, k = tensor(np.array([0.0, 1.0, 0.5, 0.0, 3.0, 3.0, 3.0, 3.0]), "float32"), tensor(np.array([0, 2, 0, 3, 0, 0, 0, 0]))
    draft[[0, 3]] = drafter[[0, 3]].argmax(-1)
    some = lambda b: (tensor(target[b], "float32"), tensor(draft[b]), tensor(drafter[b], "float32"))
    together = fast.verify(*some(slice(None)), T=T, k=k, seed=5)
    for b in range(8):
        each = slice(b, b + 1)
        alone = fast.verify(*some(each), T=float(T[b]), k=int(k[b]), seed=5, request=torch.tensor([b]))
        assert [int(x) for x in alone] == [int(x[b]) for x in together]
    for b in (0, 3):  # greedy: the prefix that the target's likeliest tokens repeat
        likeliest = target[b].argmax(-1)
        kept = next((i for i in range(2) if draft[b, i] != likeliest[i]), 2)
        assert [int(x[b]) for x in together] == [kept, likeliest[kept]]


@given(seeds)
def test_what_lies_past_a_draft_does_not_matter(fast, seed):
    rng = np.random.default_rng(seed)
    target, drafter, draft, lengths = problem(rng, 3, 2, 5, False)
    call = lambda: fast.verify(
        tensor(target, "float32"), tensor(draft), tensor(drafter, "float32"), k=3, lengths=tensor(lengths), seed=seed
    )
    before = call()
    for b, n in enumerate(lengths):
        target[b, n + 1 :], drafter[b, n:], draft[b, n:] = np.nan, np.nan, 10**15
    for actual, expected in zip(call(), before, strict=True):
        exactly(array(actual), array(expected), "tokens")


def test_a_row_without_a_law_gives_no_token(fast):
    logits = torch.zeros(3, 2, 4)
    logits[0, 0, 1], logits[1, 1] = torch.nan, -torch.inf
    uniforms = {"accept": torch.zeros(3, 1), "token": torch.zeros(3)}
    kept, token = fast.verify(logits, torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1, 4), **uniforms)
    assert kept.tolist() == [0, 1, 1] and token.tolist() == [-1, -1, 0]


def test_what_the_drafter_cannot_have_drawn_is_refused(fast):
    """Of top-1 rows only the likeliest token can have been drawn: not one that the target likes, nor one that neither would write."""
    logits = torch.tensor([[[3.0, 0.0, 0.0]] * 2, [[0.0, 3.0, 0.0]] * 2])
    uniforms = {"accept": torch.zeros(2, 1), "token": torch.zeros(2)}
    kept, token = fast.verify(logits, torch.tensor([[2], [1]]), torch.tensor([[[3.0, 0.0, 0.0]]] * 2), k=1, **uniforms)
    assert kept.tolist() == [0, 0] and token.tolist() == [0, 1]


def test_seeded_tokens_follow_the_warped_law(fast):
    B = 20_000 if fast.side == "torch" else 30
    logits, drafts = torch.tensor([[1.0, 0.0, -1.0, 0.5], [0.0, 2.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.5, 0.0]])
    T, mass = 0.7, 0.9
    q = warp.pipeline(drafts[0].numpy().astype(float), T=T, mass=mass)
    draft = tensor(np.random.default_rng(1).choice(4, (B, 1), p=q))
    kept, token = fast.verify(logits.expand(B, 2, 4), draft, drafts.expand(B, 1, 4), T=T, mass=mass, seed=9)
    emitted = [(int(x), int(t)) if n else (int(t),) for x, n, t in zip(draft[:, 0], kept, token, strict=True)]
    p, bonus = (warp.pipeline(row.numpy().astype(float), T=T, mass=mass) for row in logits)
    law = {(v,): max(p[v] - q[v], 0) for v in range(4)} | {(x, y): min(p[x], q[x]) * bonus[y] for x in range(4) for y in range(4)}
    consistent(emitted, {text: weight for text, weight in law.items() if weight > 0})
    if B >= 20_000:
        with pytest.raises(AssertionError, match="do not follow the law"):
            unwarped = warp.pipeline(logits[1].numpy().astype(float), T=1.0)
            consistent(emitted, law | {(x, y): min(p[x], q[x]) * unwarped[y] for x in range(4) for y in range(4) if p[x] and q[x]})


HALF, DRAFT = torch.zeros(2, 3, 4), torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(logits=HALF[:, :2]), "logits must have shape"), (dict(logits=HALF.double()), "logits must have dtype"),
    (dict(draft=DRAFT.float()), "draft must have dtype"), (dict(draft_logits=HALF), "draft_logits must have"),
    (dict(draft_logits=HALF[:, :2].bfloat16()), "draft_logits must have the dtype"), (dict(T=-1), "T must lie"),
    (dict(k=torch.zeros(3)), "k must have shape"), (dict(seed=None), "give either"), (dict(lengths=torch.zeros(3).long()), "lengths must"),
    (dict(logits=HALF.transpose(1, 2).contiguous().transpose(1, 2)), "contiguous along its last axis"),
    (dict(accept=torch.zeros(2, 2)), "go together"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    right = dict(logits=HALF, draft=DRAFT, draft_logits=None, seed=1)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify(**right | arguments)


def test_inputs_stay_as_they_were_and_compilers_see_through(fast):
    logits, drafts = torch.linspace(-1, 1, 24).view(2, 3, 4), torch.linspace(1, -1, 16).view(2, 2, 4)
    copies = logits.clone(), drafts.clone()
    call = lambda logits, drafts: fast.verify(logits, DRAFT, drafts, T=0.7, k=3, mass=0.9, ratio=0.1, seed=3)
    expected = call(logits, drafts)
    assert torch.equal(logits, copies[0]) and torch.equal(drafts, copies[1]) and not DRAFT.any()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(logits, drafts)
    assert all(torch.equal(a, b) for a, b in zip(expected, compiled, strict=True))
