"""Kimi delta attention on real values, within derived bounds; gradients, packing, heads; what it refuses."""

import pytest
import torch

from twofold.conformance import inputs
from twofold.conformance.linear_attention.erasing_laws import (  # noqa: F401
    test_gradients_agree_in_every_format,
    test_gradients_agree_with_the_adjoint,
    test_outputs_and_final_state_agree_with_the_definition,
    test_sequences_and_heads_do_not_meet,
    test_two_runs_give_the_same_bits_of_gradients,
)
from twofold.conformance.linear_attention.test_kda import model  # noqa: F401

SHAPES = {"q": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3), "g": (1, 5, 2, 4), "beta": (1, 5, 2), "S0": (1, 2, 4, 3)}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"k": torch.full((1, 5, 1, 4), 2.0)}, ValueError, "k must have beta"),
        ({"beta": torch.full((1, 5, 2), -0.5)}, ValueError, "beta must"),
        ({"beta": torch.ones(1, 5, 1)}, ValueError, "beta must"),
        ({"g": torch.zeros(1, 5, 2)}, ValueError, "g must"),
        ({"g": torch.full((1, 5, 2, 4), 0.5)}, ValueError, "g must"),
        ({"q": torch.ones(1, 5, 3, 4), "k": torch.ones(1, 5, 3, 4) / 2}, ValueError, "v must"),
        ({"S0": torch.zeros(1, 2, 3, 4)}, ValueError, "S0 must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"chunk": 24}, ValueError, "chunk must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    arguments = {name: torch.full(shape, -0.5 if name == "g" else 0.5) for name, shape in SHAPES.items()} | wrong
    arguments = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.chunked(**arguments, check=True)
