r"""Context parallelism: the sequence is cut over devices, and all that travels is what each piece does to a memory.

Paper: Sun, Qin, Li, Shen, Qiao and Zhong, "Linear Attention Sequence Parallelism", 2024, arXiv:2404.02882 (states handed on around a ring);
Sun, Lan, Du, Lin, Qiao, Li and Zhong, "LASP-2: Rethinking Sequence Parallelism for Linear Attention and Its Hybrid", 2025,
arXiv:2502.07563 (gathered at once).

To the memory that it meets, a piece of a sequence is an affine map $S \mapsto M S + B$, its summary, and maps compose. Each device makes
the summary of its own piece, everybody gets all of them, and each finds the state with which its piece begins:

$$S_r = M_{r-1}\bigl(\cdots M_1 (M_0 S_0 + B_0) + B_1 \cdots\bigr) + B_{r-1}.$$

A summary is K x K and K x V numbers (K and K x V without a low-rank part), however long the piece. Backward the same happens from the other
end: a device's piece turns the gradient of its last state into $M_r^\top\, dS + \gamma_r$, the gradient of its first.

| name | paper | shape | meaning |
|---|---|---|---|
| `q_shards`, `k_shards`, `v_shards` | $Q_r, K_r, V_r$ | lists of `(n_r, K)`, `(n_r, K)`, `(n_r, V)` | one shard per device, of any length |
| `g_shards`, `a_shards`, `b_shards` | | lists of `(n_r, K)` | log-decays, and the low-rank part, of `affine` |
| `S0` | $S_0$ | `(K, V)` | memory before the first device's first token, zeros unless given |

Deviations: this is a simulation, in which all devices take a step together. The papers treat linear attention with a constant decay; here
it is any affine recurrence.
Derives from: linear_attention.affine
"""

import numpy as np

from twofold.spec.linear_attention import affine

__all__ = ["forward", "backward", "incoming"]


def forward(q_shards, k_shards, v_shards, g_shards, a_shards, b_shards, S0=None):
    """Returns `(o_shards, state)`: `affine.recurrent` of the concatenated shards, its outputs cut as the queries are.

    >>> one, zero = np.ones((2, 1)), np.zeros((2, 1))
    >>> shards = [[one, one[:0], one]] * 3 + [[zero, zero[:0], zero]] * 3                    # three devices, one of them without tokens
    >>> o, state = forward(*shards)
    >>> [each.ravel().tolist() for each in o], state.tolist()
    ([[1.0, 2.0], [], [3.0, 4.0]], [[4.0]])
    """
    tokens = k_shards, v_shards, g_shards, a_shards, b_shards
    first = incoming(*tokens, S0)
    outputs = [affine.chunked(q, *shard, S)[0] for q, *shard, S in zip(q_shards, *tokens, first)]
    return outputs, first[-1]


def incoming(k_shards, v_shards, g_shards, a_shards, b_shards, S0=None):
    """The states before the shards, and after the last: a list one longer."""
    states = [np.zeros((k_shards[0].shape[1], v_shards[0].shape[1])) if S0 is None else S0]
    for M, B in [affine.summary(*shard) for shard in zip(k_shards, v_shards, g_shards, a_shards, b_shards)]:
        states.append(M @ states[-1] + B)
    return states


def backward(q_shards, k_shards, v_shards, g_shards, a_shards, b_shards, do_shards, dS, S0=None):
    """Gradients `(dq_shards, …, db_shards, dS0)` from those of the outputs and of the last state."""
    tokens = k_shards, v_shards, g_shards, a_shards, b_shards
    first, shards = incoming(*tokens, S0), list(zip(q_shards, *tokens, do_shards))
    maps = [affine.summary(*shard)[0] for shard in zip(*tokens)]
    shares = [affine.backward(*shard, np.zeros_like(dS), S)[-1] for shard, S in zip(shards, first)]        # gamma of each device
    last = [dS]
    for M, share in zip(reversed(maps), reversed(shares)):
        last.append(M.T @ last[-1] + share)
    ends = last[-2::-1]                                                                   # d state after each shard
    gradients = [affine.backward(*shard, dS, S) for shard, dS, S in zip(shards, ends, first)]
    return *(list(x) for x in list(zip(*gradients))[:-1]), last[-1]
