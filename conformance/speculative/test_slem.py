"""Any drafter may guess text for any target: the token law is exact whatever the two tokenizers do at their seams."""

import re
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, autoregressive, law, models
from twofold.conformance.prove import Claim
from twofold.conformance.speculative import rounds
from twofold.fast.speculative import chain as fast_chain
from twofold.spec.rng import Sampler
from twofold.spec.speculative import chain, match, slem

F = Fraction
VOCABULARIES = [["a", "b", "ab"], ["a", "b", "ba"], ["b", "a", "aa"], ["ab", "a", "b"], ["a", "b", "abb"]]
vocabularies = st.sampled_from(VOCABULARIES)


def tokenizer(words):
    """Decode is concatenation; encode takes the longest word that fits, so most texts have spellings that it never returns."""
    pattern = re.compile("|".join(sorted(words, key=len, reverse=True)))
    return lambda ids: "".join(words[i] for i in ids), lambda text: [words.index(word) for word in pattern.findall(text)]


def guesser(model, words, rng, count, memory=2):
    """A drafter: `count` tokens of its own vocabulary, drawn after the text as its own tokenizer reads it."""
    decode, encode = tokenizer(words)

    def drafter(text):
        ids = encode(text)
        for _ in range(count):
            ids.append(rng.categorical(model(tuple(ids[-memory:]))))
        return decode(ids)[len(text) :]

    return drafter


def text_of(target, model, words, own, most, count, look_behind, verify):
    """A program that writes `most` of the target's tokens, round after round."""
    decode, encode = tokenizer(words)

    def program(rng):
        ids = []
        while len(ids) < most:
            draft = slem.draft(guesser(model, own, rng, count), decode, encode, ids, look_behind)[: most - len(ids) - 1]
            kept, token = verify([target((*ids, *draft[:i])) for i in range(len(draft) + 1)], draft, rng)
            ids += [*draft[:kept], token]
        return tuple(ids)

    return program


def written(target, drafter):
    return text_of(target, drafter, VOCABULARIES[0], VOCABULARIES[1], 3, 1, 16, match.verify)


CLAIMS = [Claim("3 tokens, the drafter spells otherwise", written, 3)]


@given(models(3, 3), models(3, 3, greatest=2), vocabularies, vocabularies, st.integers(1, 2), st.integers(0, 3))
@example(TARGET, DRAFT, VOCABULARIES[0], VOCABULARIES[1], 1, 3)
@example(TARGET, DRAFT, VOCABULARIES[0], VOCABULARIES[0], 2, 0)
def test_text_over_several_rounds_has_the_targets_token_law(target, model, words, own, count, look_behind):
    most = 4 - count
    for verify in (match.verify, chain.verify_onehot):
        assert law(text_of(target, model, words, own, most, count, look_behind, verify)) == autoregressive(target, most)


@given(models(3, 4), models(3, 3, greatest=2), vocabularies, vocabularies)
def test_after_every_prefix_the_next_token_has_the_targets_law(target, model, words, own):
    decode, encode = tokenizer(words)

    def program(rng):
        draft = slem.draft(guesser(model, own, rng, 2), decode, encode, [])[:3]
        kept, token = match.verify([target(tuple(draft[:i])) for i in range(len(draft) + 1)], draft, rng)
        return (*draft[:kept], token)

    rounds.lossless(program, target, 4)


@given(vocabularies, st.lists(st.integers(0, 2), max_size=6), st.text("ab", min_size=1, max_size=4), st.integers(0, 7))
@example(VOCABULARIES[0], [0], "baa", 16)
def test_a_draft_is_the_guess_as_the_target_would_spell_it_behind_what_stands(words, ids, guess, look_behind):
    decode, encode = tokenizer(words)
    tail = ids[len(ids) - min(look_behind, len(ids)) :]
    every = [list(draft) for n in range(1, len(guess) + 1) for draft in product(range(3), repeat=n)]
    spelled = [draft for draft in every if decode(draft) == guess and encode(decode(tail) + guess) == tail + draft]
    assert spelled in ([], [slem.draft(lambda text: guess, decode, encode, ids, look_behind)])
    assert spelled or slem.draft(lambda text: guess, decode, encode, ids, look_behind) == []


def test_one_vocabulary_of_letters_is_plain_exact_match():
    letters = ["a", "b", "c"]
    decode, encode = tokenizer(letters)

    def program(rng):
        draft = slem.draft(guesser(DRAFT, letters, rng, 2), decode, encode, [])
        kept, token = match.verify([TARGET(tuple(draft[:i])) for i in range(3)], draft, rng)
        return (*draft[:kept], token)

    assert law(program) == law(rounds.chain(TARGET, DRAFT, 2, lambda p, q, draft, rng: match.verify(p, draft, rng)))
    assert rounds.kept(program) == F(91, 216)


@pytest.mark.parametrize(("ids", "look_behind", "draft"), [
    ([0], 16, []),  # "a" then "b": read again they are the one word "ab"
    ([0], 0, [1]),  # not read again: "b" by itself
    ([0, 1], 16, []), ([0, 1], 1, [1]),  # the target spelled "ab" in two; once that is out of the window, drafts come again
    ([2], 16, [1]), ([], 16, [1]),
])  # fmt: skip
def test_merges_and_unusual_spellings_at_the_seam(ids, look_behind, draft):
    assert slem.draft(lambda text: "b", *tokenizer(["a", "b", "ab"]), ids, look_behind) == draft


def test_the_drafter_reads_the_whole_text_and_the_tokenizer_its_end():
    decode, encode = tokenizer(["a", "b", "ab"])
    asked = []
    draft = slem.draft(lambda text: asked.append(text) or "b", decode, lambda text: asked.append(text) or encode(text), [2, 0, 1, 1, 2], 2)
    assert (draft, asked) == ([1], ["ababbab", "babb"])


def test_half_a_character_is_never_completed_by_a_guess():
    """Bytes as tokens, text as str: half a character decodes to a replacement character, which encodes to other bytes."""
    decode, encode = (lambda ids: bytes(ids).decode(errors="replace")), (lambda text: list(text.encode()))
    euro = list("€".encode())
    assert slem.draft(lambda text: "1", decode, encode, euro) == [ord("1")]
    assert slem.draft(lambda text: "1", decode, encode, euro[:2]) == []
    assert slem.draft(lambda text: "1", decode, encode, euro, look_behind=1) == []  # the window begins inside the character
    half = slem.draft(lambda text: "1" + bytes(euro[:2]).decode(errors="replace"), decode, encode, euro)
    assert half == [ord("1"), *"\N{REPLACEMENT CHARACTER}".encode()]  # a guess that the target will refuse, and no more than that
    assert slem.draft(lambda text: bytes(euro[1:]), bytes, list, euro[:1]) == euro[1:]  # bytes as text have no halves


# The batch


def listed(words):
    decode, encode = tokenizer(words)
    return lambda rows: [decode(row) for row in rows], lambda texts: [encode(text) for text in texts]


texts_of_ids = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=4)


@given(vocabularies, texts_of_ids, st.integers(0, 7), seeds, st.sampled_from(["int64", "int32"]))
def test_a_batch_is_its_requests(fast, words, contexts, look_behind, seed, dtype):
    rng, (decode, encode) = np.random.default_rng(seed), tokenizer(words)
    guesses = {decode(ids): "".join(rng.choice(["a", "b"], rng.integers(0, 5))) for ids in contexts}
    width, lengths = max(map(len, contexts), default=0) + 2, np.array([len(ids) for ids in contexts], dtype=np.int64)
    padded = np.array([ids + [10**6] * (width - len(ids)) for ids in contexts], dtype=np.int64).reshape(-1, width)
    drafter = lambda texts: [guesses[text] for text in texts]
    draft, count = fast.draft(drafter, *listed(words), tensor(padded, dtype), look_behind=look_behind, lengths=tensor(lengths))
    expected = [slem.draft(guesses.get, decode, encode, ids, look_behind) for ids in contexts]
    gamma = max(map(len, expected), default=0)
    exactly(array(count), np.array([len(each) for each in expected], dtype=np.int64), "lengths")
    padded = np.array([each + [-1] * (gamma - len(each)) for each in expected], dtype=np.int64)
    exactly(array(draft), padded.reshape(len(contexts), gamma), "draft")


def test_with_texts_at_hand_no_more_than_the_window_is_read(fast):
    decode, encode = listed(["a", "b", "ab"])
    calls = []

    def narrow(rows):
        calls.append([len(row) for row in rows])
        return decode(rows)

    ids = torch.tensor([[10**9] * 60 + [2, 1, 0], [2, 1, 0] + [10**9] * 60])
    drafter = lambda texts: [{"first": "a", "second": "b"}[text] for text in texts]
    draft, count = fast.draft(drafter, narrow, encode, ids, look_behind=3, lengths=torch.tensor([63, 3]), texts=["first", "second"])
    assert (draft.tolist(), count.tolist(), calls) == ([[0], [-1]], [1, 0], [[3, 3]])


def test_text_verified_on_the_device_has_the_exact_law(fast):
    B = 4_000 if fast.side == "torch" else 20
    words, own, rng = VOCABULARIES[0], VOCABULARIES[1], Sampler(np.random.default_rng(8))
    guess = guesser(lambda context: DRAFT(context).astype(float), own, rng, 2)
    draft, count = fast.draft(lambda texts: [guess(text) for text in texts], *listed(words), torch.zeros(B, 0, dtype=torch.int64))
    at = torch.cat([torch.zeros(B, 1, dtype=torch.int64), 1 + draft], 1)
    p = tensor(np.array([TARGET(()), *(TARGET((x,)) for x in range(3))], dtype=float), "float32")[at]
    kept, token = fast_chain.verify_onehot(p, draft, lengths=count, seed=3)
    emitted = [(*draft[b, :k].tolist(), x) for b, (k, x) in enumerate(zip(kept.tolist(), token.tolist(), strict=True))]

    def program(rng):
        draft = slem.draft(guesser(DRAFT, own, rng, 2), *tokenizer(words), [])
        kept, token = match.verify([TARGET(tuple(draft[:i])) for i in range(len(draft) + 1)], draft, rng)
        return (*draft[:kept], token)

    consistent(emitted, law(program))


IDS = torch.zeros(2, 3, dtype=torch.int64)
WRONG = {
    "ids must have shape": dict(ids=IDS[0]), "ids must have dtype": dict(ids=IDS.float()), "look_behind must be": dict(look_behind=-1),
    "lengths must have shape": dict(lengths=torch.zeros(3, dtype=torch.int64)), "texts must be one per request": dict(texts=["a"]),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    decode, encode = listed(["a", "b", "ab"])
    right = dict(drafter=lambda texts: texts, decode=decode, encode=encode, ids=IDS)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.draft(**right | WRONG[message])
