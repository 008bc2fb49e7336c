"""PagedAttention: keys and values in pools (n_blocks, page, Hkv, D) that a block table names. See `twofold.spec.attention.paged`.

`table` (B, n) and `length` (B,) are int32 or int64; token j of sequence b lies in block table[b, j // page], slot j % page. Entries that
hold no token of a sequence, and blocks that no table names, are never read, nor is what lies in front of a sequence's window. Pages have
any size; the kernel is `split_attention`, with chunks of `size` tokens as in `attention.split_kv`. A table entry out of range is an error
on the CPU; a GPU would have to be waited for. There are no gradients.

`BlockPool` keeps the books on the host: an operation takes as long as the blocks are many that it hands out, shares or takes back.
"""

from collections import deque
from collections.abc import Hashable

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention._arguments import sink_per_head
from twofold.fast.attention.split_kv import checked_options
from twofold.fast.kernels import split_attention_torch
from twofold.fast.kernels.split_attention import SIZE, demand_places, split_attention

__all__ = ["attention", "gather", "BlockPool", "OutOfBlocks"]


def attention(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, table: Tensor, length: Tensor, *, causal: bool = True,
    window: tuple[int | None, int | None] | None = None, scale: float | None = None, softcap: float | None = None,
    sink: Tensor | None = None, size: int = SIZE, splits: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (B, N, H, D), the queries of the last N tokens -> o (B, N, H, Dv) in its dtype, log-sum-exp (B, H, N) in float32.

    `window` = (left, right) allows the positions p - left … p + right, None being no bound; `sink` (H,) is one logit per head that takes
    attention and gives nothing.
    """
    sizes = checks.shape(k_pool=(k_pool, "n_blocks page Hkv D"), v_pool=(v_pool, "n_blocks page Hkv Dv"))
    _check_places(k_pool, table, length)
    checks.shape(table=(table, "B n"), q=(q, "B N H D"))
    capacity = table.shape[1] * sizes["page"]
    options = checked_options(q, k_pool, v_pool, capacity, size, splits, length, causal, window, scale, softcap)
    return split_attention(q, k_pool, v_pool, sink=sink_per_head(q, sink), table=table, length=length, **options)


def gather(pool: Tensor, table: Tensor, length: Tensor) -> Tensor:
    """The tokens of every sequence in order (B, n · page, …), from a pool (n_blocks, page, …); zeros behind a sequence's end."""
    _check_places(pool, table, length)
    demand_places(pool, table, length)
    token = torch.arange(table.shape[1] * pool.shape[1], device=pool.device)  # (T,)
    return split_attention_torch.gather(pool, table, token, token < length[:, None])


def _check_places(pool, table, length):
    if pool.ndim < 2 or not pool.shape[1]:
        raise ValueError(f"k_pool must have shape (n_blocks, page, …) with pages of at least one token, not {tuple(pool.shape)}")
    checks.shape(table=(table, "B n"), length=(length, "B"))
    checks.dtypes(torch.int32, torch.int64, table=table, length=length)
    checks.same_device(pool=pool, table=table, length=length)


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for; nothing has changed."""


class BlockPool:
    """Who owns which block. It keeps the books; the data are the caller's. Block 0 is never handed out."""

    def __init__(self, n_blocks: int, B: int) -> None:
        if n_blocks < 1 or B < 1:
            raise ValueError(f"n_blocks and B must be at least 1, not {n_blocks} and {B}")
        self.B = B
        self.ref = [0] * n_blocks
        self.free = deque(range(1, n_blocks))
        self.tables: dict[Hashable, list[int]] = {}
        self.lengths: dict[Hashable, int] = {}

    def create(self, seq: Hashable, n: int) -> None:
        """A new sequence with room for n tokens."""
        self._demand_new(seq)
        if n < 0:
            raise ValueError(f"n must be at least 0, not {n}")
        self.tables[seq], self.lengths[seq] = self._take(-(-n // self.B)), n

    def append(self, seq: Hashable) -> tuple[int, int, int | None]:
        """Room for one more token: its `(block, slot, copied_from)`; the caller copies slots [0, slot) of `copied_from`, unless None."""
        table, slot = self.tables[seq], self.lengths[seq] % self.B
        copied_from = None
        if slot == 0:
            table.extend(self._take(1))
        elif self.ref[table[-1]] > 1:
            (block,) = self._take(1)
            copied_from, table[-1] = table[-1], block
            self.ref[copied_from] -= 1
        self.lengths[seq] += 1
        return table[-1], slot, copied_from

    def fork(self, src: Hashable, dst: Hashable) -> None:
        """A second sequence with the same tokens, which shares every block of the first."""
        self._demand_new(dst)
        self.tables[dst], self.lengths[dst] = self.tables[src].copy(), self.lengths[src]
        for block in self.tables[dst]:
            self.ref[block] += 1

    def release(self, seq: Hashable) -> None:
        """Forget a sequence; blocks that nobody owns any more are free, the last one first."""
        del self.lengths[seq]
        for block in reversed(self.tables.pop(seq)):
            self.ref[block] -= 1
            if not self.ref[block]:
                self.free.append(block)

    def _take(self, n: int) -> list[int]:
        if n > len(self.free):
            raise OutOfBlocks(f"{n} blocks asked for, {len(self.free)} free")
        taken = [self.free.popleft() for _ in range(n)]
        for block in taken:
            self.ref[block] = 1
        return taken

    def _demand_new(self, seq: Hashable) -> None:
        if seq in self.tables:
            raise ValueError(f"sequence {seq!r} exists")
