r"""HGRN: a recurrent network whose channels never meet, so that its past can be summed in any order.

Paper: Qin, Yang, Zhong, "Hierarchically Gated Recurrent Neural Network for Sequence Modeling", 2023, arXiv:2311.04823, Sec. 3; scans
of such recurrences: Martin, Cundy, "Parallelizing Linear Recurrent Neural Nets Over Sequence Length", 2017, arXiv:1709.04057.

Every channel keeps a part of what it held and adds something new. Gates come from the tokens alone, never from the state:

$$h_t = e^{g_t} h_{t-1} + x_t, \qquad x_t = (1-\alpha_t)\, c_t, \qquad e^{g_t} = \alpha_t = \beta + (1-\beta)\,\sigma(f_t).$$

Some tokens in a row are then one map $h \mapsto e^{G} h + X$, and such maps compose: that is what a `scan` uses. The lower bound $\beta$
grows with the layer: low layers may forget at once, high ones remember long.

| name | paper | shape | meaning |
|---|---|---|---|
| `x` | $(1-\lambda_t)\, c_t$ | `(T, D)` | what is written, the gate's complement times the candidate |
| `g` | $\log\lambda_t$ | `(T, D)` | log-decay, at most 0; `-inf` forgets the channel |
| `f`, `lb` | $\mu_t, \gamma$ | `(T, D)`, `(D,)` or scalar | forget gates before the sigmoid; lower bound of what is kept, in [0, 1) |
| `gamma` | $\Gamma$ | `(L, D)` | one row of learned numbers per layer |
| `S0`, `state` | $h_t$ | `(D,)` | one number per channel, zeros at the start |

Deviations: the paper's state turns by a phase that does not depend on the token; the phase is left out here, as in HGRN2. Gates are kept
as logarithms, $\log\alpha = \mathrm{logaddexp}(\log\beta, \log(1-\beta) + \log\sigma(f))$. Candidate and output gate are the caller's. The
paper's letters and sections are from memory.
Derives from: linear_attention.affine (q = k = 1, a = b = 0, channel by channel).
"""

import numpy as np

__all__ = ["recurrent", "scan", "step", "summary", "backward", "log_forget", "lower_bounds"]


def step(state, x, g):
    """Fade, then add: returns the output `(D,)`, which is the new state, and the new state."""
    state = np.exp(g) * state + x
    return state, state


def recurrent(x, g, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, D)` and the final state `(D,)`.

    >>> x = np.array([[8.0], [4.0], [2.0]])
    >>> recurrent(x, np.log([[1.0], [0.5], [0.5]]))[0].ravel().tolist()                       # halves before each new token
    [8.0, 8.0, 6.0]
    >>> recurrent(x, np.array([[0.0], [-np.inf], [0.0]]))[0].ravel().tolist()                 # forgets before the second token
    [8.0, 4.0, 6.0]
    >>> recurrent(x[:0], x[:0], S0=np.ones(1))[1].tolist()                                    # no token, same state
    [1.0]
    """
    state = np.zeros(x.shape[1]) if S0 is None else S0
    outputs = [x[:0]]
    for t in range(len(x)):
        output, state = step(state, x[t], g[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def scan(x, g, S0=None, chunk=64):
    """The same in two levels, equal for every `chunk`: only the states between chunks wait for each other."""
    pieces = [(x[t : t + chunk], g[t : t + chunk]) for t in range(0, len(x), chunk)]
    state = np.zeros(x.shape[1]) if S0 is None else S0
    before = []
    for total, added in [summary(*piece) for piece in pieces]:
        before.append(state)
        state = np.exp(total) * state + added
    outputs = [recurrent(*piece, start)[0] for piece, start in zip(pieces, before)]
    return np.concatenate([x[:0], *outputs]), outputs[-1][-1] if outputs else state


def summary(x, g):
    """Tokens as one map, h -> e^total h + added: `(D,)` each. Those of two runs compose to (g1 + g2, e^g2 x1 + x2)."""
    return np.sum(g, axis=0), recurrent(x, g)[1]


def backward(x, g, do, dS, S0=None):
    """Adjoint, the same recurrence back in time: dx, dg, dS0 from d outputs `(T, D)` and d final state `(D,)`."""
    S0 = np.zeros(x.shape[1]) if S0 is None else S0
    held = np.concatenate([S0[None], recurrent(x, g, S0)[0]])             # held[t] is what token t found      (T + 1, D)
    dx, dg = [x[:0]], [x[:0]]
    for t in reversed(range(len(x))):
        dh = do[t] + dS                                                   # of the state after token t
        dS = np.exp(g[t]) * dh                                            # of the state before it
        dx.append(dh[None])
        dg.append((dS * held[t])[None])
    return np.concatenate(dx[::-1]), np.concatenate(dg[::-1]), dS


def log_forget(f, lb=0.0):
    """log(lb + (1 - lb) sigmoid(f)), of the shape of f, without computing the sum.

    >>> log_forget(np.array([-800.0]), 0.0).tolist(), np.exp(log_forget(np.array([-800.0]), 0.25)).round(12).tolist()
    ([-800.0], [0.25])
    """
    keep = -np.logaddexp(0.0, -f)                                         # log sigmoid(f)
    lb = np.asarray(lb, dtype=float)
    return np.where(lb > 0, np.logaddexp(np.log(np.where(lb > 0, lb, 1.0)), np.log1p(-lb) + keep), keep)


def lower_bounds(gamma):
    """The bounds of every layer `(L, D)` from learned numbers `(L, D)`: a softmax over the layers, summed up, none in the first.

    >>> lower_bounds(np.zeros((4, 1))).ravel().tolist()
    [0.0, 0.25, 0.5, 0.75]
    """
    share = np.exp(gamma - np.max(gamma, axis=0, initial=-np.inf))
    share = share / np.sum(share, axis=0)
    return np.cumsum(share, axis=0) - share[:1]
