"""RWKV-7 on real values, within derived bounds; gradients, packing, heads; what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.conformance.linear_attention import erasing
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.erasing_laws import (  # noqa: F401
    test_gradients_agree_in_every_format,
    test_gradients_agree_with_the_adjoint,
    test_it_is_a_row_of_the_core,
    test_outputs_and_final_state_agree_with_the_definition,
    test_two_runs_give_the_same_bits_of_gradients,
)
from twofold.conformance.linear_attention.test_rwkv7 import exact_tokens
from twofold.spec.linear_attention import rwkv7

NAMES = ("q", "g", "k", "v", "kappa", "iota")


def two(first, second):
    """Rows of two kinds, token by token."""
    return np.stack([first, second], axis=1).reshape(2 * len(first), -1)


def row(tokens):
    """Two tokens of the core for one: the first looks up kappa and writes what is missing there, nothing, under iota kappa."""
    r, g, k, v, kappa, iota = (tokens[name] for name in NAMES)
    return two(0 * r, r), two(iota * kappa, k), two(0 * v, v), two(g, 0 * k), two(kappa, 0 * kappa)


def chain(tokens, dq, dw, dv, dg, da):
    kappa, iota = tokens["kappa"], tokens["iota"]
    gradients = {"q": dq[1::2], "g": dg[::2], "k": dw[1::2], "v": dv[1::2]}
    return gradients | {"kappa": iota * dw[::2] + da[::2], "iota": kappa * dw[::2]}


def exact(rng, T, K, V, keys=None):
    return exact_tokens(rng, T, K, V)


def real(rng, gates, keys, T, K, V, dtype):
    """Removal keys of length 1, rates over all of 0 … 1."""
    tokens = erasing.real_tokens(rng, gates, keys, T, K, V, dtype)
    k, g = inputs.rounded(rng.standard_normal((T, K)) / 4, dtype), inputs.rounded(erasing.GATES[gates](rng, (T, K)), "float32")
    iota = inputs.rounded(np.clip(rng.uniform(-0.25, 1.25, (T, K)), 0, 1), dtype)
    return {"q": tokens["q"], "g": g, "k": k, "v": tokens["v"], "kappa": tokens["k"], "iota": iota}


@pytest.fixture(scope="module")
def model():
    return erasing.Model(rwkv7, NAMES, row, chain, exact, real, steps=2)


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 9]), min_size=1, max_size=3), st.booleans())
def test_packed_sequences_and_heads_do_not_meet(fast, seed, lengths, shared):
    """Each sequence and head as if alone, one value head on a receptance and key or two."""
    rng, T, H = np.random.default_rng(seed), sum(lengths), 2
    rows = [exact_tokens(rng, T, 5, 3) for _ in range(H)]
    for tokens in rows[1:] if shared else ():
        tokens |= {name: rows[0][name] for name in ("q", "k", "kappa", "iota")}
        tokens["g"] = rows[0]["g"]
    heads = lambda name: rows[:1] if shared and name in ("q", "k", "kappa", "iota") else rows
    tensors = [inputs.tensor(np.stack([each[name] for each in heads(name)], axis=1)[None], "float32") for name in NAMES]
    S0, edges = rng.integers(-2, 3, (len(lengths), H, 5, 3)).astype(float), np.concatenate([[0], np.cumsum(lengths)])
    o, states = fast.chunked(*tensors, inputs.tensor(S0, "float32"), 16, cu_seqlens=inputs.tensor(edges, "int32"))
    for n, h in np.ndindex(len(lengths), H):
        here = slice(edges[n], edges[n + 1])
        output, state = rwkv7.recurrent(*(rows[h][name][here] for name in NAMES), S0[n, h])
        exactly(o[0, here, h], output, f"outputs of sequence {n}, head {h}, of lengths {lengths}")
        exactly(states[n, h], state, f"final state of sequence {n}, head {h}")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"iota": torch.full((1, 5, 1, 4), 1.5)}, ValueError, "iota must"),
        ({"kappa": torch.full((1, 5, 1, 4), 2.0)}, ValueError, "kappa must"),
        ({"g": torch.full((1, 5, 2, 4), 0.5)}, ValueError, "g must"),
        ({"g": torch.zeros(1, 5, 1, 4)}, ValueError, "g must"),
        ({"kappa": torch.ones(1, 5, 2, 4)}, ValueError, "kappa must"),
        ({"k": torch.ones(1, 5, 1, 4, dtype=torch.float16)}, TypeError, "k must"),
        ({name: torch.zeros(1, 5, 3, 4) for name in ("r", "k", "kappa", "iota")}, ValueError, "v must"),
        ({"chunk": 24}, ValueError, "chunk must"),
    ],
)
def test_bad_input_is_named(fast, wrong, error, message):
    shapes = {name: (1, 5, 1, 4) for name in ("r", "k", "kappa", "iota")} | {"v": (1, 5, 2, 3), "g": (1, 5, 2, 4)}
    arguments = {name: torch.zeros(shape) for name, shape in shapes.items()} | wrong
    arguments = {name: x.to(inputs.target.device()) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        fast.chunked(**arguments, check=True)
