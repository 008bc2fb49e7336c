"""On the same uniforms a kernel decides as the spec does: always where arithmetic is exact, else wherever rounding could not matter."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, law
from twofold.conformance.speculative.forests import on_the_pair
from twofold.conformance.speculative.test_chain import round_of
from twofold.conformance.tape import Certified, exact
from twofold.spec.speculative import chain

forms = st.sampled_from(["verify", "verify_onehot", "verify_lenient"])
layouts = st.sampled_from(["contiguous", "sliced", "offset"])


def dyadic(rng, *shape, nonzero=12, bits=8):
    """Rows of multiples of 2^-bits that sum to 1, most of them zero where V is large: no sum of these is ever rounded."""
    rows = np.zeros((int(np.prod(shape[:-1])), shape[-1]))
    for row in rows:
        support = rng.choice(shape[-1], min(nonzero, shape[-1]), replace=False)
        row[support] = rng.multinomial(2**bits, rng.dirichlet(np.full(len(support), 0.5))) / 2**bits
    return rows.reshape(shape)


def problem(rng, B, gamma, V, rows):
    """p, q, a draft that q could have drawn, and q's own lengths; often p and q are the same."""
    p, q = rows(rng, B, gamma + 1, V), rows(rng, B, gamma, V)
    q = np.where(rng.random((B, gamma, 1)) < 0.4, p[:, :gamma], q) if gamma else q
    draft = np.array([[rng.choice(V, p=row / row.sum()) for row in rows_] for rows_ in q], dtype=np.int64).reshape(B, gamma)
    return p, q, draft, rng.integers(0, gamma + 1, B)


def by_spec(form, p, q, draft, accept, token, lenience):
    """The spec's answer in exact arithmetic for one request, on the tokens of positive probability only, and whether it is sure."""
    ids = np.union1d(np.flatnonzero(p.any(0)), np.union1d(np.flatnonzero(q.any(0)), draft)).astype(int)
    p, q, draft = exact(p[:, ids]), exact(q[:, ids]), np.searchsorted(ids, draft)
    tape = Certified(accept, [token])
    arguments = {"verify": (p, q, draft), "verify_onehot": (p, draft), "verify_lenient": (p, q, draft, exact(lenience)[()])}[form]
    kept, drawn = getattr(chain, form)(*arguments, tape)
    return kept, ids[drawn], tape.sure


def by_fast(fast, form, p, q, draft, lenience, dtype="float32", layout="contiguous", **keywords):
    p, q = (tensor(x, dtype, layout) if x.size else tensor(x, dtype) for x in (p, q))
    arguments = {"verify": (p, q, draft), "verify_onehot": (p, draft), "verify_lenient": (p, q, draft, lenience)}[form]
    return tuple(array(x) for x in getattr(fast, form)(*arguments, **keywords))


def both(fast, form, rng, p, q, draft, lengths, accept, token, lenience, dtype="float32", layout="contiguous"):
    """Kept and drawn tokens of both sides, and where the spec's are certain."""
    uniforms = {"accept": tensor(accept, "float32"), "token": tensor(token, "float32")}
    kept, drawn = by_fast(fast, form, p, q, tensor(draft), lenience, dtype, layout, lengths=tensor(lengths), **uniforms)
    expected = [
        by_spec(form, p[b, : n + 1], q[b, :n], draft[b, :n], accept[b, :n], token[b], lenience) for b, n in enumerate(lengths.tolist())
    ]
    return kept, drawn, *(np.array(column) for column in zip(*expected, strict=True))


@given(forms, st.integers(0, 4), st.sampled_from([1, 2, 3, 17, 2047, 2048, 2049, 4097]), seeds, layouts, st.sampled_from([2, 8]))
@example("verify", 4, 17, 1, "contiguous", 8)  # drafts refused in one block and in the last of three
@example("verify", 4, 17, 2, "contiguous", 8)
@example("verify", 4, 4097, 3, "contiguous", 8)
@example("verify_lenient", 4, 4097, 4, "contiguous", 8)
def test_tokens_are_the_specs_where_arithmetic_is_exact(fast, form, gamma, V, seed, layout, bits):
    """With two bits, every other uniform meets an edge exactly."""
    rng = np.random.default_rng(seed)
    p, q, draft, lengths = problem(rng, 3, gamma, V, lambda rng, *shape: dyadic(rng, *shape, bits=bits))
    accept, token = (rng.integers(0, 2**bits, shape) / 2**bits for shape in ((3, gamma), 3))
    kept, drawn, spec_kept, spec_drawn, _ = both(fast, form, rng, p, q, draft, lengths, accept, token, 0.5, layout=layout)
    exactly(kept, spec_kept, "kept")
    exactly(drawn, spec_drawn, "token")


@pytest.mark.parametrize("form", ["verify", "verify_onehot"])
def test_a_large_vocabulary(fast, form):
    rng = np.random.default_rng(5)
    rows = lambda rng, *shape: dyadic(rng, *shape, nonzero=200)
    for refuse in (0.0, 255 / 256):
        p, q, draft, lengths = problem(rng, 1, 1, 131_072, rows)
        accept, token = np.full((1, 1), refuse), rng.integers(0, 256, 1) / 256
        kept, drawn, spec_kept, spec_drawn, _ = both(fast, form, rng, p, q, draft, np.ones_like(lengths), accept, token, 1.0)
        exactly(kept, spec_kept, "kept")
        exactly(drawn, spec_drawn, "token")


@given(forms, st.integers(0, 3), st.sampled_from([1, 2, 5, 33]), seeds, dtypes())
def test_tokens_are_the_specs_wherever_rounding_could_not_matter(fast, form, gamma, V, seed, dtype):
    rng = np.random.default_rng(seed)
    softmax = lambda rng, *shape: rounded(rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1]), dtype)
    p, q, draft, lengths = problem(rng, 8, gamma, V, softmax)
    accept, token = (rounded(rng.integers(0, 2**24, shape) / 2**24, "float32") for shape in ((8, gamma), 8))
    lenience = float(rounded(np.array([0.7]), "float32")[0])
    kept, drawn, spec_kept, spec_drawn, sure = both(fast, form, rng, p, q, draft, lengths, accept, token, lenience, dtype)
    exactly(kept[sure], spec_kept[sure], "kept")
    exactly(drawn[sure], spec_drawn[sure], "token")


def test_hardly_any_decision_is_left_to_rounding():
    rng = np.random.default_rng(1)
    rows = lambda rng, *shape: rounded(rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1]), "float32")
    p, q, draft, lengths = problem(rng, 300, 2, 33, rows)
    uniforms = [rng.integers(0, 2**24, shape) / 2**24 for shape in ((300, 2), 300)]
    asked = [by_spec("verify", p[b, : n + 1], q[b, :n], draft[b, :n], uniforms[0][b], uniforms[1][b], 1.0) for b, n in enumerate(lengths)]
    assert np.mean([not sure for _, _, sure in asked]) < 0.01


@given(st.integers(1, 4), st.sampled_from([3, 2049]), seeds)
def test_what_is_not_needed_is_not_read(fast, gamma, V, seed):
    rng = np.random.default_rng(seed)
    p, q, draft, lengths = problem(rng, 3, gamma, V, dyadic)
    uniforms = {"accept": tensor(rng.random((3, gamma)), "float32"), "token": tensor(rng.random(3), "float32"), "lengths": tensor(lengths)}
    kept, drawn = by_fast(fast, "verify", p, q, tensor(draft), 1.0, **uniforms)
    for b, n in enumerate(lengths):
        for i in range(gamma + 1):
            if i != kept[b]:  # not the row that is drawn from
                needed = draft[b, i] if i < kept[b] else None
                for rows in (p, q)[: 2 if i < gamma else 1]:
                    value = None if needed is None else rows[b, i, needed]
                    rows[b, i] = np.nan
                    if needed is not None:
                        rows[b, i, needed] = value
        if kept[b] == n and n < gamma:
            q[b, n] = np.nan  # the row that is drawn from is the bonus row: the drafter's does not matter
        draft[b, n:] = 10**15
        uniforms["accept"][b, n:] = np.nan
    again = by_fast(fast, "verify", p, q, tensor(draft), 1.0, **uniforms)
    exactly(again[0], kept, "kept")
    exactly(again[1], drawn, "token")


@given(forms, st.integers(0, 3), st.sampled_from([2, 300, 2500]), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, form, gamma, V, seed):
    rng = np.random.default_rng(seed)
    p, q, draft, _ = problem(rng, 4, gamma, V, lambda rng, *shape: rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1]))
    request, position = np.array([7, 3, 2**40, 0]), np.array([0, 5, 2**33, 1])
    run = lambda b: by_fast(
        fast, form, p[b], q[b], tensor(draft[b]), 0.8, seed=seed, request=tensor(request[b]), position=tensor(position[b])
    )
    together = run(np.arange(4))
    for b in range(4):
        exactly(np.stack(run(np.array([b])))[:, 0], np.stack(together)[:, b], f"request {b}")
    exactly(np.stack(run(np.array([2, 0, 3, 1]))), np.stack(together)[:, [2, 0, 3, 1]], "another order")


@given(st.integers(0, 3), st.sampled_from([2, 40]), seeds)
def test_one_hot_rows_and_lenience_one_change_no_bit(fast, gamma, V, seed):
    rng = np.random.default_rng(seed)
    p, q, draft, _ = problem(rng, 6, gamma, V, lambda rng, *shape: rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1]))
    strict, lenient = (by_fast(fast, form, p, q, tensor(draft), 1, seed=seed) for form in ("verify", "verify_lenient"))
    exactly(np.stack(lenient), np.stack(strict), "lenience 1")
    onehot = np.eye(V)[draft]
    expected = by_fast(fast, "verify", p, onehot, tensor(draft), 1, seed=seed)
    exactly(np.stack(by_fast(fast, "verify_onehot", p, q, tensor(draft), 1, seed=seed)), np.stack(expected), "one-hot rows")


def test_seeded_outputs_follow_the_exact_law(fast):
    B = 20_000 if fast.side == "torch" else 100  # the interpreter takes a millisecond per program
    p, q, tokens, _ = on_the_pair(B, (-1, 0, 1))
    draft = tokens[:, 1:]
    kept, drawn = by_fast(fast, "verify", p, q[:, :2], tensor(draft), 1.0, seed=2024)
    emitted = [(*draft[b, : kept[b]].tolist(), int(drawn[b])) for b in range(B)]
    consistent(emitted, law(round_of(TARGET, DRAFT, 2)))
    if B >= 20_000:  # the same samples refute the law of a sampler that draws its correction from p: the test has power
        wrong = lambda p, q, draft, rng: next(
            ((i, rng.categorical(p[i])) for i, x in enumerate(draft) if not rng.bernoulli(p[i][x] / q[i][x])), None
        ) or (len(draft), rng.categorical(p[-1]))
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(emitted, law(round_of(TARGET, DRAFT, 2, wrong)))


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(fast):
    p = torch.full((8, 2, 50), 0.02)
    run = lambda seed: torch.stack(fast.verify_onehot(p, torch.zeros(8, 1, dtype=torch.int32), seed=seed))
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert run(1).dtype == torch.int32
