"""Comba on real values, within derived bounds; gradients, packing, heads; what it refuses."""

import numpy as np
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
from twofold.conformance.linear_attention.test_comba import model  # noqa: F401
from twofold.spec.linear_attention import comba

SHAPES = {"q": (1, 5, 1, 4), "k": (1, 5, 1, 4), "v": (1, 5, 2, 3), "g": (1, 5, 2), "beta": (1, 5, 2), "p": (1, 5, 2, 4), "d": (2,)}
SHAPES |= {"S0": (1, 2, 4, 3)}


def test_the_gradient_of_d_is_an_exact_difference(fast, model):  # noqa: F811
    """Outputs are affine in d, per head: with two heads of different d, on integers."""
    rng = np.random.default_rng(0)
    parts = [model.exact(rng, 35, 5, 3) for _ in range(2)]
    parts[1] |= {name: parts[0][name] for name in ("q", "k", "beta")}
    rows = [np.stack([part[name] for part in parts[: 1 if name in ("q", "k") else 2]], axis=1)[None] for name in model.names]
    d, do = inputs.tensor(np.array([1.0, -2.0]), "float32").requires_grad_(), rng.integers(-1, 2, (35, 2, 3)).astype(float)
    o, _ = fast.chunked(*(inputs.tensor(x, "float32") for x in rows), d, None, 16)
    (gradient,) = torch.autograd.grad(o, d, inputs.tensor(do[None], "float32"))
    for h, part in enumerate(parts):
        at = lambda d, part=part: comba.recurrent(*model.arguments(part), d)[0]
        exactly(o[0, :, h], at([1.0, -2.0][h]), f"outputs of head {h}")
        exactly(gradient[h], ((at(1.0) - at(0.0)) * do[:, h]).sum(), f"gradient of d of head {h}")


def test_a_gate_wide_open_allows_twice_the_strength(fast):
    """beta p·k may be 1 + e^g: 2 with nothing forgotten, 1 with everything."""
    one = torch.ones(1, 4, 1, 1, device=inputs.target.device())
    d, rows = torch.zeros(1, device=one.device), (one, one, one)
    fast.chunked(*rows, 0 * one[..., 0], 2 * one[..., 0], one, d, check=True)
    with pytest.raises(ValueError, match="beta must keep"):
        fast.chunked(*rows, 0 * one[..., 0] - 9, 2 * one[..., 0], one, d, check=True)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"beta": torch.full((1, 5, 2), -3.0)}, ValueError, "beta must keep"),
        ({"beta": torch.full((1, 5, 2), 4.0)}, ValueError, "beta must keep"),
        ({"p": torch.ones(1, 5, 1, 4)}, ValueError, "p must"),
        ({"d": torch.ones(1)}, ValueError, "d must"),
        ({"beta": torch.ones(1, 5, 1)}, ValueError, "beta must"),
        ({"g": torch.zeros(1, 5, 1)}, ValueError, "g must"),
        ({"g": torch.full((1, 5, 2), 0.5)}, ValueError, "g must"),
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
