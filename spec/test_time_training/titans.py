r"""Titans: a memory that learns by gradient descent while it reads, with momentum and weight decay.

Paper: Behrouz, Zhong, Mirrokni, "Titans: Learning to Memorize at Test Time", 2025, arXiv:2501.00663, Sec. 3.1 (update), Sec. 3.2 (chunks).

The memory is a matrix M that should answer a key with its value. What surprises it is the gradient of half the squared error. Surprise has
momentum, memory has decay:

$$\nabla_t = k_t \otimes (k_t^\top M_{t-1} - v_t), \qquad S_t = \eta_t S_{t-1} - \theta_t \nabla_t, \qquad
M_t = (1 - \alpha_t) M_{t-1} + S_t, \qquad o_t = q_t^\top M_t.$$

`chunked` is another model: all gradients of a chunk are taken at the memory of its start, so that they do not wait for each other.
Then everything is linear, and with $E_{ij} = \prod_{l=j+1}^{i} \eta_l$, $R_{ti} = \prod_{l=i+1}^{t} (1 - \alpha_l)$, lower triangular,

$$M_t = R_{t,-1} M_{-1} + \textstyle\sum_{i \le t} R_{ti} E_{i,-1}\, S_{-1} - \sum_{j \le t} (RE)_{tj}\, \theta_j \nabla_j.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $q_t, k_t, v_t$ | `(T, K)`, `(T, K)`, `(T, V)` | queries, keys, values |
| `alpha`, `eta`, `theta` | $\alpha_t, \eta_t, \theta_t$ | `(T,)` | decay of the memory, momentum, step size |
| `S0`, `state` | $(M, S)$ | two of `(K, V)` | memory and momentum, zeros at the start |
| `chunk` | $b$ | | tokens whose gradients are taken at one memory |

Deviations: the paper's loss is the squared error, whose gradient is twice ours; take theta twice as large. Its memory may be a network of
several layers; here it is a matrix. No ratio of decays is formed, so that alpha = 1, which forgets everything, is a value like others.
From memory: that the block whose memory is a context retrieves before it writes (`retrieve_first`). T keeps its last chunk short.
Derives from: linear_attention.affine (one step is an affine map of M and S stacked)
"""

import numpy as np

__all__ = ["recurrent", "retrieve_first", "chunked", "step"]


def step(state, q, k, v, alpha, eta, theta):
    """Learn one token, then answer: the output `(V,)` and the new state."""
    memory, momentum = state
    momentum = eta * momentum - theta * np.outer(k, k @ memory - v)
    memory = (1 - alpha) * memory + momentum
    return q @ memory, (memory, momentum)


def recurrent(q, k, v, alpha, eta, theta, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, V)` and the final state.

    >>> one = np.ones((3, 1)); v = np.array([[4.0], [4.0], [4.0]]); rate = np.full(3, 0.5)
    >>> recurrent(one, one, v, 0 * rate, 0 * rate, rate)[0].ravel().tolist()                  # half of what is missing, each time
    [2.0, 3.0, 3.5]
    >>> recurrent(one, one, v, 0 * rate, rate, rate)[0].ravel().tolist()                      # momentum carries on, and too far
    [2.0, 4.0, 5.0]
    >>> recurrent(one, one, v, 0 * rate + 1, 0 * rate, rate)[0].ravel().tolist()              # decay 1: nothing is left of before
    [2.0, 1.0, 1.5]
    """
    state, outputs = _start(k, v, S0), []
    for t in range(len(q)):
        output, state = step(state, q[t], k[t], v[t], alpha[t], eta[t], theta[t])
        outputs.append(output)
    return (np.stack(outputs) if outputs else v), state


def retrieve_first(q, k, v, alpha, eta, theta, S0=None):
    """The same memory, asked before it learns the token: o_t = q_t @ M_{t-1}.

    >>> one = np.ones((2, 1)); zero = np.zeros(2)
    >>> retrieve_first(one, one, 4 * one, zero, zero, zero + 0.5)[0].ravel().tolist()
    [0.0, 2.0]
    """
    state, outputs = _start(k, v, S0), []
    for t in range(len(q)):
        outputs.append(q[t] @ state[0])
        state = step(state, q[t], k[t], v[t], alpha[t], eta[t], theta[t])[1]
    return (np.stack(outputs) if outputs else v), state


def chunked(q, k, v, alpha, eta, theta, S0=None, chunk=16):
    """Gradients at the memory of each chunk's start: with chunk = 1 the definition, otherwise a model of its own."""
    state, outputs = _start(k, v, S0), [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(*(x[start : start + chunk] for x in (q, k, v, alpha, eta, theta)), *state)
        outputs.append(output)
    return np.concatenate(outputs), state


def _one_chunk(q, k, v, alpha, eta, theta, memory, momentum):
    kept, carried = _products(1 - alpha), _products(eta)              # from token j, or from before all, through i   (C, C + 1)
    error = k @ memory - v                                            # at the start's memory                         (C, V)
    moved = kept[:, 1:] @ carried                                     # what momentum at each token, or the first, did to M
    answer = (q @ k.T) * moved[:, 1:] * theta
    output = kept[:, :1] * (q @ memory) + moved[:, :1] * (q @ momentum) - answer @ error
    step_size = lambda weights: (k * (weights[-1, 1:] * theta)[:, None]).T @ error
    last = kept[-1, 0] * memory + moved[-1, 0] * momentum - step_size(moved)
    return output, (last, carried[-1, 0] * momentum - step_size(carried))


def _products(x):
    """Products of the factors after j up to i, for j = -1, 0, …: `(C, C + 1)`, 0 where j > i."""
    after = np.arange(len(x))[:, None] > np.arange(-1, len(x))
    return np.tril(np.cumprod(np.where(after, x[:, None], 1.0), axis=0), 1)


def _start(k, v, S0):
    return (np.zeros((k.shape[1], v.shape[1])),) * 2 if S0 is None else S0
