r"""RWKV-4: attention without queries, in which every channel takes a mean of its past, by weights that fade and that keys decide.

Paper: Peng, Alcaide, Anthony, Albalak, Arcadinho, Cao, Cheng, Chung, Grella, and others, "RWKV: Reinventing RNNs for the Transformer Era",
2023, arXiv:2305.13048, Sec. 3.1 (token shift, Eq. 11–13; the WKV operator, Eq. 16) and the appendix on the RNN in a stable form.

$$y_t = \frac{\sum_{j<t} e^{-(t-1-j)\,w + k_j}\, v_j + e^{u + k_t}\, v_t}{\sum_{j<t} e^{-(t-1-j)\,w + k_j} + e^{u + k_t}}.$$

A token sees the one before it without any decay, and itself with a weight of its own, u. Both sums fade by $e^{-w}$ per token and are kept
divided by $e^{o_t}$, the largest weight that a token of the past still has:

$$o_t = \max(o_{t-1} - w,\, k_t), \qquad p_t = e^{o_{t-1}-w-o_t}\, p_{t-1} + e^{k_t-o_t}\, v_t, \qquad
q_t = e^{o_{t-1}-w-o_t}\, q_{t-1} + e^{k_t-o_t}.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `k`, `v` | $k_t, v_t$ | `(T, D)` | log-weights, finite, and values |
| `w`, `u` | $w, u$ | `(D,)` | decay per token, above 0 in the model (a negative one grows); bonus of the token itself |
| `S0`, `state` | $a'_t, b'_t, p_t$ | `(D,)` three times | sums of values and of weights, log of their unit; zeros and `-inf` |
| `x`, `mu` | $x_t, \mu$ | `(T, D)`, `(D,)` | rows of a layer, and how much of each is its own |

Deviations: released code starts from o = -1e38 in place of -inf; with finite keys both give the same. The layer around it,
w = exp(learned number), receptance gates sigmoid(r) y and three mixes, is the caller's. Numbers of sections and equations are from memory.
Derives from: linear_attention.affine (per channel: q = 1, write key e^k, values [v, 1], g = -w, read before the write with a bonus e^u).
"""

import numpy as np

from twofold.spec.linear_attention import hgrn

__all__ = ["recurrent", "scan", "step", "gates", "token_shift"]


def step(state, k, v, w, u):
    """Read, with a bonus for the token itself, then fade and add: returns the output `(D,)` and the new state."""
    p, q, o = state
    output = _read(p, q, o, k, v, u)
    largest = np.maximum(o - w, k)
    kept, added = np.exp(o - w - largest), np.exp(k - largest)
    return output, (kept * p + added * v, kept * q + added, largest)


def recurrent(k, v, w, u, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, D)` and the final state.

    >>> v = np.array([[8.0], [4.0], [0.0]]); zero = np.zeros(1)
    >>> recurrent(0 * v, v, zero, zero)[0].ravel().tolist()                                   # nothing fades: the mean so far
    [8.0, 6.0, 4.0]
    >>> recurrent(0 * v, v, np.log([2.0]), zero)[0].round(12).ravel().tolist()                # the token before has not faded yet
    [8.0, 6.0, 3.2]
    >>> recurrent(0 * v, v, zero, np.array([-800.0]))[0].ravel().tolist()                     # only the first must look at itself
    [8.0, 8.0, 6.0]
    >>> recurrent(v * [100.0], v, zero, zero)[0].ravel().tolist()                             # the largest weight takes it all
    [8.0, 8.0, 8.0]
    """
    state, outputs = _start(v) if S0 is None else S0, [v[:0]]
    for t in range(len(v)):
        output, state = step(state, k[t], v[t], w, u)
        outputs.append(output[None])
    return np.concatenate(outputs), state


def scan(k, v, w, u, S0=None, chunk=64):
    """The same, once the units are known: both sums are a scan of HGRN, with twice the channels. Equal for every `chunk`."""
    p, q, o = _start(v) if S0 is None else S0
    write, g, after = gates(k, w, o)
    first = np.concatenate([p, q])
    sums, last = hgrn.scan(np.concatenate([write * v, write], axis=1), np.concatenate([g, g], axis=1), first, chunk)
    before = np.concatenate([first[None], sums])[:-1]                     # what each token finds            (T, 2 D)
    units, D = np.concatenate([o[None], after]), len(w)
    return _read(before[:, :D], before[:, D:], units[:-1], k, v, u), (last[:D], last[D:], units[-1])


def gates(k, w, o):
    """Writes and log-decays of both sums, at most 1 and at most 0, and the units after each token: `(T, D)`, from the unit before them.

    >>> [x.round(12).ravel().tolist() for x in gates(np.log([[1.0], [8.0], [1.0]]), np.log([2.0]), np.zeros(1))]
    [[1.0, 1.0, 0.25], [-0.69314718056, -2.77258872224, 0.0], [0.0, 2.07944154168, 1.38629436112]]
    """
    units = [o[None]]
    for row in k:
        units.append(np.maximum(units[-1] - w, row[None]))
    units = np.concatenate(units)
    return np.exp(k - units[1:]), units[:-1] - w - units[1:], units[1:]


def token_shift(x, mu, last=None):
    """Each row mixed with the row before it, `last` (None: zeros) before the first: mu x_t + (1 - mu) x_{t-1}.

    >>> token_shift(np.array([[4.0], [8.0]]), np.array([0.75])).ravel().tolist()
    [3.0, 7.0]
    """
    first = np.zeros_like(x[:1]) if last is None else last[None]
    return mu * x + (1 - mu) * np.concatenate([first, x])[: len(x)]


def _read(p, q, o, k, v, u):
    """The mean of what was kept and the token itself, in the larger of both units."""
    own = u + k
    unit = np.maximum(o, own)
    kept, added = np.exp(o - unit), np.exp(own - unit)
    return (kept * p + added * v) / (kept * q + added)


def _start(v):
    return np.zeros(v.shape[1]), np.zeros(v.shape[1]), np.full(v.shape[1], -np.inf)
