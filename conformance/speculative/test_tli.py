"""A drafter confined to common tokens loses nothing, and the batched rows are the spec's."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import agree, exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, as_law, law, models, total_variation
from twofold.conformance.prove import Claim
from twofold.conformance.rounding import Precision, bounded
from twofold.conformance.speculative import rounds
from twofold.conformance.speculative.test_slem import tokenizer
from twofold.fast.speculative import sampling as fast_sampling
from twofold.spec.speculative import block, chain, tli

F = Fraction
vocabularies = st.lists(st.sampled_from(["a", "b", "aa", "ab", "ba", "bb", "aba"]), min_size=3, max_size=3, unique=True)
some_common = st.lists(st.integers(-1, 2), min_size=3, max_size=3).map(np.array)


def round_of(target, rows, gamma, verify=chain.verify):
    """Draft from `rows(draft)`, which may end the draft with None; verify; emit."""

    def program(rng):
        draft, q = [], []
        while len(draft) < gamma and (row := rows(tuple(draft))) is not None:
            draft, q = [*draft, rng.categorical(row)], [*q, row]
        kept, token = verify([target(tuple(draft[:i])) for i in range(len(draft) + 1)], q, draft, rng)
        return (*draft[:kept], token)

    return program


def restricted(drafter, common):
    return lambda draft: tli.restrict(drafter(draft), common)


CLAIMS = [Claim("two drafted, token 2 not common", lambda p, q: round_of(p, restricted(q, np.array([0, 1, -1])), 2), 3, reference=True)]


@given(models(3, 3), models(3, 3), vocabularies, vocabularies)
@example(TARGET, DRAFT, ["a", "b", "ab"], ["b", "a", "ba"])
def test_text_has_the_targets_token_law_whatever_the_vocabularies_share(target, model, words, own):
    """The drafter reads the text with its own tokenizer, in which most texts have several spellings."""
    common = np.array([own.index(word) if word in own else -1 for word in words])
    read = lambda draft: tuple(tokenizer(own)[1](tokenizer(words)[0](draft)))[-2:]
    for verify in (chain.verify, block.verify):
        rounds.lossless(round_of(target, lambda draft: tli.restrict(model(read(draft)), common), 2, verify), target, 3)


@given(models(3, 3), models(3, 3))
def test_one_vocabulary_is_plain_speculative_decoding(target, drafter):
    assert law(round_of(target, restricted(drafter, np.arange(3)), 2)) == law(rounds.chain(target, drafter, 2, chain.verify))


@given(models(3, 1), some_common)
@example(lambda context: np.array([F(1), F(0), F(0)]), np.array([1, -1, 2]))
def test_the_law_is_the_drafters_given_that_the_token_is_common(model, common):
    common = np.where([i in common[:v] for v, i in enumerate(common)], -1, common)  # no string is a token twice
    q, shared = model(()), set(common[common >= 0].tolist())
    mass = sum((q[i] for i in shared), F(0))
    row = tli.restrict(q, common)
    if mass == 0:
        assert row is None
    else:
        assert as_law(row) == {v: q[i] / mass for v, i in enumerate(common) if i >= 0 and q[i]}


@given(models(3, 1), models(3, 1), some_common)
def test_the_draft_is_kept_as_often_as_the_restricted_law_overlaps(target, drafter, common):
    q = tli.restrict(drafter(()), common)
    program = round_of(lambda context: target(()), restricted(lambda context: drafter(()), common), 1)
    assert rounds.kept(program) == (0 if q is None else np.minimum(target(()), q).sum())


def test_scoring_with_the_row_before_the_restriction_is_wrong():
    """By hand, token 2 not common: (1, 1, 0)/2 is drawn, 1/6 each is claimed, p is at least that, so nothing is ever refused."""
    common, q = np.array([0, 1, -1]), DRAFT(())

    def claimed(rng):
        draft = [rng.categorical(tli.restrict(q, common))]
        kept, token = chain.verify([TARGET(()), TARGET(())], [q], draft, rng)
        return draft[0] if kept else token

    assert law(claimed) == {0: F(1, 2), 1: F(1, 2)}
    assert total_variation(law(claimed), as_law(TARGET(()))) == F(1, 3)


# Rows of a batch


@given(st.integers(1, 70), st.integers(1, 70), seeds, dtypes())
def test_rows_agree_with_the_definition(fast, D, V, seed, dtype):
    rng = np.random.default_rng(seed)
    q = rounded(rng.dirichlet(np.full(D, 0.5), 3), dtype)
    common = np.where(rng.random(V) < 0.7, rng.integers(0, D, V), -1)
    common[rng.integers(V)] = rng.integers(D)
    rows = fast.restrict(tensor(q, dtype), tensor(common))
    assert rows.dtype == getattr(torch, dtype)
    for b in range(3):
        expected = bounded(tli.restrict, q[b], common, precision=Precision(dtype), outputs=dtype)
        if expected is not None:
            agree(rows[b], expected, "rows")


@given(st.integers(1, 40), seeds, dtypes(), st.sampled_from(["contiguous", "sliced", "offset"]), st.sampled_from(["int64", "int32"]))
def test_rows_are_the_specs_where_arithmetic_is_exact(fast, V, seed, dtype, layout, ids):
    """The common tokens weigh a quarter in all, in steps of 1/256; the drafter's ids are shuffled."""
    rng = np.random.default_rng(seed)
    names, common = rng.permutation(V + 5), np.where(rng.random(V) < 0.5, 1, -1)
    common[rng.integers(V)] = 1
    common = np.where(common > 0, names[:V], -1)
    q = np.zeros((2, 3, V + 5))
    inside, outside = common[common >= 0], np.setdiff1d(names, common)
    q[..., inside] = rng.multinomial(64, rng.dirichlet(np.ones(len(inside))), (2, 3)) / 256
    q[..., outside] = rng.multinomial(192, rng.dirichlet(np.ones(len(outside))), (2, 3)) / 256
    expected = np.array([[tli.restrict(row, common) for row in rows] for rows in q])
    exactly(array(fast.restrict(tensor(q, dtype, layout), tensor(common, ids))), expected, "rows")


def test_rows_without_common_mass_are_zeros_and_uncommon_tokens_are_not_read(fast):
    nan = float("nan")
    q = torch.tensor([[0.5, 0.0, 0.5], [nan, 0.25, 0.25], [0.25, nan, 0.0]])
    rows = fast.restrict(q, torch.tensor([-1, 1, 2]))
    assert rows[:2].tolist() == [[0.0, 0.0, 1.0], [0.0, 0.5, 0.5]] and rows[2].isnan().any()
    assert fast.restrict(q[:1], torch.tensor([1, -1])).tolist() == [[0.0, 0.0]]
    assert fast.restrict(q[:0], torch.tensor([1, -1])).shape == (0, 2) and fast.restrict(q[0], torch.tensor([2])).tolist() == [1.0]


@given(seeds)
def test_a_row_alone_is_the_row_in_a_batch(fast, seed):
    rng = np.random.default_rng(seed)
    q, common = tensor(rng.dirichlet(np.full(50, 0.5), 4), "float32"), tensor(rng.integers(-1, 50, 60))
    together = fast.restrict(q, common)
    for b in range(4):
        exactly(array(fast.restrict(q[b], common)), array(together[b]), f"row {b}")


def test_seeded_text_has_the_exact_law_though_some_drafts_end_early(fast):
    """After token 1 the drafter gives all mass to a token that is not common: the draft ends there without anybody looking."""
    B = 20_000 if fast.side == "torch" else 20  # the interpreter takes a millisecond per program
    common = np.array([2, 0, -1])
    own = {(): (3, 4, 1), (0,): (2, 2, 4), (1,): (0, 8, 0), (2,): (1, 1, 6)}
    table = lambda rows: tensor(np.array([rows(()), *(rows((x,)) for x in range(3))], dtype=float), "float32")
    batched = lambda rows: lambda tokens, ends: rows[torch.where(ends > 0, 1 + tokens.gather(1, (ends - 1).clamp(min=0)), 0)]
    small = lambda context: np.array([F(n, 8) for n in own[tuple(context[-1:])]], dtype=object)
    drafter = lambda tokens, ends: fast.restrict(batched(table(small))(tokens, ends), tensor(common))
    emitted, count = fast_sampling.step(batched(table(TARGET)), drafter, torch.zeros(B, 0, dtype=torch.int64), 2, seed=9)
    texts = [tuple(text[:n]) for text, n in zip(emitted.tolist(), count.tolist(), strict=True)]
    consistent(texts, law(round_of(TARGET, restricted(small, common), 2)))


Q, COMMON = torch.full((2, 4), 0.25), torch.tensor([0, -1, 3])
WRONG = {
    "q must be a tensor": ([0.5, 0.5], COMMON), "q must have dtype": (Q.double(), COMMON), "common must be a torch.Tensor": (Q, [0, 1]),
    "common must have shape": (Q, COMMON[None]), "common must have dtype": (Q, COMMON.float()), "hold a token at least": (Q, COMMON[:0]),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.restrict(*WRONG[message])


def test_it_compiles_and_leaves_its_inputs(fast):
    compiled = torch.compile(fast.restrict, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(Q, COMMON), fast.restrict(Q, COMMON)) and fast.restrict(Q, COMMON).tolist() == [[0.5, 0.0, 0.5]] * 2
    assert Q.tolist() == [[0.25] * 4] * 2 and COMMON.tolist() == [0, -1, 3]
