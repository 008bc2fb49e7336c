r"""Grouped latent attention: several latents per token, each read by its own group of heads, so that devices can share them out.

Paper: Zadouri, Strauss, Dao, "Hardware-Efficient Attention for Fast Decoding", 2025, arXiv:2505.21487, Sec. 3.3.

Multi-head latent attention has one latent for all heads. Cut the heads over several devices and each of them still needs all of it.
Here a token leaves $h_c$ narrower latents. The heads come in as many equal groups; group a knows only latent a:

$$c_a = \text{norm}(W^{DKV}_a h), \qquad k_i = [W^{UK}_i c_a; k^R], \quad v_i = W^{UV}_i c_a \quad\text{for } i \text{ in group } a,$$

and the rest is as before: one rotated key that all heads share, absorbed projections for decoding. With $h_c = 1$ it is MLA.

| name | paper | shape | meaning |
|---|---|---|---|
| `h`, `pos` | | `(N, M)`, `(N,)` | hidden states and positions |
| `c`, `kr` | $c_{KV}, K_{RoPE}$ | `(h_c, N, d_c)`, `(N, d_R)` | what the cache holds: normed latents and the rotated key |
| `qn`, `qr` | | `(H, N, d_n)`, `(H, N, d_R)` | queries as in `attention.mla` |
| `w_dkv`, `gain` | | `(h_c, d_c, M)`, `(h_c, d_c)` | down-projection and norm of each latent |
| `w_uk`, `w_uv` | | `(H, d_n, d_c)`, `(H, d_v, d_c)` | keys and values of each head out of its group's latent |

Deviations: from memory, each latent has a norm of its own; one over all of them together would tie the groups to each other. Section
number from memory. Queries are those of MLA.
Derives from: attention.mla
"""

import numpy as np

from twofold.spec.attention import mla

__all__ = ["expand", "absorb", "compress"]


def expand(qn, qr, c, kr, w_uk, w_uv, *, mask=None, scale=None):
    """The definition: every group is an MLA of its own; returns outputs `(H, N, d_v)` and log-sum-exps `(H, N)`."""
    return _by_group(mla.expand, qn, qr, c, kr, w_uk, w_uv, mask, scale)


def absorb(qn, qr, c, kr, w_uk, w_uv, *, mask=None, scale=None):
    """The same without keys or values of any head: each group attends its latent as one key head."""
    return _by_group(mla.absorb, qn, qr, c, kr, w_uk, w_uv, mask, scale)


def compress(h, pos, *, w_dkv, gain, w_kr, base=1e4, eps=1e-6, interleaved=True):
    """What a token leaves in the cache: `c` `(h_c, N, d_c)` and `kr` `(N, d_R)`.

    >>> h = np.array([[3.0, 4.0]]); halves = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> c, kr = compress(h, np.zeros(1), w_dkv=halves, gain=np.ones((2, 1)), w_kr=np.zeros((0, 2)), eps=0.0)
    >>> c.tolist(), kr.shape                                                      # a latent of one number is normed to one
    ([[[1.0]], [[1.0]]], (1, 0))
    """
    options = {"w_kr": w_kr, "base": base, "eps": eps, "interleaved": interleaved}
    parts = [mla.compress(h, pos, w_dkv=w, gain=g, **options) for w, g in zip(w_dkv, gain)]
    return np.stack([c for c, _ in parts]), parts[0][1]


def _by_group(form, qn, qr, c, kr, w_uk, w_uv, mask, scale):
    size = len(qn) // len(c)                                          # heads of a group
    results = []
    for a in range(len(c)):
        own = slice(a * size, a * size + size)
        results.append(form(qn[own], qr[own], c[a], kr, w_uk[own], w_uv[own], mask=mask, scale=scale))
    return np.concatenate([o for o, _ in results]), np.concatenate([lse for _, lse in results])
