"""The batched rule gives the spec's draft lengths, and a verifier that is given them keeps the law."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, dtypes, rounded, seeds, tensor
from twofold.conformance.law import DRAFT, TARGET, law
from twofold.conformance.speculative.forests import on_the_pair
from twofold.conformance.speculative.test_specdec_plus import adaptive, dropping, stopping
from twofold.conformance.tape import exact
from twofold.fast.speculative import chain as fast_chain
from twofold.spec.speculative import specdec_plus

F = Fraction


@given(st.integers(0, 3), st.integers(0, 6), seeds, st.sampled_from(["contiguous", "sliced", "offset"]), st.booleans(), dtypes())
def test_lengths_are_the_specs_where_products_are_exact(fast, B, n, seed, layout, each, dtype):
    """Products of up to five eighths have fifteen bits, so nothing is rounded, and many meet the threshold exactly."""
    rng = np.random.default_rng(seed)
    confidences = rng.choice([0, 0.25, 0.5, 0.75, 0.875, 1], (B, n), p=[0.04, 0.08, 0.08, 0.2, 0.2, 0.4])
    h = rng.choice([0, 0.25, 0.4375, 0.5, 0.625, 1], B)
    lengths = fast.stop(tensor(confidences, dtype, layout), tensor(h, "float32") if each else float(h[0]) if B else 0.5)
    expected = [specdec_plus.stop(list(row), h[b] if each else h[0]) for b, row in enumerate(confidences)]
    exactly(array(lengths), np.array(expected, dtype=np.int64), "lengths")


@given(st.integers(1, 40), seeds, dtypes())
def test_lengths_are_the_specs_wherever_rounding_could_not_matter(fast, n, seed, dtype):
    """A float32 product of n factors is off by less than n units of roundoff, and so is 1 minus it."""
    rng = np.random.default_rng(seed)
    confidences, h = rounded(rng.beta(8, 1, (16, n)), dtype), float(rounded(rng.random(1), "float32")[0])
    lengths = array(fast.stop(tensor(confidences, dtype), h))
    for b, row in enumerate(exact(confidences)):
        risks = 1 - np.multiply.accumulate(row[:-1]) if n > 1 else []
        if all(abs(risk - F(h)) > F(n + 1, 2**24) for risk in risks):
            assert lengths[b] == specdec_plus.stop(row, F(h))


def test_the_last_confidence_is_not_read_and_a_nan_ends_the_draft(fast):
    nan = float("nan")
    assert fast.stop(torch.tensor([[1.0, 1.0, nan], [1.0, nan, 1.0], [nan, 1.0, 1.0]]), 0.5).tolist() == [3, 2, 1]
    assert fast.stop(torch.tensor([[nan]]), 0.0).tolist() == [1]


@given(st.integers(2, 12), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, n, seed):
    rng = np.random.default_rng(seed)
    confidences, h = tensor(rng.beta(8, 1, (5, n)), "float32"), tensor(rng.random(5), "float32")
    together = fast.stop(confidences, h)
    for b in range(5):
        exactly(array(fast.stop(confidences[b : b + 1], h[b : b + 1])), array(together[b : b + 1]), f"request {b}")


def test_lengths_given_to_the_verifier_keep_the_law(fast):
    B, h = (20_000 if fast.side == "torch" else 20), 0.4
    p, q, tokens, _ = on_the_pair(B, (-1, 0, 1), seed=3)
    draft, q = tokens[:, 1:], q[:, :2]
    confidences = tensor(np.take_along_axis(q, draft[..., None], 2)[..., 0], "float32")  # q(x), which has seen x
    lengths = fast.stop(confidences, h)
    kept, token = fast_chain.verify(tensor(p, "float32"), tensor(q, "float32"), tensor(draft), lengths=lengths, seed=5)
    emitted = [(*draft[b, :k].tolist(), x) for b, (k, x) in enumerate(zip(kept.tolist(), token.tolist(), strict=True))]
    consistent(emitted, law(adaptive(TARGET, DRAFT, 2, stopping(DRAFT, F(2, 5)))))
    if B >= 20_000:
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent(emitted, law(adaptive(TARGET, DRAFT, 2, dropping(DRAFT))))


ONES = torch.ones(2, 3)
WRONG = {
    "confidences must be a torch.Tensor": ([[1.0]], 0.5), "confidences must have shape": (torch.ones(3), 0.5),
    "confidences must have dtype": (ONES.double(), 0.5), "h must lie in": (ONES, 1.5), "h must have shape": (ONES, torch.ones(3)),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    confidences, h = WRONG[message]
    with pytest.raises((ValueError, TypeError), match=message):
        fast.stop(confidences, h)


def test_it_compiles_and_leaves_its_inputs(fast):
    confidences, h = torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]), torch.tensor([0.6, 0.0])
    compiled = torch.compile(fast.stop, fullgraph=True, backend="aot_eager")
    assert compiled(confidences, h).tolist() == fast.stop(confidences, h).tolist() == [2, 3]
    assert confidences.tolist() == [[0.5] * 3, [1.0] * 3] and h.dtype == torch.float32
