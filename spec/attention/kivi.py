r"""KIVI: a cache of keys and values in two or four bits, in which only the newest tokens stay as they were.

Paper: Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", 2024, arXiv:2402.02750, Sec. 3.3, Alg. 1.

A few channels of the keys are large in every token, so a group of keys should stay within one channel; values have no such channels, and
a value that stays within its token is only as wrong as its token is attended. A group of G numbers keeps its minimum and its step:

$$z = \min x, \qquad s = \frac{\max x - \min x}{2^b - 1}, \qquad c = \text{round}\left(\frac{x - z}{s}\right), \qquad \hat x = c\,s + z.$$

A key's group is G *tokens* of one channel, so tokens wait until a group is full. After n tokens, with a residual length R that G divides,
and $r = n \bmod R$, queries attend

$$\hat k = Q(k_0, \dots, k_{n-r-1}),\ k_{n-r}, \dots, k_{n-1}, \qquad \hat v = Q(v_0, \dots, v_{n-R-1}),\ v_{n-R}, \dots, v_{n-1}.$$

| name | paper | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $t_Q, t_K, t_V$ | `(Nq, D)`, `(N, D)`, `(N, Dv)` | queries of the newest token, the tokens' keys and values |
| `codes` | $Q(X)$ | as `x` | integers from 0 to $2^b - 1$ |
| `scale`, `zero` | $s_X, z_X$ | as `x`, one per group along `axis` | step and minimum of each group |
| `bits`, `group`, `residual` | $B, G, R$ | | width of a code, numbers in a group, tokens kept in full |

Deviations: the paper's algorithm appends, quantizes and then attends (from memory); here, as in the authors' released code, `append`
attends first, so that a new token and its R predecessors are still whole to their own query. A group of equal numbers has the step 1.
Keys arrive rotated. A prompt's attention over itself is `dense.attention` of what `prefill` is given, unquantized.
Derives from: quantization.round_to_nearest, grid `min`
"""

import numpy as np

from twofold.spec.attention import dense
from twofold.spec.quantization import round_to_nearest

__all__ = ["Cache", "quantize", "dequantize"]


class Cache:
    """The definition: keys and values of one sequence and one head. What it holds depends on the tokens, not on how they came in.

    >>> cache = Cache(bits=2, group=2, residual=4)
    >>> tokens = np.arange(6.0)[:, None] ** 2                                     # 0 1 4 9 16 25
    >>> cache.prefill(tokens, tokens)
    >>> [x[:, 0].tolist() for x in cache.contents()]                              # keys 4, 5 and values 2 to 5 are whole
    [[0.0, 1.0, 4.0, 9.0, 16.0, 25.0], [0.0, 1.0, 4.0, 9.0, 16.0, 25.0]]
    >>> o, lse = cache.append(np.zeros((1, 1)), tokens[:1], tokens[:1])
    >>> float(o[0, 0])                                                            # the mean of seven values, the new one among them
    7.857142857142857
    """

    def __init__(self, bits, group, residual):
        if group < 1 or residual < group or residual % group:
            raise ValueError(f"residual must be a positive multiple of group = {group}, not {residual}")
        self.bits, self.group, self.residual = bits, group, residual
        self.old_keys, self.old_values = [], []                           # (codes, scale, zero), oldest first
        self.new_keys, self.new_values = None, None                       # in full

    def prefill(self, k, v):
        """Take in tokens, and quantize those that are then old enough."""
        keys, values = _joined(self.new_keys, k), _joined(self.new_values, v)
        whole = len(keys) - len(keys) % self.residual                     # keys leave R at a time,
        older = max(len(values) - self.residual, 0)                       # a value as soon as R others have come after it
        self.old_keys = self.old_keys + self._quantized(keys[:whole], axis=0)
        self.old_values = self.old_values + self._quantized(values[:older], axis=1)
        self.new_keys, self.new_values = keys[whole:], values[older:]

    def append(self, q, k, v, *, scale=None):
        """One token: what its queries attend, itself included and whole, as `(o, lse)`; then it is taken in."""
        keys, values = self._contents(_joined(self.new_keys, k), _joined(self.new_values, v))
        self.prefill(k, v)
        return dense.attention(q, keys, values, scale=scale)

    def attend(self, q, *, scale=None):
        """What queries find that see every token of the cache: output `(Nq, Dv)` and log-sum-exp `(Nq,)`."""
        return dense.attention(q, *self.contents(), scale=scale)

    def contents(self):
        """Keys `(N, D)` and values `(N, Dv)` as a query sees them."""
        return self._contents(self.new_keys, self.new_values)

    def _contents(self, new_keys, new_values):
        old_keys = [dequantize(*part, self.group, axis=0) for part in self.old_keys]
        old_values = [dequantize(*part, self.group, axis=1) for part in self.old_values]
        return np.concatenate([*old_keys, new_keys]), np.concatenate([*old_values, new_values])

    def _quantized(self, x, axis):
        return [quantize(x, self.bits, self.group, axis)] if len(x) else []


def quantize(x, bits, group, axis):
    """Codes, scale and zero of a matrix whose groups run along `axis`: 0, down a channel, for keys; 1, along a token, for values.

    >>> [part.tolist() for part in quantize(np.array([[0.0, 8.0], [3.0, 8.0]]), 2, 2, axis=0)]     # equal numbers: step 1, code 0
    [[[0, 0], [3, 0]], [[1.0, 1.0]], [[0.0, 8.0]]]
    >>> [part.tolist() for part in quantize(np.array([[0.0, 8.0], [3.0, 8.0]]), 2, 2, axis=1)]
    [[[0, 3], [0, 3]], [[2.6666666666666665], [1.6666666666666667]], [[0.0], [3.0]]]
    """
    codes, scale, zero = round_to_nearest.encode(_rows(x, axis), bits, group, "min")
    return _rows(codes, axis), _rows(scale, axis), _rows(zero, axis)


def dequantize(codes, scale, zero, group, axis):
    """The numbers that the codes stand for."""
    scale, zero = (np.repeat(part, group, axis=axis)[: codes.shape[0], : codes.shape[1]] for part in (scale, zero))
    return codes * scale + zero


def _rows(x, axis):
    """Groups along rows, wherever they ran; its own inverse."""
    return x if axis == 1 else x.T


def _joined(new, more):
    return more if new is None else np.concatenate([new, more])
