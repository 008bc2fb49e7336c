"""The decoding loop keeps the target's law whoever drafts and verifies, and its caches hold what was written, and nothing else."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.law import Model, autoregressive, law, models
from twofold.conformance.prove import Claim
from twofold.spec.rng import Sampler
from twofold.spec.speculative import block, chain, decoding, match, prompt_lookup, specinfer

PARENTS = [-1, 0, 0, 1]  # two branches, one of them two deep


def certain(propose):
    """The same drafts for verifiers that look at no q."""
    return lambda context, room, rng: (*propose(context, room, rng)[:2], None)


def branching(drafter):
    """A tree of fixed shape, every node drawn from its parent's row, by itself."""

    def propose(context, room, rng):
        texts, tokens = [context], [-1]
        for parent in PARENTS[1:]:
            tokens.append(rng.categorical(drafter(texts[parent])))
            texts.append([*texts[parent], tokens[-1]])
        return tokens, PARENTS, [drafter(text) for text in texts]

    return propose


def looked_up(context, room, rng):
    draft = prompt_lookup.draft(context, n_max=2, n_min=1, gamma=min(2, room))
    return [-1, *draft], range(-1, len(draft)), None


def by_match(p, q, tokens, parents, rng):
    return match.verify_tree(p, tokens, parents, rng)


WAYS = {  # drafters and verifiers that go together
    "chain": lambda drafter: (decoding.draft_model(drafter, 2), decoding.on_chain(chain.verify)),
    "block": lambda drafter: (decoding.draft_model(drafter, 2), decoding.on_chain(block.verify)),
    "match": lambda drafter: (certain(decoding.draft_model(drafter, 2)), decoding.on_chain(match.verify)),
    "lookup": lambda drafter: (looked_up, decoding.on_chain(chain.verify_onehot)),
    "tree by match": lambda drafter: (certain(branching(drafter)), by_match),
    "tree by recursive rejection": lambda drafter: (branching(drafter), specinfer.verify_tree),
    "nobody drafts": lambda drafter: (decoding.draft_model(drafter, 0), by_match),
}
ways = st.sampled_from(sorted(WAYS))


def text_of(way, max_new, target, drafter, prompt=(), **keywords):
    """A program whose outcome is the new text."""
    propose, verify = WAYS[way](drafter)
    return lambda rng: tuple(decoding.generate(decoding.uncached(target), propose, verify, prompt, max_new, rng, **keywords)[0])


def endless(model):
    """A random model is a table of short texts; a tree may reach further than the text that is compared."""
    longest = max(map(len, model)) if isinstance(model, Model) else None
    return lambda text: model(text[:longest])


def claim(way):
    tokens = 2 if "tree" in way else 3  # of three words, as the reference pair has them, more would take minutes
    text = lambda target, drafter: text_of(way, tokens, endless(target), endless(drafter))
    return Claim(f"{tokens} new, {way}", text, tokens, vocabulary=2)


CLAIMS = [claim(way) for way in WAYS]


@given(models(2, 3), models(2, 3), ways)
def test_text_over_several_rounds_has_the_targets_law(target, drafter, way):
    assert law(text_of(way, 3, endless(target), endless(drafter))) == autoregressive(target, 3)


def halved(row, text):
    """A penalty: what stands in the text has half its mass."""
    row = row / np.array([Fraction(1 + (v in text)) for v in range(len(row))])
    return row / row.sum()


def no_repeat(row, text):
    """A grammar: no token twice in a row, where the model can do otherwise."""
    allowed = np.where(np.arange(len(row)) == (text[-1] if text else -1), 0, row)
    return allowed / allowed.sum() if allowed.sum() else row


@given(models(2, 1), models(2, 1), ways, st.sampled_from([halved, no_repeat]))
def test_penalties_and_grammars_advance_along_the_draft(target, drafter, way, warp):
    p, q = target(()), drafter(())
    outputs = law(text_of(way, 3, lambda text: p, lambda text: q, warp=warp))
    assert outputs == autoregressive(lambda text: warp(p, list(text)), 3)


@given(models(2, 1), models(2, 1), ways)
def test_an_end_token_ends_the_text_wherever_it_stands(target, drafter, way):
    p, q = target(()), drafter(())
    expected = {}
    for text, weight in autoregressive(lambda text: p, 3).items():
        cut = text[: text.index(1) + 1] if 1 in text else text
        expected[cut] = expected.get(cut, 0) + weight
    assert law(text_of(way, 3, lambda text: p, lambda text: q, eos=1)) == expected
    assert text_of(way, 0, lambda text: p, lambda text: q)(None) == ()
    after_an_end = text_of(way, 1, lambda text: p, lambda text: q, prompt=(1,), eos=1)  # the prompt's own does not count
    assert set(map(len, law(after_an_end))) == {1}


class Remembered:
    """A model whose cache entry of a token is the token: its rows betray at once a cache that holds anything but the text."""

    def __init__(self, model):
        self.model, self.reads = model, []

    def __call__(self, cache, tokens, parents):
        self.reads.append(len(tokens))
        texts, before = [], () if cache is None else tuple(cache[:, 0].tolist())
        for token, parent in zip(tokens, parents):
            texts.append((*(texts[parent] if parent >= 0 else before), int(token)))
        return [self.model(text) for text in texts], np.array(tokens)[:, None]


class Recurrent(Remembered):
    """The same with a state in place of a cache: the entry of a token is the whole text up to it, and only the last entry is read."""

    def __call__(self, cache, tokens, parents):
        before, states = 0 if cache is None else int(cache[-1, 0]), []
        for token, parent in zip(tokens, parents):
            states.append(4 * (states[parent] if parent >= 0 else before) + int(token) + 1)  # digits to the base 4
        return [self.model(self.text(state)) for state in states], np.array(states)[:, None]

    @staticmethod
    def text(state):
        return () if not state else (*Recurrent.text(state // 4), state % 4 - 1)


@pytest.mark.parametrize("kind", [Remembered, Recurrent])
@given(target=models(2, 1), drafter=models(2, 1), way=ways, prompt=st.sampled_from([(0,), (1, 0, 1)]))
def test_a_cache_changes_nothing(kind, target, drafter, way, prompt):
    row = lambda model: lambda text: np.roll(model(()), sum(map(int, text)) + len(text))  # every token of the text matters
    propose, verify = WAYS[way](row(drafter))

    def program(rng):
        score, keep = decoding.cached(kind(row(target)), prompt)
        return tuple(decoding.generate(score, propose, verify, prompt, 3, rng, keep=keep)[0])

    assert law(program) == law(text_of(way, 3, row(target), row(drafter), prompt))


@pytest.mark.parametrize("kind", [Remembered, Recurrent])
@given(target=models(2, 1), drafter=models(2, 1))
def test_a_drafters_cache_changes_nothing(kind, target, drafter):
    """The text would keep its law even with a wrong cache, as drafts may come from anywhere; how many are kept would not."""
    row = lambda model: lambda text: np.roll(model(()), sum(map(int, text)) + len(text))

    def text_and_passes(draws):
        def program(rng):
            propose, verify = decoding.draft_model(draws(), 1), decoding.on_chain(chain.verify)
            new, passes = decoding.generate(decoding.uncached(row(target)), propose, verify, (1, 0), 5, rng)
            return tuple(new), passes

        return program

    assert law(text_and_passes(lambda: decoding.remembering(kind(row(drafter))))) == law(text_and_passes(lambda: row(drafter)))


@given(st.integers(0, 99))
def test_a_drafter_reads_one_token_after_a_refusal_and_two_where_all_was_kept(seed):
    half = lambda text: np.array([0.5, 0.5])
    skewed, reads, rng = Remembered(lambda text: np.array([0.1, 0.9])), [], Sampler(np.random.default_rng(seed))
    propose, verify = WAYS["chain"](decoding.remembering(skewed))
    lengths = [0]

    def report(new):
        reads.append(skewed.reads[:])
        skewed.reads.clear()
        lengths.append(len(new))

    decoding.generate(decoding.uncached(half), propose, verify, [0, 1, 0], 30, rng, report=report)
    assert reads[0][:1] == [3]  # the prompt
    for emitted, (first, *others) in zip(np.diff(lengths), [read for read in reads[1:] if read]):
        assert first == (2 if emitted == 3 else 1) and set(others) <= {1}


@given(st.integers(0, 99), ways, st.integers(1, 12))
def test_every_pass_writes_and_is_reported(seed, way, max_new):
    told, half = [], lambda text: np.array([0.5, 0.5])
    propose, verify = WAYS[way](half)
    new, passes = decoding.generate(
        decoding.uncached(half), propose, verify, [], max_new, Sampler(np.random.default_rng(seed)), report=lambda text: told.append(text)
    )
    assert len(new) == max_new and len(told) == passes <= max_new and told[-1] == new
    assert all(1 <= len(b) - len(a) <= 3 and b[: len(a)] == a for a, b in zip([[], *told], told))
