"""The Mamba-2 mixer: its steps, gate and norm, its two states, and the same mixer in the transformers library."""

import numpy as np
import pytest
import torch
import transformers as library
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.mamba2 import modeling_mamba2 as modeling

from twofold.conformance import inputs
from twofold.conformance.compare import agree, coincide
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.state_space import mamba2

E, H, P, N, G, W = 6, 4, 3, 5, 2, 4
CHANNELS = H * P + 2 * G * N
LIMITS = 0.25, 1.0  # of the steps: some are cut at either end
CONTRACT = Precision("float32", accumulator="tf32x3")  # no number has less than the 22 bits of three tf32 products


def parameters(seed):
    """in_proj, w, b, dt_bias, A, D, weight, out_proj."""
    rng = np.random.default_rng(seed)
    shapes = (E, H * P + CHANNELS + H), (W, CHANNELS), (CHANNELS,), (H,), (H,), (H,), (H * P,), (H * P, E)
    in_proj, w, b, dt_bias, A, D, weight, out_proj = (rng.standard_normal(shape) / 2 for shape in shapes)
    return [inputs.rounded(x, "float32") for x in (in_proj, w, b, dt_bias, -np.exp(A), D, 1 + weight, out_proj)]


def tokens(seed, T):
    return inputs.rounded(np.random.default_rng(seed).standard_normal((T, E)), "float32")


def bound(u, arrays, limits=LIMITS):
    """Outputs, states and tail of the whole, with what an implementation in float32 may differ by."""

    def flat(u, *arrays):
        y, (states, tail) = mamba2.layer(u, *arrays, None, G, *limits)
        return y, states, tail

    return bounded(flat, u, *arrays, precision=CONTRACT)


def tensors(arrays):
    return [inputs.tensor(x, "float32") for x in arrays]


def test_limits_hold_after_the_softplus(fast):
    """Steps are limited, not what the softplus takes: there no step would be 0, and the longest would not be the limit."""
    dt, bias = np.array([[-40.0, -3.0, 0.0, 0.5, 40.0]]), np.array([0.0, 0.0, 0.0, -0.25, 1.0])
    for least, most in ((0.0, np.inf), (0.5, 0.75), (0.0, 0.75)):
        expected = bounded(mamba2.step_sizes, dt, bias, least, most, precision=Precision("float32"))
        steps = fast.step_sizes(*tensors((dt, bias)), least, most)
        agree(steps, expected, "steps")
        for found in (expected.value, inputs.array(steps)):
            assert np.all((least <= found) & (found <= most))


@few
@given(inputs.seeds, inputs.dtypes(), st.sampled_from([1, 2, 4]))
def test_gate_and_norm_agree_with_the_definition(fast, seed, dtype, groups):
    """The gate comes before the norm, and the format of y after it."""
    y, z, weight = inputs.values("normal", [(3, 12), (3, 12), (12,)], seed, dtype)
    actual = fast.gated_norm(*(inputs.tensor(x, dtype) for x in (y, z, weight)), groups)
    agree(actual, bounded(mamba2.gated_norm, y, z, weight, groups, precision=Precision(dtype)), "gated norm")


@given(inputs.seeds, st.sampled_from([2.0**-20, 0.25, 4.0, 2.0**20]))
def test_each_group_is_normalized_by_itself(seed, scale):
    """Without an epsilon: one group scaled leaves everything as it was."""
    y, z, weight = inputs.values("normal", [(3, 12), (3, 12), (12,)], seed)
    scaled = np.concatenate([scale * y[:, :6], y[:, 6:]], axis=1)
    contract = {"precision": Precision("float64", "float64")}
    coincide(*(bounded(mamba2.gated_norm, a, z, weight, 2, 0.0, **contract) for a in (y, scaled)), "norm of a scaled group")


@few
@given(inputs.seeds, st.sampled_from([1, 3, 37]))
def test_the_layer_agrees_with_the_definition(fast, seed, T):
    u, arrays = tokens(seed, T), parameters(seed)
    with torch.no_grad():
        y, (states, tails) = fast.layer(inputs.tensor(u[None], "float32"), *tensors(arrays), None, G, *LIMITS, chunk=16)
    for actual, expected, what in zip((y, states, tails), bound(u, arrays), ("outputs", "states", "tail"), strict=True):
        agree(actual[0], expected, what, independent=True)


@pytest.mark.parametrize("pieces", [[17, 5, 1, 1], [1, 2, 1]])
def test_prompts_pieces_and_tokens_are_one_run(fast, pieces):
    """Two packed sequences, handed from call to call with both their states: several tokens go on from them as one token does."""
    arrays, sequences = parameters(0), [tokens(n, sum(pieces)) for n in range(2)]
    state, outputs, begin = None, [], 0
    for length in pieces:
        packed = np.concatenate([u[begin : begin + length] for u in sequences])[None]
        edges = inputs.tensor(np.array([0, length, 2 * length]), "int32")
        with torch.no_grad():
            y, state = fast.layer(inputs.tensor(packed, "float32"), *tensors(arrays), state, G, *LIMITS, chunk=16, cu_seqlens=edges)
        outputs.append(inputs.array(y).reshape(2, length, E))
        begin += length
    for n, u in enumerate(sequences):
        y, states, tail = bound(u, arrays)
        agree(np.concatenate(outputs, axis=1)[n], y, "outputs in pieces", independent=True)
        agree(state[0][n], states, "states after all pieces", independent=True)
        agree(state[1][n], tail, "tail after all pieces", independent=True)


def mixer(arrays, limits):
    """The library's mixer with these parameters."""
    config = library.Mamba2Config(
        hidden_size=E, expand=2, num_heads=H, head_dim=P, state_size=N, n_groups=G, conv_kernel=W, chunk_size=16, time_step_limit=limits,
        num_hidden_layers=1, vocab_size=8, layer_norm_epsilon=1e-5,
    )  # fmt: skip
    in_proj, w, b, dt_bias, A, D, weight, out_proj = tensors(arrays)
    theirs = modeling.Mamba2Mixer(config, 0).eval().to(inputs.target.device())
    theirs.load_state_dict(
        {
            "in_proj.weight": in_proj.T, "conv1d.weight": w.T[:, None], "conv1d.bias": b, "dt_bias": dt_bias, "A_log": (-A).log(), "D": D,
            "norm.weight": weight, "out_proj.weight": out_proj.T,
        }
    )  # fmt: skip
    return theirs, library.DynamicCache(config=config), -theirs.A_log.detach().exp()


@few
@given(inputs.seeds, st.sampled_from([LIMITS, (0.0, float("inf"))]))
def test_the_mixer_of_transformers_is_this_one(fast, seed, limits):
    """A prompt of three chunks, then five tokens on its cache: their outputs, states and tails, and ours, stay within one bound."""
    u, arrays = tokens(seed, 42), parameters(seed)
    theirs, cache, A = mixer(arrays, limits)
    arrays[4] = inputs.array(A)  # through a logarithm and back
    rows = inputs.tensor(u[None], "float32")
    with torch.no_grad():
        pieces = [theirs(rows[:, :37], cache=cache), theirs(rows[:, 37:], cache=cache)]
        state = cache.get_recurrent_state(0, state_idx=0), cache.get_conv_state(0, state_idx=0)
        y, (states, tails) = fast.layer(rows, *tensors(arrays), None, G, *limits, chunk=16)
    expected = bound(u, arrays, limits)
    found = {"theirs": (torch.cat(pieces, 1), state[0].mT, state[1][:, :, 1 - W :].mT), "ours": (y, states, tails)}
    for whose, results in found.items():
        for actual, wanted, what in zip(results, expected, ("outputs", "states", "tail"), strict=True):
            agree(actual[0], wanted, f"{what}, {whose}", independent=True)


@pytest.mark.parametrize("change, message", [({"w": (W, H * P)}, "w must"), ({"in_proj": (E, 9)}, "in_proj must"), ({"D": (5,)}, "w must")])
def test_bad_shapes_are_named(fast, change, message):
    names = "in_proj", "w", "b", "dt_bias", "A", "D", "weight", "out_proj"
    given_ = dict(zip(names, tensors(parameters(0)), strict=True))
    given_ |= {name: torch.zeros(shape, device=inputs.target.device()) for name, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        fast.layer(inputs.tensor(tokens(0, 3)[None], "float32"), **given_, groups=G)
