"""The Mamba block: its two states, and the same block in the transformers library."""

import numpy as np
import pytest
import torch
import transformers as library
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.mamba import modeling_mamba as modeling

from twofold.conformance import inputs
from twofold.conformance.compare import agree
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.state_space import mamba

E, D, N, R, W = 3, 6, 5, 2, 4
CONTRACT = Precision("float32", accumulator="tf32x3")  # no number has less than the 22 bits of three tf32 products
NAMES = "in_proj", "w", "b", "x_proj", "dt_proj", "dt_bias", "A", "D", "out_proj"


def parameters(seed):
    rng = np.random.default_rng(seed)
    shapes = (E, 2 * D), (W, D), (D,), (D, R + 2 * N), (R, D), (D,), (D, N), (D,), (D, E)
    arrays = dict(zip(NAMES, (rng.standard_normal(shape) / 2 for shape in shapes), strict=True))
    arrays["A"] = -np.exp(arrays["A"])
    return {name: inputs.rounded(x, "float32") for name, x in arrays.items()}


def tokens(seed, T):
    return inputs.rounded(np.random.default_rng(seed).standard_normal((T, E)), "float32")


def bound(u, arrays):
    """Outputs, state and tail of the whole, with what an implementation in float32 may differ by."""

    def flat(u, *arrays):
        y, (state, tail) = mamba.layer(u, *arrays)
        return y, state, tail

    return bounded(flat, u, *arrays.values(), precision=CONTRACT)


def tensors(arrays):
    return {name: inputs.tensor(x, "float32") for name, x in arrays.items()}


@few
@given(inputs.seeds, st.sampled_from([1, 3, 37]))
def test_the_layer_agrees_with_the_definition(fast, seed, T):
    u, arrays = tokens(seed, T), parameters(seed)
    with torch.no_grad():
        y, (states, tails) = fast.layer(inputs.tensor(u[None], "float32"), **tensors(arrays), chunk=64)
    for actual, expected, what in zip((y, states, tails), bound(u, arrays), ("outputs", "states", "tail"), strict=True):
        agree(actual[0], expected, what)


@pytest.mark.parametrize("pieces", [[17, 5, 1, 1], [1, 2, 1]])
def test_prompts_pieces_and_tokens_are_one_run(fast, pieces):
    """Two packed sequences, handed from call to call with both their states: several tokens go on from them as one token does."""
    arrays, sequences = parameters(0), [tokens(n, sum(pieces)) for n in range(2)]
    state, outputs, begin = None, [], 0
    for length in pieces:
        packed = np.concatenate([u[begin : begin + length] for u in sequences])[None]
        edges = inputs.tensor(np.array([0, length, 2 * length]), "int32")
        with torch.no_grad():
            y, state = fast.layer(inputs.tensor(packed, "float32"), **tensors(arrays), S0=state, cu_seqlens=edges)
        outputs.append(inputs.array(y).reshape(2, length, E))
        begin += length
    for n, u in enumerate(sequences):
        y, states, tail = bound(u, arrays)
        agree(np.concatenate(outputs, axis=1)[n], y, "outputs in pieces")
        agree(state[0][n], states, "states after all pieces")
        agree(state[1][n], tail, "tail after all pieces")


def mixer(arrays):
    """The library's block with these parameters, and its rates, which went through a logarithm."""
    config = library.MambaConfig(
        hidden_size=E, expand=2, state_size=N, conv_kernel=W, time_step_rank=R, num_hidden_layers=1, vocab_size=8, use_mambapy=False
    )  # fmt: skip
    theirs = modeling.MambaMixer(config, 0).eval().to(inputs.target.device())
    x = tensors(arrays)
    theirs.load_state_dict(
        {
            "in_proj.weight": x["in_proj"].T, "conv1d.weight": x["w"].T[:, None], "conv1d.bias": x["b"], "x_proj.weight": x["x_proj"].T,
            "dt_proj.weight": x["dt_proj"].T, "dt_proj.bias": x["dt_bias"], "A_log": (-x["A"]).log(), "D": x["D"],
            "out_proj.weight": x["out_proj"].T,
        }
    )  # fmt: skip
    return theirs, library.DynamicCache(config=config), -theirs.A_log.detach().exp()


@few
@given(inputs.seeds)
def test_the_block_of_transformers_is_this_one(fast, seed):
    """A prompt, then single tokens on its cache: their outputs, states and tails, and ours, stay within one bound."""
    u, arrays = tokens(seed, 22), parameters(seed)
    theirs, cache, A = mixer(arrays)
    arrays["A"] = inputs.array(A)
    rows = inputs.tensor(u[None], "float32")
    with torch.no_grad():
        pieces = [theirs(rows[:, i:j], cache=cache) for i, j in ((0, 19), (19, 20), (20, 21), (21, 22))]
        state = cache.get_recurrent_state(0, state_idx=0), cache.get_conv_state(0, state_idx=0)
        y, (states, tails) = fast.layer(rows, **tensors(arrays))
    expected = bound(u, arrays)
    found = {"theirs": (torch.cat(pieces, 1), state[0], state[1][:, :, 1 - W :].mT), "ours": (y, states, tails)}
    for whose, results in found.items():
        for actual, wanted, what in zip(results, expected, ("outputs", "states", "tail"), strict=True):
            agree(actual[0], wanted, f"{what}, {whose}")


@pytest.mark.parametrize(
    "change, message", [({"w": (W, 5)}, "w must"), ({"x_proj": (D, 9)}, "x_proj must"), ({"in_proj": (E, 9)}, "in_proj must")]
)
def test_bad_shapes_are_named(fast, change, message):
    arguments = tensors(parameters(0)) | {name: torch.zeros(shape, device=inputs.target.device()) for name, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        fast.layer(inputs.tensor(tokens(0, 3)[None], "float32"), **arguments)
