"""FlashAttention-2 without rounding: over a prime field its tiles give the very elements that the definition gives."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.spec.attention import dense, flash

sizes = st.integers(0, 7)


@given(inputs.seeds, sizes, sizes, st.integers(1, 8), st.integers(1, 8), st.sampled_from(["none", "causal", "random"]), st.booleans())
@example(0, 5, 3, 2, 1, "causal", True)
def test_tiles_reorder_a_rational_function(seed, n_q, n_k, block_q, block_k, mask, sink):
    """Every mask, bias, sink and tiling; rows without keys included. The maximum against which a row is measured is an arbitrary logit."""
    q, k, v = field.problem(seed, n_q, n_k, 2)
    rng = np.random.default_rng(seed + 1)
    masks = {"none": None, "causal": np.tri(n_q, n_k, n_k - n_q, dtype=bool), "random": rng.random((n_q, n_k)) < 0.4}
    options = {"mask": masks[mask], "bias": field.logits(rng, n_q, n_k), "sink": field.logits(rng) if sink else None, "scale": 1}
    field.exactly(flash.forward(q, k, v, block_q=block_q, block_k=block_k, **options), dense.attention(q, k, v, **options))


def test_a_forgotten_rescale_shows_in_the_field(monkeypatch):
    """The control: without the factor e^(m - m') the tiles give other elements."""
    q, k, v = field.problem(3, 3, 6, 2)
    whole = dense.attention(q, k, v, scale=1)
    exp = field.SPECIAL[np.exp]
    forgotten = lambda x: exp(x) if x.ndim == 2 else exp(np.where(x == -np.inf, -np.inf, 0.0))  # rescaling is the exponential of a vector
    monkeypatch.setitem(field.SPECIAL, np.exp, forgotten)
    with pytest.raises(AssertionError, match="instead of"):
        field.exactly(flash.forward(q, k, v, block_q=3, block_k=2, scale=1), whole)
