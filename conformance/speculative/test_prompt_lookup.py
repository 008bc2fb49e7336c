"""Prompt lookup: the longest n-gram, the first or last of its copies, a draft of what followed, and a text whose law is the target's."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, layouts, seeds, tensor
from twofold.conformance.law import models
from twofold.conformance.speculative import rounds
from twofold.fast.kernels.find_suffix import BLOCK, find_suffix
from twofold.spec.speculative import chain, prompt_lookup

TEXTS = [list(text) for V, most in ((2, 8), (3, 5)) for L in range(most + 1) for text in product(range(V), repeat=L)]  # all of them
SIZES = [(1, 1), (2, 1), (3, 1), (3, 3), (4, 2), (9, 1)]  # n_max, n_min
sizes = st.tuples(st.integers(1, 3), st.integers(0, 4)).map(lambda size: (size[0] + size[1], size[0]))
gammas = st.integers(0, 5)


def same(context, n, end):
    """Whether the n tokens before this place are the last n of the context."""
    return all(context[end - 1 - i] == context[len(context) - 1 - i] for i in range(n))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("last", [False, True])
def test_the_longest_ngram_wins_and_among_its_occurrences_the_first_or_last(size, last):
    n_max, n_min = size
    for context in TEXTS:
        ends = [(n, end) for end in range(1, len(context)) for n in range(n_min, min(n_max, end) + 1) if same(context, n, end)]
        _, end = max(ends, key=lambda each: (each[0], each[1] if last else -each[1]), default=(0, len(context)))
        assert prompt_lookup.draft(context, n_max, n_min, 3, last) == context[end : end + 3]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_draft_stands_in_the_context_behind_a_copy_of_its_end(n):
    for context, gamma, last in product(TEXTS, [0, 1, 4], [False, True]):
        copies = [end for end in range(n, len(context)) if same(context, n, end)]
        draft = prompt_lookup.draft(context, n + 2, n, gamma, last)
        assert draft in [context[end : end + gamma] for end in copies] if copies else draft == []


@given(seeds, sizes, gammas, st.permutations(range(4)))
def test_renaming_the_tokens_renames_the_draft(seed, size, gamma, names):
    context = np.random.default_rng(seed).integers(0, 4, 30).tolist()
    renamed = [names[token] for token in context]
    assert prompt_lookup.draft(renamed, *size, gamma) == [names[token] for token in prompt_lookup.draft(context, *size, gamma)]


@pytest.mark.parametrize("length", [2, 3, 7])
@pytest.mark.parametrize("n_max", [1, 2, 9])
def test_a_copy_may_overlap_the_end_but_never_is_it(length, n_max):
    n = min(n_max, length - 1)
    assert prompt_lookup.draft([5] * length, n_max, 1, 100) == [5] * (length - n)
    assert prompt_lookup.draft([5] * length, n_max, 1, 100, last=True) == [5]  # the copy that ends one token earlier
    assert prompt_lookup.draft(list(range(length)), n_max, 1, 100) == []


@given(models(2, 4), st.lists(st.integers(0, 1), min_size=1, max_size=5), st.booleans())
def test_rounds_of_lookup_and_verification_lose_nothing(target, prompt, last):
    def program(rng):
        text = []
        while len(text) < 4:
            draft = prompt_lookup.draft(prompt + text, 3, 1, min(2, 3 - len(text)), last)
            rows = [target(text + draft[:i]) for i in range(len(draft) + 1)]
            kept, token = chain.verify_onehot(rows, draft, rng)
            text += [*draft[:kept], token]
        return tuple(text)

    rounds.lossless(program, target, 4)


def both(fast, contexts, lengths, n_max, n_min, gamma, last, dtype="int64", layout="contiguous"):
    """Drafts and counts of both sides, padded with -1."""
    drafts = [prompt_lookup.draft(row[:n], n_max, n_min, gamma, last) for row, n in zip(contexts.tolist(), lengths.tolist(), strict=True)]
    count = np.array([len(draft) for draft in drafts], dtype=int)
    padded = np.array([draft + [-1] * (gamma - len(draft)) for draft in drafts], dtype=int).reshape(len(drafts), gamma)
    ours = fast.draft(tensor(contexts, dtype, layout), n_max, n_min, gamma, last, lengths=tensor(lengths, dtype))
    assert all(str(x.dtype) == f"torch.{dtype}" for x in ours)
    return *(array(x).astype(int) for x in ours), padded, count


edges = st.sampled_from([0, 1, 2, 3, 20, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 2])


@given(seeds, edges, st.sampled_from([1, 2, 3, 1000]), sizes, gammas, st.booleans(), st.sampled_from(["int64", "int32"]), layouts)
@example(1, 2 * BLOCK + 2, 3, (7, 2), 4, False, "int64", "sliced")
@example(2, 2 * BLOCK + 2, 3, (7, 2), 4, True, "int32", "contiguous")
@example(3, 20, 2, (7, 1), 0, True, "int32", "offset")
@example(4, 20, 1, (3, 1), 4, True, "int64", "contiguous")  # the copies end one token before their contexts do
@example(5, 0, 2, (7, 1), 3, False, "int64", "contiguous")
def test_drafts_of_a_ragged_batch_are_the_specs(fast, seed, T, V, size, gamma, last, dtype, layout):
    rng = np.random.default_rng(seed)
    contexts, lengths = rng.integers(0, V, (3, T)), rng.integers(0, T + 1, 3)
    lengths[0] = T  # what lies behind the shorter ones are tokens like theirs: a kernel that reads on is led astray
    draft, count, expected, number = both(fast, contexts, lengths, *size, gamma, last, dtype, layout)
    exactly(count, number, "count")
    exactly(draft, expected, "draft")


@pytest.mark.parametrize("start", [0, BLOCK - 3, BLOCK - 1, BLOCK])
@pytest.mark.parametrize("last", [False, True])
def test_a_copy_across_the_edge_of_a_block_is_found(fast, start, last):
    """Nothing occurs twice but five tokens, once at the end, once around the edge of the kernel's first block."""
    contexts = np.arange(10, BLOCK + 30)[None]
    contexts[0, start : start + 5] = contexts[0, -5:] = [1, 2, 3, 4, 5]
    draft, count, expected, number = both(fast, contexts, np.array([contexts.size]), 8, 5, 3, last)
    exactly(expected[0], contexts[0, start + 5 : start + 8], "spec")
    exactly(draft, expected, "draft")
    exactly(count, number, "count")


def test_beyond_n_max_longer_matches_count_no_more(fast):
    context = np.array([[1, 2, 7, 0, 1, 2, 8, 0, 1, 2]])  # "0 1 2" occurs at 3, "1 2" first at 0
    for n_max, token in ((2, 7), (3, 8)):
        draft, _, expected, _ = both(fast, context, np.array([10]), n_max, 1, 1, False)
        assert draft.item() == expected.item() == token
    draft, count, *_ = both(fast, context, np.array([10]), 9, 4, 1, False)
    assert (draft.item(), count.item()) == (-1, 0)  # four tokens never occurred before


def test_a_copy_may_not_begin_in_the_row_before(fast):
    """Row 1 starts with the end of its context, and what row 0 ends with would make that copy longer; so would its first token again."""
    contexts = np.array([[8, 9, 9, 9, 4], [4, 7, 6, 4, 4]])
    draft, count, expected, number = both(fast, contexts, np.array([5, 5]), 4, 2, 1, False)
    exactly(draft, expected, "draft")
    exactly(count, number, "count")


def test_tokens_are_compared_whole(fast):
    context = torch.tensor([[3, 50, 3 + 2**32, 60, 3 + 2**33, 70, 3 + 2**32]])
    draft, count = fast.draft(context, 4, 1, 2)
    assert draft.tolist() == [[60, 3 + 2**33]] and count.tolist() == [2]


def test_a_very_long_match_is_found_whole(fast):
    period = list(range(30)) * 3
    draft, count, expected, _ = both(fast, np.array([[99, *period, 98, *period]]), np.array([182]), 1000, 1, 2, False)
    assert expected.tolist() == draft.tolist() == [[98, 0]] and count.tolist() == [2]


@given(seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, seed):
    rng = np.random.default_rng(seed)
    contexts, lengths = tensor(rng.integers(0, 3, (4, 40))), tensor(rng.integers(0, 41, 4))
    together = fast.draft(contexts, 5, 2, 3, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = fast.draft(contexts[b : b + 1, :n], 5, 2, 3)
        assert all(torch.equal(one[0], all_[b]) for one, all_ in zip(alone, together, strict=True))


def test_lengths_are_clamped_and_inputs_stay_as_they_were(fast):
    context = torch.tensor([[1, 2, 1, 2], [1, 2, 1, 2]])
    draft, count = fast.draft(context, 3, 1, 3, lengths=torch.tensor([-5, 99]))
    assert draft.tolist() == [[-1, -1, -1], [1, 2, -1]] and count.tolist() == [0, 2]
    assert context.tolist() == [[1, 2, 1, 2]] * 2
    draft, count = fast.draft(context[:0], 3, 1, 3)
    assert draft.shape == (0, 3) and count.shape == (0,)


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(n_min=0), "1 <= n_min <= n_max"), (dict(n_min=4), "1 <= n_min <= n_max"), (dict(gamma=-1), "gamma must be"),
    (dict(context=torch.zeros(3)), r"context must have shape \(B, T\)"), (dict(context=torch.zeros(2, 3)), "context must have dtype"),
    (dict(context=[[1]]), "context must be a torch.Tensor"), (dict(context=torch.zeros(3, 2, dtype=torch.int64).T), "contiguous along T"),
    (dict(lengths=torch.zeros(3, dtype=torch.int64)), "lengths must have shape"), (dict(lengths=torch.zeros(2)), "lengths must have dtype"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, wrong, message):
    right = dict(context=torch.zeros(2, 3, dtype=torch.int64), n_max=3, n_min=1, gamma=2, lengths=None)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.draft(**right | wrong)


def test_compilers_see_through(fast):
    context, lengths = torch.tensor([[1, 2, 3, 1, 2], [4, 4, 4, 4, 9]]), torch.tensor([5, 4])
    torch.library.opcheck(find_suffix, (context, lengths, 3, 1, 2, False))
    torch.library.opcheck(find_suffix, (context.int(), None, 3, 1, 2, True))
    compiled = torch.compile(lambda context: fast.draft(context, 3, 1, 2), fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(context), fast.draft(context, 3, 1, 2), strict=True))
