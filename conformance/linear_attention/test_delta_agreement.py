"""The delta rule on real values, within derived bounds; gradients, packing, heads; what it refuses."""

import pytest
import torch

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention.erasing_laws import (  # noqa: F401
    test_gradients_agree_in_every_format,
    test_gradients_agree_with_the_adjoint,
    test_outputs_and_final_state_agree_with_the_definition,
    test_sequences_and_heads_do_not_meet,
    test_two_runs_give_the_same_bits_of_gradients,
)
from twofold.conformance.linear_attention.test_delta import model  # noqa: F401

SHAPES = {"q": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3), "beta": (1, 5, 2), "S0": (1, 2, 4, 3)}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"k": torch.full((1, 5, 1, 4), 2.0)}, ValueError, "k must have beta"),
        ({"beta": torch.full((1, 5, 2), 9.0)}, ValueError, "k must have beta"),
        ({"beta": torch.full((1, 5, 2), -0.5)}, ValueError, "beta must"),
        ({"beta": torch.ones(1, 5, 1)}, ValueError, "beta must"),
        ({"beta": torch.ones(1, 5, 2, dtype=torch.int64)}, TypeError, "beta must"),
        ({"v": torch.ones(1, 5, 2, 3, dtype=torch.float16)}, TypeError, "v must"),
        ({"q": torch.ones(1, 5, 3, 4), "k": torch.ones(1, 5, 3, 4) / 2}, ValueError, "v must"),
        ({"S0": torch.zeros(1, 2, 3, 4)}, ValueError, "S0 must"),
        ({"S0": None, "cu_seqlens": torch.tensor([0, 4])}, ValueError, "cu_seqlens must"),
        ({"chunk": 24}, ValueError, "chunk must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    arguments = {name: torch.full(shape, 0.5) for name, shape in SHAPES.items()} | wrong
    arguments = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.chunked(**arguments, check=True)


def test_the_form_compiles(fast):
    """In one graph, with the eager results bit for bit."""
    arguments = {name: torch.full(SHAPES[name], 0.5, device=inputs.target.device()) for name in SHAPES}
    compiled = torch.compile(lambda **x: fast.chunked(**x), fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(**arguments), fast.chunked(**arguments), strict=True):
        exactly(actual, expected, "compiled")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_keys_normalized_in_their_format_are_accepted(fast, dtype):
    """Their length is 1 up to rounding, so that beta = 2 is as strong as it may be."""
    k = torch.nn.functional.normalize(torch.arange(1.0, 161).view(1, 8, 1, 20).to(inputs.target.device(), getattr(torch, dtype)), dim=-1)
    v, beta = torch.ones(1, 8, 1, 3, dtype=k.dtype, device=k.device), torch.full((1, 8, 1), 2.0, device=k.device)
    fast.chunked(k, k, v, beta, check=True)
