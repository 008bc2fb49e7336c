r"""An 8-bit cache: each key and value is a byte, a small float or a small integer, and one scale serves a tensor, a page or a token.

Paper: none of its own; the format is e4m3 of Micikevicius et al., "FP8 Formats for Deep Learning", 2022, arXiv:2209.05433, Sec. 3, in its
finite form; scales per tensor, head, page or token are those of serving engines (vLLM, FlashInfer).

With $V = 448$ the largest number of e4m3, or $V = 127$ for integers,

$$s = \frac{\max_{\text{group}} |x|}{V}, \qquad c = \mathrm{round}(x / s), \qquad \hat x = s\,c, \qquad o = A(q, s_k c_k, s_v c_v).$$

e4m3 has a sign, 4 bits of exponent and 3 of mantissa: numbers from $2^{-6}$ to 448 are off by at most $2^{-4}$ of themselves, smaller ones
by at most $2^{-10}$. Integers are off by at most a half. So a logit is off by at most $\text{scale}\sum_d |q_d|\,|\hat k_d - k_d|$.

| name | symbol | shape | meaning |
|---|---|---|---|
| `x` | $x$ | `(N, D)` | keys or values of one head |
| `k`, `v` | $c_k, c_v$ | `(N, D)`, `(N, Dv)` | codes, as numbers |
| `k_scale`, `v_scale` | $s_k, s_v$ | `(ceil(N / group), 1)` | one scale for `group` tokens; for all if None |
| `number` | | | `"e4m3"` or `"int8"` |
| `mask`, `scale`, `softcap`, `bias`, `sink` | | | as in `attention.dense` |

Deviations: overflow saturates, it never becomes NaN; NaN stays NaN. A group of zeros has the scale 1. A scale calibrated beforehand, or one
that several heads share, is an argument of `quantize`. Ties go to the even mantissa, as hardware does it.
Derives from: attention.dense
"""

import numpy as np

from twofold.spec.attention import dense
from twofold.spec.attention.flash_v3 import e4m3

__all__ = ["attention", "quantize"]

LARGEST = {"e4m3": 448, "int8": 127}


def attention(q, k, v, k_scale, v_scale, *, group=None, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """The definition: dense attention over what the codes stand for.

    >>> k, k_scale = quantize(np.array([[0.0], [448.0]]), group=1)                # zero and 448, each its token's largest
    >>> k_scale.tolist()
    [[1.0], [1.0]]
    >>> attention(np.zeros((1, 1)), k, k, k_scale, k_scale, group=1)[0].tolist()
    [[224.0]]
    """
    keys, values = k * _per_token(k_scale, group, len(k)), v * _per_token(v_scale, group, len(v))
    return dense.attention(q, keys, values, mask=mask, scale=scale, softcap=softcap, bias=bias, sink=sink)


def quantize(x, group=None, number="e4m3", *, scale=None):
    """Codes `(N, D)` and scales `(ceil(N / group), 1)`; with a `scale` of that shape given, codes under it.

    >>> [part.tolist() for part in quantize(np.array([[1.0, -127.0], [0.0, 0.0]]), 1, "int8")]     # nothing but zeros: scale 1
    [[[1.0, -127.0], [0.0, 0.0]], [[1.0], [1.0]]]
    >>> quantize(np.array([[1e9, -1e9, 17.0]]), scale=np.array([[1.0]]))[0].tolist()               # beyond 448; half way, to even
    [[448.0, -448.0, 16.0]]
    """
    top = LARGEST[number]
    if scale is None:
        largest = np.max(np.abs(x), axis=1, keepdims=True, initial=0)                    # (N, 1)
        scale = np.maximum.reduceat(largest, np.arange(0, len(x), group or max(len(x), 1)), axis=0) / top
        scale = np.where(scale == 0, 1, scale)
    ratio = x / _per_token(scale, group, len(x))
    return (e4m3(ratio) if number == "e4m3" else np.clip(np.rint(ratio), -top, top)), scale


def _per_token(scale, group, n):
    return np.repeat(scale, group or max(n, 1), axis=0)[:n]                              # (N, 1)
