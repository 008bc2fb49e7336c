"""The affine recurrence on real values: bounds, packing and gradients, for transitions with a low-rank part and without."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.linear_attention.test_affine import NAMES, exact_tokens
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine


@few
@given(inputs.regimes, inputs.seeds, st.sampled_from(["vector", "scalar", "none"]), st.booleans())
def test_chunks_agree_with_the_definition(fast, regime, seed, decay, low_rank):
    """Every structure of the decay, with and without a low-rank part; values and, through PyTorch's own differentiation, the adjoint."""
    T, K, V = 35, 5, 3
    q, k, v, S0 = inputs.values(regime, [(T, K), (T, K), (T, V), (K, V)], seed, "float32")
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((T, K))
    a = inputs.rounded(a / np.linalg.norm(a, axis=1, keepdims=True), "float32")  # a transition I - a a^T / 2 does not grow
    g = -np.abs(rng.standard_normal((T, K if decay == "vector" else 1))) * (decay != "none")
    g = inputs.rounded(g, "float32")
    tensor = lambda x: inputs.tensor(x[None, :, None], "float32")
    extra = (tensor(a), tensor(-a / 2)) if low_rank else (None, None)
    decays = None if decay == "none" else tensor(g)
    o, state = fast.chunked(tensor(q), tensor(k), tensor(v), decays, *extra, inputs.tensor(S0[None, None], "float32"))
    extra = (a, -a / 2) if low_rank else (0 * a, 0 * a)
    precision = Precision("float32", operand="tf32x3")
    expected = bounded(affine.chunked, q, k, v, np.broadcast_to(g, (T, K)).copy(), *extra, S0, precision=precision)
    agree(o[0, :, 0], expected[0], "output")
    agree(state[0, 0], expected[1], "final state")


@few
@given(inputs.seeds, st.lists(st.sampled_from([0, 1, 5, 9, 19]), min_size=1, max_size=4), st.sampled_from(["float32", "float16"]))
def test_packed_sequences_and_gradients_are_exact(fast, seed, lengths, dtype):
    """Boundaries inside a chunk, empty sequences, two tokens of the kernel for one: outputs, states and gradients as if each were alone."""
    rng = np.random.default_rng(seed)
    parts = [exact_tokens(rng, T, 5, 3) for T in lengths]
    S0, dS = rng.integers(-2, 3, (2, len(lengths), 1, 5, 3)).astype(float)
    do = rng.integers(-1, 2, (sum(lengths), 3)).astype(float)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    rows = [np.concatenate([part[name] for part in parts])[None, :, None] for name in NAMES]
    rows = [inputs.tensor(x, "float32" if name == "g" else dtype).requires_grad_() for name, x in zip(NAMES, rows, strict=True)]
    first = inputs.tensor(S0, "float32").requires_grad_()
    o, states = fast.chunked(*rows, first, 16, cu_seqlens=inputs.tensor(edges, "int32"))
    upstream = inputs.tensor(do[None, :, None], dtype), inputs.tensor(dS, "float32")
    gradients = torch.autograd.grad([o, states], [*rows, first], upstream)
    for n, part in enumerate(parts):
        where, alone = slice(edges[n], edges[n + 1]), [part[name] for name in NAMES]
        output, state = affine.recurrent(*alone, S0[n, 0])
        exactly(o[0, where, 0], inputs.rounded(output, dtype), f"outputs of sequence {n} of lengths {lengths}")
        exactly(states[n, 0], state, f"final state of sequence {n} of lengths {lengths}")
        *expected, dS0 = affine.backward(*alone, do[where], dS[n, 0], S0[n, 0])
        exactly(gradients[6][n, 0], dS0, f"dS0 of sequence {n}")
        for name, actual, value in zip(NAMES, gradients, expected, strict=False):
            exactly(actual[0, where, 0], value if name == "g" else inputs.rounded(value, dtype), f"d{name} of sequence {n} of {lengths}")
