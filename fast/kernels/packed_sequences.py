"""Packed sequences, and the table by which a launch finds their blocks: made on the device, so that nothing waits for it."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Packing", "table"]


class Packing(NamedTuple):
    """Sequence r has the rows cu_q[r] … cu_q[r + 1] and the keys cu_k[r] … cu_k[r + 1], of which the first used_k[r] are valid."""

    cu_q: Tensor  # (sequences + 1,)
    cu_k: Tensor
    used_k: Tensor | None = None  # (sequences,)

    def spans(self) -> Tensor:
        """First row, rows, first key, keys of every sequence, (sequences, 4)."""
        keys = self.cu_k.diff() if self.used_k is None else self.used_k
        return torch.stack([x.to(torch.int32) for x in (self.cu_q[:-1], self.cu_q.diff(), self.cu_k[:-1], keys)], 1)


def table(packing: Packing, length: int, block: int, keys: bool) -> Tensor:
    """Spans and number of every block of rows (or keys) of all sequences, (entries, 5), the last block of a sequence first.

    There are at most length // block + sequences blocks, whatever the lengths are; entries that are not needed are sequences of no rows.
    """
    spans = packing.spans()
    blocks = (spans[:, 3 if keys else 1] + block - 1) // block  # (sequences,)
    ends = torch.cumsum(blocks, 0)
    index = torch.arange(length // block + len(spans), device=spans.device)
    owner = torch.searchsorted(ends, index, right=True)
    spans = torch.cat([spans, spans.new_zeros(1, 4)])  # of nobody
    number = torch.cat([ends, ends.new_zeros(1)])[owner] - 1 - index
    return torch.cat([spans[owner], number.clamp(min=0)[:, None].to(torch.int32)], 1)
