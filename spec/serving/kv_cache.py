r"""A key-value cache: sequences that are filled in pieces, decoded together, forked and forgotten, and that attend as if they lay in rows.

Paper: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023, arXiv:2309.06180, Sec. 4.3
(decoding with blocks) and Sec. 4.4 (parallel sampling, copy on write).

What a cache must do is said without one. Tokens of a sequence come in pieces, whole prompts, parts of prompts, single tokens or drafted
chains. Each new token attends all earlier ones, those of its own piece included; row i sees the keys up to $n_{\text{past}} + i$:

$$o = \text{attention}\big(q,\; [k_{\text{past}}; k],\; [v_{\text{past}}; v]\big).$$

The cache stores the pieces in blocks of a pool, so that no piece is ever moved, and forks share what they have in common. How a text was
cut into pieces, what else was decoded with it, and who shares its blocks does not show.

| name | shape | meaning |
|---|---|---|
| `q`, `k`, `v` | `(N, D)`, `(N, D)`, `(N, Dv)` | of a piece of N tokens; in `decode` of N tokens for each of S sequences, `(S, N, ·)` |
| `past_k`, `past_v` | `(n, D)`, `(n, Dv)` | what came before |
| `n_blocks`, `B` | | blocks of the pool, tokens per block; as in `attention.paged` |
| `window` | | (left, right): the positions that a row at p sees, p - left … p + right; None is no bound |
| `scale`, `softcap`, `sink` | | as in `attention.dense` |

Deviations: one layer and one head; a model keeps one pool of blocks and as many arrays as it has layers. The paper's kernels attend one
token per sequence; here pieces have any length. A piece for which there is no room changes nothing.
Derives from: attention.paged, attention.dense
"""

from copy import deepcopy

import numpy as np

from twofold.spec.attention import dense, paged

__all__ = ["attention", "Cache"]


def attention(q, k, v, past_k, past_v, *, window=None, scale=None, softcap=None, sink=None):
    """The definition: a piece `(N, ·)` attends what came before and itself; returns output `(N, Dv)` and log-sum-exp `(N,)`.

    >>> piece, past = np.zeros((2, 1)), np.zeros((1, 1))
    >>> attention(piece, piece, piece + [[3.0], [9.0]], past, past)[0].tolist()   # means of 0, 3 and of 0, 3, 9
    [[1.5], [4.0]]
    """
    k, v = np.concatenate([past_k, k]), np.concatenate([past_v, v])
    left, right = window or (None, None)
    ahead = np.arange(len(k))[None, :] - (np.arange(len(q)) + len(past_k))[:, None]  # of each row's position (N, n + N)
    mask = (ahead <= 0) & (True if left is None else ahead >= -left) & (True if right is None else ahead <= right)
    return dense.attention(q, k, v, mask=mask, scale=scale, softcap=softcap, sink=sink)


class Cache:
    """Sequences by name, in blocks of one pool.

    >>> cache = Cache(n_blocks=5, B=2, d=1, dv=1)
    >>> rows = np.array([[1.0], [2.0], [3.0]])
    >>> cache.prefill("a", rows, rows, rows)[0].shape
    (3, 1)
    >>> cache.fork("a", "b")
    >>> q = np.zeros((2, 1, 1))                                                   # one token each, which asks for the mean
    >>> o, lse = cache.decode(["b", "a"], q, q, np.array([[[6.0]], [[10.0]]]))
    >>> o[:, 0, 0].tolist(), cache.contents("b")[1][:, 0].tolist()
    ([3.0, 4.0], [1.0, 2.0, 3.0, 6.0])
    >>> cache.release("a")
    """

    def __init__(self, n_blocks, B, d, dv):
        self.pool = paged.BlockPool(n_blocks, B)
        self.k, self.v = np.zeros((n_blocks, B, d)), np.zeros((n_blocks, B, dv))

    def prefill(self, seq, q, k, v, **options):
        """Append a piece to a sequence, a new one if there is none of that name; output `(N, Dv)`, log-sum-exp `(N,)` of its tokens."""
        o, lse = self._extended([seq], q[None], k[None], v[None], options, new=seq not in self.pool.tables)
        return o[0], lse[0]

    def decode(self, seqs, q, k, v, **options):
        """Append N tokens to each of several sequences `(S, N, ·)`; outputs `(S, N, Dv)`, log-sum-exps `(S, N)`."""
        return self._extended(seqs, q, k, v, options)

    def fork(self, src, dst):
        self.pool.fork(src, dst)

    def release(self, seq):
        self.pool.release(seq)

    def contents(self, seq):
        """All keys and values of a sequence, in order."""
        return tuple(paged.gather(x, self.pool.tables[seq], self.pool.lengths[seq]) for x in (self.k, self.v))

    def _extended(self, seqs, q, k, v, options, new=False):
        if len(set(seqs)) < len(seqs):
            raise ValueError("seqs must name each sequence once")
        books = deepcopy(self.pool)                                   # where blocks run out, these are thrown away
        if new:
            books.create(seqs[0], 0)
        places = [[books.append(seq) for _ in piece] for seq, piece in zip(seqs, k)]
        self.pool = books
        for s, piece in enumerate(places):
            for i, (block, slot, copied_from) in enumerate(piece):
                for memory, rows in ((self.k, k), (self.v, v)):
                    if copied_from is not None:
                        memory[block, :slot] = memory[copied_from, :slot]
                    memory[block, slot] = rows[s, i]
        results = [self._attended(seq, rows, options) for seq, rows in zip(seqs, q)]
        return np.stack([o for o, _ in results]), np.stack([lse for _, lse in results])

    def _attended(self, seq, q, options):
        k, v = self.contents(seq)
        past = len(k) - len(q)
        return attention(q, k[past:], v[past:], k[:past], v[:past], **options)
