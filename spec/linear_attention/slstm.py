r"""sLSTM: an LSTM whose gates still look at its own output, with an exponential input gate and a normalizer that counts what came in.

Paper: Beck, Pöppel, Spanring, Auer, Prudnikova, Kopp, Klambauer, Brandstetter, Hochreiter, "xLSTM: Extended Long Short-Term Memory", 2024,
arXiv:2405.04517, Sec. 2.2 (Eq. 8–18).

Candidates and gates are sums of a token's own part and of a part of the last output, $\tilde x_t = x_t + h_{t-1} R_x$ for x = z, i, f, o:

$$z_t = \tanh\tilde z_t, \qquad o_t = \sigma(\tilde o_t), \qquad \log f_t = \log\sigma(\tilde f_t), \qquad
m_t = \max(\log f_t + m_{t-1},\, \tilde i_t),$$
$$c_t = e^{\log f_t + m_{t-1} - m_t}\, c_{t-1} + e^{\tilde i_t - m_t}\, z_t, \qquad
n_t = e^{\log f_t + m_{t-1} - m_t}\, n_{t-1} + e^{\tilde i_t - m_t}, \qquad h_t = o_t\, \frac{c_t}{n_t}.$$

A cell over its normalizer is a mean of all candidates so far, under weights that fade with the forget gates. Because a gate needs the last
output, no token can begin before the last one has ended: there is no other form.

| name | paper | shape | meaning |
|---|---|---|---|
| `z`, `i`, `f`, `o` | $W x_t + b$ | `(T, D)` | the tokens' own parts of candidates and gates, finite |
| `R` | $R_z, R_i, R_f, R_o$ | `(4, D, D)` | weights of the last output, in this order, acting on rows from the right |
| `exp_forget` | $\log f_t = \tilde f_t$ | | the forget gate is an exponential instead of a sigmoid, and may let the past grow |
| `S0`, `state` | $c_t, n_t, h_t, m_t$ | `(D,)` four times | cell, normalizer, last output, log of the unit of both; zeros, and m = `-inf` |

Deviations: one head; R of several is block-diagonal, a matrix for each. The sigmoid is the default, as in released code. Equation numbers
and the order of the four are from memory.
Derives from: linear_attention.mlstm (key and query of one channel that is 1, and gates that see the last output).
"""

import numpy as np

from twofold.spec.linear_attention.hgrn import log_forget

__all__ = ["recurrent", "step"]


def step(state, z, i, f, o, R, exp_forget=False):
    """One token: returns the output `(D,)` and the new state, of which it is a part."""
    c, n, h, m = state
    z, i, f, o = (x + h @ R[j] for j, x in enumerate((z, i, f, o)))
    keep = f if exp_forget else log_forget(f)
    largest = np.maximum(keep + m, i)
    kept, added = np.exp(keep + m - largest), np.exp(i - largest)
    c, n = kept * c + added * np.tanh(z), kept * n + added
    h = np.exp(log_forget(o)) * (c / n)
    return h, (c, n, h, largest)


def recurrent(z, i, f, o, R, exp_forget=False, S0=None):
    """The definition: one `step` per token. Returns the outputs `(T, D)` and the final state.

    >>> z = np.array([[800.0], [-800.0], [0.0]]); zero, open = 0 * z, 0 * z + 800; R = np.zeros((4, 1, 1))
    >>> recurrent(z, zero, open, open, R)[0].round(12).ravel().tolist()                       # the mean of 1, -1 and 0, so far
    [1.0, 0.0, 0.0]
    >>> recurrent(z, np.log([[1.0], [3.0], [4.0]]), open, open, R)[0].round(12).ravel().tolist()  # weights of 1, 3 and 4
    [1.0, -0.5, -0.25]
    >>> recurrent(z, zero, zero + np.log(3), open, R, exp_forget=True)[0].round(12).ravel().tolist()  # what is old counts three times
    [1.0, 0.5, 0.461538461538]
    >>> R[0] = 4000.0; recurrent(z - 800, zero, -open, open, R)[0].ravel().tolist()           # a candidate asks the last output
    [0.0, -1.0, -1.0]
    """
    zeros, outputs = np.zeros(z.shape[1]), [z[:0]]
    state = (zeros, zeros, zeros, np.full(z.shape[1], -np.inf)) if S0 is None else S0
    for t in range(len(z)):
        output, state = step(state, z[t], i[t], f[t], o[t], R, exp_forget)
        outputs.append(output[None])
    return np.concatenate(outputs), state
