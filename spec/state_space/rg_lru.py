r"""RG-LRU: a linear recurrence per channel whose gate decides both what is kept and how loud the new input is.

Paper: De, Smith, Fernando, et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models", 2024,
arXiv:2402.19427, Sec. 2.4 (Eqs. 1-4), App. A (in logarithms); block-diagonal gates and the clipped slope are those of its released code.

$$r_t = \sigma(\text{gate}_a), \quad i_t = \sigma(\text{gate}_x), \quad \log a_t = -8\,\mathrm{softplus}(\Lambda)\, r_t, \qquad
h_t = a_t h_{t-1} + \sqrt{1 - a_t^2}\;(i_t x_t).$$

The squares of the two factors sum to 1: inputs of unit variance leave a state of unit variance, however long its memory. At a reset
$a_t = 0$ and the root is 1, as at the start of a text.

| name | paper | shape | meaning |
|---|---|---|---|
| `x` | $x_t$ | `(T, D)` | inputs |
| `gate_x`, `gate_a` | $W_x x_t + b_x$, $W_a x_t + b_a$ | `(T, D)` | input and recurrence gate before the sigmoid |
| `Lambda` | $\Lambda$ | `(D,)` | learned: how fast a channel forgets with its gate wide open |
| `reset` | | `(T,)` of bool | where a new text begins; None: nowhere |
| `W`, `b` | $W_a, b_a$ | `(H, D/H, D/H)`, `(D,)` | a gate's block-diagonal weights, one block per head, applied to rows |
| `S0`, `state` | $h_t$ | `(D,)` | one number per channel, zeros at the start |

Deviations: $1 - a^2$ is `-expm1(2 log a)`, exact where a is near 1, not a difference as in the released code; as there, the slope of
the root, which has no limit, is clipped at 1000 in the adjoint. The paper's text has $a = \sigma(\Lambda)$, which would make the rate
$\mathrm{softplus}(-\Lambda)$; its appendix and its code have the sign of this page. (The paper, its equations and numbers, from memory.)
Derives from: linear_attention.hgrn (another g and another x).
"""

import numpy as np

from twofold.spec.linear_attention import hgrn

__all__ = ["recurrent", "scan", "step", "backward", "block_diagonal"]

RATE = 8.0
STEEPEST = 1000.0  # slope of the root in the adjoint


def step(state, x, gate_x, gate_a, Lambda, reset=False):
    """Fade and add one token: returns the output `(D,)`, which is the new state, and the new state."""
    return hgrn.step(state, *_gated(x, gate_x, gate_a, Lambda, reset))


def recurrent(x, gate_x, gate_a, Lambda, reset=None, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, D)` and the final state `(D,)`.

    >>> x = np.array([[3.0], [5.0], [7.0]]); wide = np.full((3, 1), np.inf)
    >>> recurrent(x, wide, -wide, np.zeros(1), S0=np.ones(1))[0].ravel().tolist()       # a shut recurrence gate: nothing fades or enters
    [1.0, 1.0, 1.0]
    >>> recurrent(x, wide, -wide, np.zeros(1), np.array([True, False, False]))[0].ravel().tolist()    # a new text: its first token, in full
    [3.0, 3.0, 3.0]
    >>> recurrent(x[:0], x[:0], x[:0], np.zeros(1), S0=np.ones(1))[1].tolist()          # no token, same state
    [1.0]
    """
    state = np.zeros(x.shape[1]) if S0 is None else S0
    outputs = [x[:0]]
    for t in range(len(x)):
        output, state = step(state, x[t], gate_x[t], gate_a[t], Lambda, reset is not None and reset[t])
        outputs.append(output[None])
    return np.concatenate(outputs), state


def scan(x, gate_x, gate_a, Lambda, reset=None, S0=None, chunk=64):
    """The same by the scan of HGRN: gates first, all tokens at once."""
    return hgrn.scan(*_gated(x, gate_x, gate_a, Lambda, _column(reset)), S0, chunk)


def _gated(x, gate_x, gate_a, Lambda, reset):
    """What is written, and log-decays."""
    log_a = _log_a(gate_a, Lambda)
    return _root(log_a, reset) * (_sigmoid(gate_x) * x), np.where(reset, -np.inf, log_a)


def backward(x, gate_x, gate_a, Lambda, do, dS, reset=None, S0=None):
    """Adjoint: dx, dgate_x, dgate_a, dLambda, dS0 from d outputs `(T, D)` and d final state `(D,)`."""
    reset, r, i, log_a = _column(reset), _sigmoid(gate_a), _sigmoid(gate_x), _log_a(gate_a, Lambda)
    write, g = _gated(x, gate_x, gate_a, Lambda, reset)
    dwrite, dg, dS0 = hgrn.backward(write, g, do, dS, S0)
    root = _root(log_a, reset)
    slope = 0.5 / np.maximum(root, 0.5 / STEEPEST)                        # of the root, in 1 - a^2
    dlog_a = np.where(reset, 0.0, dg - 2 * np.exp(2 * log_a) * slope * (i * x) * dwrite)
    dgate_a = -RATE * _softplus(Lambda) * dlog_a * (r * (1 - r))
    dLambda = np.sum(-RATE * r * dlog_a, axis=0) * _sigmoid(Lambda)
    return dwrite * root * i, dwrite * root * x * (i * (1 - i)), dgate_a, dLambda, dS0


def block_diagonal(x, W, b):
    """A gate before its sigmoid `(T, D)`: every head's channels see those of their own head.

    >>> block_diagonal(np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([np.eye(2), [[0, 1], [1, 0]]]), np.zeros(4)).tolist()
    [[1.0, 2.0, 4.0, 3.0]]
    """
    return np.einsum("thi,hij->thj", x.reshape(-1, *W.shape[:2]), W).reshape(x.shape) + b


def _log_a(gate_a, Lambda):
    return -RATE * _softplus(Lambda) * _sigmoid(gate_a)


def _root(log_a, reset):
    return np.where(reset, 1.0, np.sqrt(-np.expm1(2 * log_a)))


def _softplus(x):
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))  # every digit also where it is tiny


def _sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -x))


def _column(reset):
    return False if reset is None else reset[:, None]
