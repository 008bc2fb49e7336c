r"""Ring attention: the sequence is cut over devices, keys and values travel around a ring, and each device merges what passes by.

Paper: Liu, Zaharia and Abbeel, "Ring Attention with Blockwise Transformers", 2023, arXiv:2310.01889, Sec. 3; Brandon et al., "Striped
Attention", 2023, arXiv:2311.09431, for the striped layout; Liu and Abbeel, "Blockwise Parallel Transformer", 2023, arXiv:2305.19370.

P devices hold a shard of the queries, keys and values each. At step t device r attends the keys of shard (r - t) mod P, and merges the
part into its result by $\oplus$ of `online_softmax`; meanwhile it passes these keys on to device r + 1. After P steps every device has met
all keys:

$$(o_r, L_r) = \bigoplus_{t=0}^{P-1} \text{attention}(q_r, k_{(r-t)\bmod P}, v_{(r-t)\bmod P}).$$

Backward the keys travel once more, and their gradients with them. With the output and the log-sum-exp of *all* keys, what FlashAttention's
backward pass makes of one shard is that shard's contribution: $dq_r$ is its sum at home, $dk_j$ and $dv_j$ are sums that grow on the way.

Under a causal mask a device skips shards that lie behind its own, and waits. Striped, token i stands on device i mod P: then at every step
each device sees half of what it meets.

| name | paper | shape | meaning |
|---|---|---|---|
| `q_shards`, `k_shards`, `v_shards` | | lists of `(n_r, D)`, `(n_r, D)`, `(n_r, Dv)` | one shard per device, of any length |
| `o_shards`, `lse_shards` | | lists of `(n_r, Dv)`, `(n_r,)` | outputs, log-sum-exps |
| `stripes` | | | whether device r holds the tokens r, r + P, r + 2P, … instead of a contiguous piece |

Deviations: this is a simulation, in which all devices take a step together; the papers overlap a step's transfer with its arithmetic.
Shards may be uneven or empty. Under a causal mask the queries and the keys of a device are the same tokens.
Derives from: attention.online_softmax
"""

import numpy as np

from twofold.spec.attention.dense import attention
from twofold.spec.attention.flash import backward as gradients
from twofold.spec.attention.online_softmax import merge

__all__ = ["forward", "backward", "striped"]


def forward(q_shards, k_shards, v_shards, *, causal=False, scale=None):
    """Returns the lists `(o_shards, lse_shards)`: `dense.attention` of the concatenated shards, cut as the queries are.

    >>> x = [np.zeros((1, 1)), np.zeros((0, 1)), np.ones((2, 1))]                 # three devices, one of them without tokens
    >>> o, lse = forward(x, x, [np.array([[3.0]]), np.zeros((0, 1)), np.array([[5.0], [1.0]])], causal=True, scale=0)
    >>> [each.tolist() for each in o], [np.exp(each).round(6).tolist() for each in lse]
    ([[[3.0]], [], [[4.0], [3.0]]], [[1.0], [], [2.0, 3.0]])
    """
    return _forward(q_shards, k_shards, v_shards, _positions(k_shards, False) if causal else None, scale)


def backward(
    q_shards, k_shards, v_shards, o_shards, lse_shards, do_shards, *, dlse_shards=None, causal=False, stripes=False, scale=None
):
    """Gradients `(dq_shards, dk_shards, dv_shards)` from what `forward`, or `striped`, returned."""
    positions = _positions(k_shards, stripes) if causal or stripes else None
    dlse_shards = [None] * len(q_shards) if dlse_shards is None else dlse_shards
    dq = [np.zeros(q.shape) for q in q_shards]
    held = [(j, np.zeros(k_shards[j].shape), np.zeros(v_shards[j].shape)) for j in range(len(k_shards))]  # shard, and its gradients so far
    for _ in held:
        for r, (j, dk, dv) in enumerate(held):
            mask = _mask(positions, r, j)
            if mask is None or mask.any():
                mine = q_shards[r], k_shards[j], v_shards[j], o_shards[r], lse_shards[r], do_shards[r]
                dq_part, dk_part, dv_part, _, _ = gradients(*mine, dlse=dlse_shards[r], mask=mask, scale=scale)
                dq[r] = dq[r] + dq_part
                held[r] = j, dk + dk_part, dv + dv_part
        held = _passed_on(held)                                       # after the last step every shard is at home
    return dq, [dk for _, dk, _ in held], [dv for _, _, dv in held]


def striped(q_shards, k_shards, v_shards, *, scale=None):
    """Causal attention of shards `x[r::P]`: device r holds the tokens r, r + P, r + 2P, …

    >>> x = np.zeros((5, 1)); v = np.array([[6.0], [0.0], [3.0], [7.0], [4.0]])
    >>> [o.round(6).tolist() for o in striped([x[0::2], x[1::2]], [x[0::2], x[1::2]], [v[0::2], v[1::2]])[0]]
    [[[6.0], [3.0], [4.0]], [[3.0], [4.0]]]
    """
    return _forward(q_shards, k_shards, v_shards, _positions(k_shards, True), scale)


def _forward(q_shards, k_shards, v_shards, positions, scale):
    results = [(np.zeros((len(q), v.shape[1])), np.full(len(q), -np.inf)) for q, v in zip(q_shards, v_shards)]
    held = list(range(len(k_shards)))                                 # which shard each device holds
    for _ in held:
        for r, j in enumerate(held):
            mask = _mask(positions, r, j)
            if mask is None or mask.any():                            # skipped: all of it lies behind
                results[r] = merge(results[r], attention(q_shards[r], k_shards[j], v_shards[j], mask=mask, scale=scale))
        held = _passed_on(held)
    return [o for o, _ in results], [lse for _, lse in results]


def _passed_on(held):
    return held[-1:] + held[:-1]                                      # device r receives from device r - 1


def _positions(shards, stripes):
    """Where each device's tokens stand in the sequence."""
    ends = np.cumsum([len(shard) for shard in shards])
    contiguous = [np.arange(end - len(shard), end) for end, shard in zip(ends, shards)]
    return [r + len(shards) * np.arange(len(shard)) for r, shard in enumerate(shards)] if stripes else contiguous


def _mask(positions, r, j):
    return None if positions is None else positions[j] <= positions[r][:, None]
