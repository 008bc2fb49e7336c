"""The loop on a batch writes the spec's text, whatever stands beside a request, with a cache or without."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, seeds
from twofold.conformance.law import autoregressive
from twofold.conformance.speculative.batched import TABLES, Counters, branching, model, place, reader
from twofold.conformance.speculative.test_decoding import WAYS
from twofold.fast.kernels import philox
from twofold.fast.speculative import block, chain, match, specinfer
from twofold.spec.speculative import decoding

drawn = ["chain", "block", "match", "tree by match", "tree by recursive rejection"]


def without_q(propose):
    return lambda *state, **draws: (*propose(*state, **draws)[:3], None)


def by_match(p, q, tokens, parents, **keywords):
    return match.verify_tree(p, tokens, parents, **keywords)


def ways(fast):
    chains = fast.draft_model(model("drafter"), 2)
    return {
        "chain": (chains, fast.on_chain(chain.verify)),
        "block": (chains, fast.on_chain(block.verify)),
        "match": (without_q(chains), fast.on_chain(match.verify)),
        "tree by match": (without_q(branching), by_match),
        "tree by recursive rejection": (branching, specinfer.verify_tree),
    }


def specified(way, prompt, max_new, seed, request, eos):
    """The spec's text for one request under the contract of counters."""
    rows = lambda name: lambda text: TABLES[name][place(text)]
    propose, verify = WAYS[way](rows("drafter"))
    rng = Counters(seed, request)

    def proposed(context, room, rng):
        rng.begin(len(context), philox.DRAFT)
        return propose(context, room, rng)

    def verified(p, q, tokens, parents, rng):
        rng.begin(rng.position, philox.TOKEN)
        return verify(p, q, tokens, parents, rng)

    return decoding.generate(decoding.uncached(rows("target")), proposed, verified, prompt, max_new, rng, eos=eos)


PROMPTS, REQUESTS = [[0, 1], [2], []], [3, 2**35, 0]


def batch(prompts=PROMPTS):
    tokens = torch.full((len(prompts), max(map(len, prompts))), 9)  # what is not prompt is no token at all
    for b, prompt in enumerate(prompts):
        tokens[b, : len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
    return tokens, torch.tensor([len(prompt) for prompt in prompts])


def run(fast, way, max_new, seed, prompts=PROMPTS, requests=REQUESTS, **keywords):
    propose, verify = ways(fast)[way]
    tokens, lengths = batch(prompts)
    score = keywords.pop("score", None) or fast.uncached(model("target"))
    return fast.generate(
        score, propose, verify, tokens, max_new, lengths=lengths, seed=seed, request=torch.tensor(requests), **keywords
    )  # fmt: skip


@given(st.sampled_from(drawn), st.integers(1, 5), seeds, st.sampled_from([None, 1]))
@example("tree by recursive rejection", 5, 1, None)
@example("tree by match", 5, 2, None)
@example("block", 5, 3, 1)
def test_text_is_the_specs_under_the_contract_of_counters(fast, way, max_new, seed, eos):
    new, passes = run(fast, way, max_new, seed, eos=eos)
    for b, (prompt, request) in enumerate(zip(PROMPTS, REQUESTS, strict=True)):
        text, calls = specified(way, prompt, max_new, seed, request, eos)
        exactly(array(new[b]), np.array(text + [-1] * (max_new - len(text))), f"{way}, request {b}")
        assert int(passes[b]) == calls


@given(st.sampled_from(drawn), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, way, seed):
    new, passes = run(fast, way, 3, seed, eos=2)
    for b in range(len(PROMPTS)):
        alone = run(fast, way, 3, seed, PROMPTS[b : b + 1], REQUESTS[b : b + 1], eos=2)
        exactly(array(alone[0][0]), array(new[b]), "text")
        exactly(array(alone[1][0]), array(passes[b]), "passes")


@given(st.sampled_from(drawn), seeds, st.integers(1, 5))
@example("tree by match", 1, 5)
@example("tree by match", 2, 5)
@example("tree by recursive rejection", 3, 5)
def test_a_cache_changes_nothing(fast, way, seed, max_new):
    prompts, log = [[0, 1, 2], [2], [1, 1]], []
    cache = torch.full((3, 16), 77)
    tokens, lengths = batch(prompts)
    score, keep = fast.cached(reader("target", cache, log), tokens, cache=[cache], lengths=lengths)
    cached = run(fast, way, max_new, seed, prompts, eos=1, score=score, keep=keep)
    plain = run(fast, way, max_new, seed, prompts, eos=1)
    exactly(array(cached[0]), array(plain[0]), "text")
    exactly(array(cached[1]), array(plain[1]), "passes")
    assert log[0] == [2, 0, 1] and len(log) == 1 + int(plain[1].max())  # the prompts, then one pass a round
    for b, prompt in enumerate(prompts):  # the cache holds all of the text but its last token
        text = prompt + [token for token in plain[0][b].tolist() if token >= 0]
        assert cache[b, : len(text) - 1].tolist() == text[:-1]


@given(seeds)
def test_a_drafters_cache_changes_nothing(fast, seed):
    """And of the text it reads what it has not read: one token after a refusal, two where all was kept."""
    prompts, cache, log, lengths = [[0, 1, 2], [2], [1, 1]], torch.full((3, 16), 77), [], [torch.zeros(3, dtype=torch.int64)]
    drafter = fast.remembering(reader("drafter", cache, log), cache=[cache])
    tokens, starts = batch(prompts)
    call = lambda drafter, **keywords: fast.generate(
        fast.uncached(model("target")), fast.draft_model(drafter, 2), fast.on_chain(chain.verify), tokens, 5, lengths=starts, seed=seed,
        **keywords,
    )  # fmt: skip
    cached = call(drafter, report=lambda new, written: lengths.append(written))
    exactly(array(cached[0]), array(call(model("drafter"))[0]), "text")
    drafts = [min(2, int(left.max())) for written in lengths[:-1] if (left := 4 - written).max() > 0]  # of the longest draft, per round
    firsts = np.cumsum([0, *drafts])[:-1]
    assert log[0] == [3, 1, 2] and len(log) == sum(drafts)
    for first, before, after in zip(firsts[1:], lengths, lengths[1:], strict=False):
        for b in range(3):
            if int(after[b]) < 4:  # this request drafts again
                assert log[first][b] == (2 if int(after[b] - before[b]) == 1 + min(2, 4 - int(before[b])) > 1 else 1)
    with pytest.raises(ValueError, match="one row per request"):
        drafter(tokens, torch.ones(3, 2, dtype=torch.int64))


def test_seeded_text_follows_the_exact_law(fast):
    """With a penalty and an end token; the interpreter takes a millisecond per program."""
    B = 20_000 if fast.side == "torch" else 20
    half = torch.tensor([1.0, 0.5])

    def warp(rows, text, ends, tokens, parents):  # what was written before, or stands on the way, has half its mass
        steps = torch.arange(tokens.shape[1])
        path = (steps[1:] <= steps[:, None]).expand(len(text), -1, -1)  # chains: node n has seen drafts 1 … n
        drafted = (tokens[:, None, 1:, None] == torch.arange(3)) & path[..., None]
        written = (text[:, :, None] == torch.arange(3)) & (torch.arange(text.shape[1]) < ends[:, None])[..., None]
        p = rows * half[(drafted.any(2) | written.any(1)[:, None]).long()]
        return p / p.sum(-1, keepdim=True)

    def warped(text):
        p = TABLES["target"][place(text)] / np.array([1 + (v in text) for v in range(3)])
        return p / p.sum()

    propose, verify = ways(fast)["chain"]
    empty = torch.zeros(B, 0, dtype=torch.int64)
    new, _ = fast.generate(fast.uncached(model("target")), propose, verify, empty, 3, warp=warp, seed=5)
    texts = [tuple(text) for text in new.tolist()]
    consistent(texts, autoregressive(warped, 3))
    if B >= 20_000:
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(texts, autoregressive(lambda text: TABLES["target"][place(text)], 3))


def test_progress_is_reported_and_nothing_is_written_past_the_end(fast):
    cycle = lambda tokens, ends: torch.eye(3)[(tokens.gather(1, ends - 1) + 1) % 3]
    told = []
    new, passes = fast.generate(
        fast.uncached(cycle), fast.draft_model(cycle, 2), fast.on_chain(chain.verify), torch.tensor([[0], [1]]), 7, eos=0, seed=1,
        report=lambda new, written: told.append((new.tolist(), written.tolist())),
    )  # fmt: skip
    assert new.tolist() == [[1, 2, 0, -1, -1, -1, -1], [2, 0, -1, -1, -1, -1, -1]] and passes.tolist() == [1, 1]
    assert told == [(new.tolist(), [3, 2])]
    none = fast.generate(fast.uncached(cycle), fast.draft_model(cycle, 0), by_match, torch.tensor([[0]]), 0, seed=1)
    assert none[0].shape == (1, 0) and none[1].tolist() == [0]


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(seed=None), "give a seed"), (dict(prompt=torch.zeros(2)), "prompt must have"), (dict(max_new=-1), "max_new must be at least 0"),
    (dict(lengths=torch.tensor([3])), "lengths must lie in 0"), (dict(lengths=torch.tensor([1, 1])), "lengths must have"),
    (dict(request=torch.zeros(1)), "request must have dtype"), (dict(prompt=torch.zeros(1, 1)), "prompt must have dtype"),
    (dict(score=lambda *state: torch.full((1, state[2].shape[1], 3), torch.nan)), "holds a NaN"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    propose, verify = ways(fast)["chain"]
    right = dict(score=fast.uncached(model("target")), propose=propose, verify=verify, prompt=torch.tensor([[0]]), max_new=2, seed=1)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.generate(**right | arguments)
    with pytest.raises(ValueError, match="gamma must be at least 0"):
        fast.draft_model(model("drafter"), -1)
    with pytest.raises(ValueError, match="at least one token per request"):
        fast.cached(reader("target", torch.zeros(1, 4)), torch.zeros(1, 0, dtype=torch.int64))
