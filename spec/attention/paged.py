r"""PagedAttention: keys and values lie in blocks anywhere in a pool, and a table says which blocks a sequence owns, in order.

Paper: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023, arXiv:2309.06180,
Sec. 4.1 and Eq. 4 (attention), Sec. 4.2 to 4.5 (the manager).

Token j of a sequence lies in block $T_{\lfloor j/B\rfloor}$, slot $j \bmod B$. The queries are those of the last Nq tokens:

$$o_i = \frac{\sum_{j \le p_i} e^{s_{ij}}\, v_{T_{\lfloor j/B\rfloor},\, j \bmod B}}{\sum_{j \le p_i} e^{s_{ij}}}, \qquad
s_{ij} = \text{scale}\cdot q_i \cdot k_{T_{\lfloor j/B\rfloor},\, j \bmod B}, \qquad p_i = i + \text{length} - N_q.$$

Blocks are handed out one by one as a sequence grows, so less than one block per sequence is ever wasted, and sequences that begin
alike share blocks. Each block counts its owners; who writes into a shared block gets a copy of it first.

| name | paper | shape | meaning |
|---|---|---|---|
| `q` | $q$ | `(Nq, D)` | queries of the sequence's last tokens |
| `k_pool`, `v_pool` | $K_j, V_j$ | `(n_blocks, B, D)`, `(n_blocks, B, Dv)` | all blocks of keys and of values |
| `table` | block table | `(≥ ceil(length / B),)` | the sequence's blocks in order; what stands behind the last one is never read |
| `length` | | | tokens of the sequence |
| `B` | $B$ | | tokens per block |
| `ref`, `free` | reference count | | how many table entries name each block; blocks without owner: first in, first out |
| `mask`, `scale`, `softcap`, `bias`, `sink` | | | as in `attention.dense`; without a mask rows are causal |

Deviations: the paper's queries are single tokens. Block 0 is never handed out: a table of zeros names no data. The queue's order is ours.
Derives from: attention.dense
"""

import numpy as np

from twofold.spec.attention import dense

__all__ = ["attention", "gather", "BlockPool", "OutOfBlocks"]


def attention(q, k_pool, v_pool, table, length, *, mask=None, scale=None, softcap=None, bias=None, sink=None):
    """The definition: returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`.

    >>> pool = np.arange(6.0).reshape(3, 2, 1)                                    # three blocks of two tokens
    >>> o, lse = attention(np.zeros((1, 1)), pool, pool, [2, 1, 99], 3)           # tokens 4, 5 and 2; the 99 is never read
    >>> round(float(o[0, 0]), 6)
    3.666667
    >>> [x.tolist() for x in attention(np.zeros((1, 1)), pool, pool, [], 0)]      # no tokens
    [[[0.0]], [-inf]]
    """
    k, v = gather(k_pool, table, length), gather(v_pool, table, length)
    mask = np.tri(len(q), length, length - len(q), dtype=bool) if mask is None else mask
    return dense.attention(q, k, v, mask=mask, scale=scale, softcap=softcap, bias=bias, sink=sink)


def gather(pool, table, length):
    """The first `length` tokens of a sequence, in order `(length, D)`."""
    token = np.arange(length)
    return pool[np.asarray(table, int)[token // pool.shape[1]], token % pool.shape[1]]


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for; nothing has changed."""


class BlockPool:
    """Who owns which block. It keeps the books; the data are the caller's.

    >>> pool = BlockPool(5, 2)
    >>> pool.create("a", 3)
    >>> pool.fork("a", "b")
    >>> pool.append("b"), pool.append("a")             # b copies slot 0 of the shared block 2 and writes slot 1 of block 3
    ((3, 1, 2), (2, 1, None))
    >>> pool.release("a")
    >>> pool.tables, pool.ref, list(pool.free)         # block 1 is b's alone
    ({'b': [1, 3]}, [0, 1, 0, 1, 0], [4, 2])
    """

    def __init__(self, n_blocks, B):
        self.B, self.ref = B, [0] * n_blocks
        self.free = list(range(1, n_blocks))           # block 0 is never handed out
        self.tables, self.lengths = {}, {}

    def create(self, seq, n):
        """A new sequence with room for n tokens."""
        self._demand_new(seq)
        self.tables[seq], self.lengths[seq] = self._take(-(-n // self.B)), n

    def append(self, seq):
        """Room for one more token: its `(block, slot, copied_from)`; the caller copies slots [0, slot) of `copied_from`, unless None."""
        table, slot = self.tables[seq], self.lengths[seq] % self.B
        copied_from = table[-1] if slot and self.ref[table[-1]] > 1 else None
        if slot == 0:
            table += self._take(1)
        elif copied_from is not None:
            table[-1:] = self._take(1)
            self.ref[copied_from] -= 1
        self.lengths[seq] += 1
        return table[-1], slot, copied_from

    def fork(self, src, dst):
        """A second sequence with the same tokens, which shares every block of the first."""
        self._demand_new(dst)
        self.tables[dst], self.lengths[dst] = list(self.tables[src]), self.lengths[src]
        for block in self.tables[dst]:
            self.ref[block] += 1

    def release(self, seq):
        """Forget a sequence; blocks that nobody owns any more are free, the last one first."""
        for block in reversed(self.tables.pop(seq)):
            self.ref[block] -= 1
            if self.ref[block] == 0:
                self.free.append(block)
        del self.lengths[seq]

    def _take(self, n):
        if n > len(self.free):
            raise OutOfBlocks(f"{n} blocks asked for, {len(self.free)} free")
        taken, self.free = self.free[:n], self.free[n:]
        for block in taken:
            self.ref[block] = 1
        return taken

    def _demand_new(self, seq):
        if seq in self.tables:
            raise ValueError(f"sequence {seq!r} exists")
