r"""Multi-head latent attention: keys and values of all heads are read out of one small vector per token.

Paper: DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model", 2024, arXiv:2405.04434,
Sec. 2.1, Eq. 9-19.

A token leaves a latent vector c and one rotated key $k^R$ that all heads share; nothing else is stored. Every head has its own way to read
keys and values out of c:

$$c = \text{norm}(W^{DKV} h), \qquad k^R = \text{rope}(W^{KR} h), \qquad [q^N_i; r_i] = W^{UQ}_i\,\text{norm}(W^{DQ} h),$$
$$q^R_i = \text{rope}(r_i), \quad k_i = [W^{UK}_i c; k^R], \quad v_i = W^{UV}_i c, \quad o_i = \text{attention}([q^N_i; q^R_i], k_i, v_i).$$

Since $q^N\cdot W^{UK}c = (W^{UK\top} q^N)\cdot c$ and $\sum_j p_j W^{UV} c_j = W^{UV}\sum_j p_j c_j$, the up-projections can be *absorbed*
into queries and output. Then all heads attend the latents themselves, as one key head whose values are its keys: what decoding wants.

| name | paper | shape | meaning |
|---|---|---|---|
| `h`, `pos` | $h_t, t$ | `(N, M)`, `(N,)` | hidden states and positions |
| `c`, `kr` | $c^{KV}, k^R$ | `(N, d_c)`, `(N, d_R)` | what the cache holds: normed latent and rotated key |
| `qn`, `qr` | $q^C, q^R$ | `(H, N, d_n)`, `(H, N, d_R)` | the two parts of the queries |
| `w_dkv`, `w_kr`, `w_dq` | | `(d_c, M)`, `(d_R, M)`, `(d_q, M)` | down-projections; `gain` of each norm |
| `w_uq` | | `(H, d_n + d_R, d_q)` | queries of each head |
| `w_uk`, `w_uv` | | `(H, d_n, d_c)`, `(H, d_v, d_c)` | keys and values of each head |
| `scale` | | | $(d_n + d_R)^{-1/2}$ where left out, in the absorbed form too |

Deviations: heads are explicit. RoPE turns the pairs (2i, 2i + 1), as the released model does, or (i, i + d/2) with `interleaved=False`;
norms stand where the released model has them (the report mentions them in its hyperparameters). `seesaw` is not in the report: it is the
schedule of two tiles and two halves of the output that FlashMLA describes, for an output too wide for one group of threads.
Derives from: attention.dense, attention.flash, attention.rope
"""

import numpy as np

from twofold.spec.attention import dense, rope

__all__ = ["expand", "absorb", "compress", "queries", "seesaw"]


def expand(qn, qr, c, kr, w_uk, w_uv, *, mask=None, scale=None):
    """The definition: keys and values of every head; returns outputs `(H, N, d_v)` and log-sum-exps `(H, N)`."""
    heads = []
    for i in range(len(qn)):
        q = np.concatenate([qn[i], qr[i]], axis=1)                    # (N, d_n + d_R)
        k = np.concatenate([c @ w_uk[i].T, kr], axis=1)
        heads.append(dense.attention(q, k, c @ w_uv[i].T, mask=mask, scale=scale))
    return np.stack([o for o, _ in heads]), np.stack([lse for _, lse in heads])


def absorb(qn, qr, c, kr, w_uk, w_uv, *, mask=None, scale=None):
    """The same without keys or values of any head: queries go down to the latents, the mean latent comes up."""
    scale = (qn.shape[2] + qr.shape[2]) ** -0.5 if scale is None else scale
    heads, k = [], np.concatenate([c, kr], axis=1)                    # (N, d_c + d_R)
    for i in range(len(qn)):
        q = np.concatenate([qn[i] @ w_uk[i], qr[i]], axis=1)          # (N, d_c + d_R)
        o, lse = dense.attention(q, k, c, mask=mask, scale=scale)     # o (N, d_c)
        heads.append((o @ w_uv[i].T, lse))
    return np.stack([o for o, _ in heads]), np.stack([lse for _, lse in heads])


def compress(h, pos, *, w_dkv, gain, w_kr, base=1e4, eps=1e-6, interleaved=True):
    """What a token leaves in the cache: `c` `(N, d_c)` and `kr` `(N, d_R)`."""
    return _norm(h @ w_dkv.T, gain, eps), rope.rotate(h @ w_kr.T, pos, base=base, interleaved=interleaved)


def queries(h, pos, *, w_dq, gain, w_uq, d_rope, base=1e4, eps=1e-6, interleaved=True):
    """Queries of all heads, unrotated and rotated part: `(H, N, d_n)` and `(H, N, d_R)`."""
    latent = _norm(h @ w_dq.T, gain, eps)                             # (N, d_q)
    q = np.stack([latent @ w.T for w in w_uq])                        # (H, N, d_n + d_R)
    split = q.shape[2] - d_rope
    return q[:, :, :split], np.stack([rope.rotate(each, pos, base=base, interleaved=interleaved) for each in q[:, :, split:]])


def seesaw(q, k, v, *, block, mask=None, scale=None):
    """`flash.forward` of one head for two tiles at a time, with the halves of the output updated in opposite order."""
    half, m, l = v.shape[1] // 2, np.full(len(q), -np.inf), np.zeros(len(q))
    left, right = np.zeros((len(q), half)), np.zeros((len(q), v.shape[1] - half))
    for start in range(0, len(k), 2 * block):
        first, second = slice(start, start + block), slice(start + block, start + 2 * block)
        s0, s1 = (dense.logits(q, k[j], scale=scale, mask=None if mask is None else mask[:, j]) for j in (first, second))
        m0 = np.maximum(m, np.max(s0, axis=1, initial=-np.inf))
        a0, p0 = _against(m, m0), _against(s0, m0[:, None])
        left = a0[:, None] * left + p0 @ v[first, :half]
        m1 = np.maximum(m0, np.max(s1, axis=1, initial=-np.inf))
        a1, p1 = _against(m0, m1), _against(s1, m1[:, None])
        right = (a0 * a1)[:, None] * right + p1 @ v[second, half:]
        p0 = a1[:, None] * p0                                         # the first tile, against the second maximum
        left = a1[:, None] * left + p1 @ v[second, :half]
        right = right + p0 @ v[first, half:]
        l = a0 * a1 * l + np.sum(p0, axis=1) + np.sum(p1, axis=1)
        m = m1
    total = np.where(l == 0, 1.0, l)
    lse = np.where(l == 0, -np.inf, np.where(m == -np.inf, 0.0, m) + np.log(total))
    return np.concatenate([left, right], axis=1) / total[:, None], lse


def _against(s, m):
    return np.exp(s - np.where(m == -np.inf, 0.0, m))


def _norm(x, gain, eps):
    return gain * (x / np.sqrt(np.mean(x * x, axis=1) + eps)[:, None])
