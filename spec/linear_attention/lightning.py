r"""Lightning attention: linear attention with a constant decay per head, cut into blocks so that only products of matrices are left.

Paper: Qin, Sun, Li, Shen, Sun, Zhong, "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in Large Language
Models", 2024, arXiv:2401.04658, Algorithm 1; decays of Qin, Li, Sun, Sun, Shen, Han, Wei, Lv, Yuan, Luo, Qiao, Zhong, "Scaling
TransNormer to 175 Billion Parameters", 2023, arXiv:2307.14995 (exponential), and of released code (ALiBi-like).

$$S_t = \lambda S_{t-1} + k_t\otimes v_t, \qquad o_t = q_t^\top S_t.$$

A block of B tokens is attention within, under powers of lambda, and one product with the state for all that came before:

$$O = (QK^\top \odot M)\,V + \Lambda\, Q\,S, \qquad S \leftarrow \lambda^B S + (\bar\Lambda K)^\top V, \qquad
M_{ij} = \lambda^{i-j},\ \Lambda = \mathrm{diag}(\lambda, \dots, \lambda^B),\ \bar\Lambda = \mathrm{diag}(\lambda^{B-1}, \dots, 1).$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $Q, K, V$ | `(T, K)`, `(T, K)`, `(T, V)` | queries (already scaled), keys, values |
| `lam` | $\lambda$ | scalar in (0, 1] | what is left of the memory after a token |
| `block` | $B$ | | tokens per block |
| `S0`, `state` | $KV$ | `(K, V)` | memory, key axis first, zeros at the start |

Deviations: the paper writes the keys' decays as lambda^B Lambda^-1, of which the inverse alone overflows; here the exponent B - j is made
first. Both schedules of slopes are here since models with either are in use; -log lambda is the slope. Details of both from memory.
Derives from: linear_attention.retnet (no rotation).
"""

import numpy as np

from twofold.spec.linear_attention import retnet

__all__ = ["recurrent", "chunked", "step", "slopes_exponential", "slopes_alibi"]


def step(state, q, k, v, lam):
    """Fade, write one token, then read: returns the output `(V,)` and the new state `(K, V)`."""
    return retnet.step(state, q, k, v, lam)


def recurrent(q, k, v, lam, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state `(K, V)`."""
    return retnet.recurrent(q, k, v, lam, S0)


def chunked(q, k, v, lam, S0=None, block=64):
    """The paper's algorithm: blocks one after the other. Equal for every `block`."""
    state = np.zeros((k.shape[1], v.shape[1])) if S0 is None else S0
    outputs, log = [v[:0]], np.log(lam)
    for start in range(0, len(q), block):
        Q, K, V = (x[start : start + block] for x in (q, k, v))
        i = np.arange(len(Q))
        M = np.exp(np.where(i[:, None] >= i, log * (i[:, None] - i), -np.inf))                   # (B, B)
        outputs.append((Q @ K.T * M) @ V + np.exp(log * (i + 1))[:, None] * (Q @ state))
        state = np.exp(log * len(Q)) * state + (np.exp(log * i[::-1])[:, None] * K).T @ V
    return np.concatenate(outputs), state


def slopes_exponential(H, layer, layers):
    """-log lambda of H heads `(H,)`: 8 h / H, less in every later layer; head 0 never forgets.

    >>> slopes_exponential(4, 0, 2).tolist(), slopes_exponential(4, 1, 2).tolist()
    ([0.0, 2.0, 4.0, 6.0], [0.0, 1.0, 2.0, 3.0])
    """
    return 8.0 * np.arange(H) / H * (1 - layer / layers)


def slopes_alibi(H, layer, layers):
    """-log lambda of H heads `(H,)`, as ALiBi's: 2^(-8 (h + 1) / H), almost none in the last layer.

    Where H is no power of two: those of the largest power below it, then every second one of twice as many.

    >>> np.round(slopes_alibi(2, 0, 3), 6).tolist(), np.round(slopes_alibi(3, 2, 3), 9).tolist()
    ([0.062501, 0.003906], [6.25e-07, 3.9e-08, 2.5e-06])
    """
    power = 2 ** (max(H, 1).bit_length() - 1)
    plain = lambda n: 2.0 ** (-8.0 * np.arange(1, n + 1) / n)
    slopes = np.concatenate([plain(power), plain(2 * power)[::2]])[:H]
    return slopes * (1 - layer / max(layers - 1, 1) + 1e-5) if layers > 1 else slopes * (1 + 1e-5)
