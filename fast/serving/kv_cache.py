"""A key-value cache for a batch of growing sequences, in pages of tensors. See `twofold.spec.serving.kv_cache`.

One layer:

    cache = Cache(n_blocks=4096, B=16, heads=8, d=128, dtype=torch.bfloat16, device="cuda")
    o, lse = cache.prefill("request 7", q, k, v)              # (T, H, D), (T, Hkv, D), (T, Hkv, Dv): a prompt, or the next piece of one
    cache.fork("request 7", "request 7, second sample")
    o, lse = cache.decode(names, q, k, v)                     # (S, N, H, D), …: N tokens for each of S sequences
    cache.release("request 7")

Several layers share the books. Reserve places once per forward pass, then attend in each layer:

    step = cache.extend(names, n)
    o, lse = cache.attend(step, q, k, v, layer=3)

Keys and values are written where they stay, (layers, n_blocks, B, Hkv, ·); forks share blocks until one of them writes. Few rows attend
through the table, `attention.paged`; longer pieces attend their gathered past, `attention.flash`. Where blocks run out, `OutOfBlocks` of
`attention.paged` is raised and nothing has changed. A sequence that is decoded has the same bits in any batch and any order.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from twofold.fast import checks
from twofold.fast.attention import flash, paged
from twofold.fast.attention._arguments import sink_per_head
from twofold.fast.attention.split_kv import checked_options
from twofold.fast.kernels.split_attention_config import FEW

__all__ = ["Cache"]


@dataclass(frozen=True)
class Step:
    """N new tokens for each of S sequences: where they are stored and what their sequences hold, these tokens included."""

    block: Tensor  # (S, N)
    slot: Tensor  # (S, N)
    table: Tensor  # (S, n)
    length: Tensor  # (S,)
    lengths: list[int]  # the same, for the host


class Cache:
    """Sequences by name, in blocks of one pool; `heads` is the number of key heads."""

    def __init__(
        self, n_blocks: int, B: int, heads: int, d: int, dv: int | None = None, *,
        layers: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        for name, number in (("heads", heads), ("d", d), ("dv", dv), ("layers", layers)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        self.pool = paged.BlockPool(n_blocks, B)
        self.k = torch.zeros(layers, n_blocks, B, heads, d, dtype=dtype, device=device)
        self.v = torch.zeros(layers, n_blocks, B, heads, d if dv is None else dv, dtype=dtype, device=device)
        self._rows: dict[Hashable, Tensor] = {}  # tables as tensors, made anew when a sequence gets another block

    def prefill(self, seq: Hashable, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Append a piece (T, ·, ·) to a sequence, a new one if there is none of that name: output (T, H, Dv), log-sum-exp (H, T).

        `options` are those of `attention.paged`: window, scale, softcap, sink.
        """
        checks.shape(q=(q, "T H D"), k=(k, "T Hkv D"), v=(v, "T Hkv Dv"))
        self._check(q[None], k[None], v[None], **options)
        o, lse = self.attend(self.extend([seq], len(q), new=True), q[None], k[None], v[None], **options)
        return o[0], lse[0]

    def decode(self, seqs: Sequence[Hashable], q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Append N tokens to each of S sequences (S, N, ·, ·): outputs (S, N, H, Dv), log-sum-exps (S, H, N)."""
        self._check(q, k, v, **options)
        if len(seqs) != len(q):
            raise ValueError(f"seqs must name the {len(q)} sequences of q, not {len(seqs)}")
        return self.attend(self.extend(seqs, q.shape[1]), q, k, v, **options)

    def extend(self, seqs: Sequence[Hashable], n: int, *, new: bool = False) -> Step:
        """Reserve places for n more tokens of each sequence; `new` allows names that are not in the cache yet."""
        pool = self.pool
        if len(set(seqs)) < len(seqs):
            raise ValueError(f"seqs must name each sequence once, not {list(seqs)}")
        unknown = [seq for seq in seqs if seq not in pool.tables]
        if unknown and not new:
            raise ValueError(f"seqs must name sequences of the cache, which has no {unknown[0]!r}")
        if (needed := self._needed(seqs, n)) > len(pool.free):
            raise paged.OutOfBlocks(f"{needed} blocks asked for, {len(pool.free)} free")
        for seq in unknown:
            pool.create(seq, 0)
        places = [pool.append(seq) for seq in seqs for _ in range(n)]
        if copies := [(source, block) for block, _, source in places if source is not None]:
            source, block = self._tensor(copies).unbind(1)
            for memory in (self.k, self.v):
                memory[:, block] = memory[:, source]
        for i, seq in enumerate(seqs):
            if seq not in self._rows or any(slot == 0 or source is not None for _, slot, source in places[i * n : i * n + n]):
                self._rows[seq] = torch.tensor(pool.tables[seq], dtype=torch.int32)
        block, slot = self._tensor([place[:2] for place in places]).view(len(seqs), n, 2).unbind(2)
        table = pad_sequence([self._rows[seq] for seq in seqs], batch_first=True) if seqs else torch.zeros(0, 0, dtype=torch.int32)
        lengths = [pool.lengths[seq] for seq in seqs]
        return Step(block, slot, table.to(self.k.device), self._tensor(lengths), lengths)

    def attend(self, step: Step, q: Tensor, k: Tensor, v: Tensor, *, layer: int = 0, **options: Any) -> tuple[Tensor, Tensor]:
        """Store the step's keys and values of one layer and attend: (S, N, H, D) -> output (S, N, H, Dv), log-sum-exp (S, H, N)."""
        self._check(q, k, v, **options)
        if tuple(q.shape[:2]) != tuple(step.block.shape):
            raise ValueError(f"q must hold the step's {tuple(step.block.shape)} tokens, not {tuple(q.shape[:2])}")
        k_pool, v_pool = self.k[layer], self.v[layer]
        k_pool[step.block, step.slot], v_pool[step.block, step.slot] = k.detach(), v.detach()
        if q.shape[1] <= FEW:
            return paged.attention(q, k_pool, v_pool, step.table, step.length, **options)
        results = []
        for s, length in enumerate(step.lengths):
            one = slice(s, s + 1)
            keys, values = k[one], v[one]
            if length > q.shape[1]:
                keys, values = (paged.gather(x, step.table[one], step.length[one])[:, :length] for x in (k_pool, v_pool))
            results.append(flash.forward(q[one], keys, values, causal=True, **options))
        return torch.cat([o for o, _ in results]), torch.cat([lse for _, lse in results])

    def fork(self, src: Hashable, dst: Hashable) -> None:
        """A second sequence with the same tokens, sharing all blocks."""
        self.pool.fork(src, dst)
        self._rows[dst] = self._rows[src]

    def release(self, seq: Hashable) -> None:
        """Forget a sequence."""
        self.pool.release(seq)
        self._rows.pop(seq)

    def contents(self, seq: Hashable, *, layer: int = 0) -> tuple[Tensor, Tensor]:
        """All keys (n, Hkv, D) and values (n, Hkv, Dv) of a sequence, in order."""
        length = self.pool.lengths[seq]
        table, used = self._rows[seq][None].to(self.k.device), self._tensor([length])
        keys, values = (paged.gather(x[layer], table, used)[0, :length] for x in (self.k, self.v))
        return keys, values

    def _needed(self, seqs: Sequence[Hashable], n: int) -> int:
        """How many blocks n more tokens take: whole new ones, and copies of last blocks that stay shared until the last owner writes."""
        pool, needed, left = self.pool, 0, Counter[int]()
        for seq in seqs:
            length, table = pool.lengths.get(seq, 0), pool.tables.get(seq, [])
            needed += -(-(length + n) // pool.B) - len(table)
            if n and length % pool.B and pool.ref[table[-1]] - left[table[-1]] > 1:
                left[table[-1]] += 1
                needed += 1
        return needed

    def _tensor(self, numbers: list) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(self.k.device)

    def _check(
        self, q: Tensor, k: Tensor, v: Tensor, *, window: tuple[int | None, int | None] | None = None,
        scale: float | None = None, softcap: float | None = None, sink: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Everything that can be wrong with a call, before the books know of it."""
        checks.shape(q=(q, "S N H D"), k=(k, "S N Hkv D"), v=(v, "S N Hkv Dv"))
        for name, tensor, memory in (("k", k, self.k), ("v", v, self.v)):
            if tensor.shape[2:] != memory.shape[3:]:
                raise ValueError(
                    f"{name} must have {memory.shape[3]} heads of {memory.shape[4]}, as the cache, not {tuple(tensor.shape[2:])}"
                )
            checks.dtypes(memory.dtype, **{name: tensor})
        checks.same_device(cache=self.k, q=q)
        checked_options(q, k, v, 0, 1, None, None, True, window, scale, softcap)
        sink_per_head(q, sink)
