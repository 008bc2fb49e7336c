"""Inputs are what they claim: rounded once, laid out as asked, unreadable where nothing may be read."""

import numpy as np
import pytest
import torch
from hypothesis import given

from twofold.conformance import inputs


@given(inputs.regimes, inputs.seeds, inputs.dtypes())
def test_values_are_representable_reproducible_and_finite(regime, seed, dtype):
    first, second = (inputs.values(regime, [(3, 5), (7,)], seed, dtype) for _ in range(2))
    for x, y in zip(first, second, strict=True):
        assert np.array_equal(x, y) and np.all(np.isfinite(x))
        assert np.array_equal(x, inputs.rounded(x, dtype))
        assert np.array_equal(x, inputs.array(inputs.tensor(x, dtype)))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (3, 5)])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "offset"])
def test_layouts_hold_the_same_values_in_other_places(layout, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    laid = inputs.tensor(x, "float32", layout)
    assert np.array_equal(inputs.array(laid), inputs.rounded(x, "float32")) and laid.stride(-1) == 1
    assert laid.is_contiguous() == (layout in ("contiguous", "offset") or (layout == "transposed" and len(shape) == 2))
    if layout in ("sliced", "offset"):
        storage = torch.tensor([], dtype=laid.dtype, device=laid.device).set_(laid.untyped_storage())
        assert torch.isnan(storage).sum() == storage.numel() - laid.numel() > 0


@given(inputs.sizes(16, low=1))
def test_sizes_stand_around_block_edges(size):
    assert size in {1, 15, 16, 17, 31, 33}
