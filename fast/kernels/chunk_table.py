"""The table by which a launch finds its chunks: built by the device from the edges of packed sequences, so that nothing waits for it."""

import torch

__all__ = ["tables"]


def tables(batch: int, length: int, cu_seqlens: torch.Tensor | None, chunk: int, device: torch.device):
    """Rows (batch row, first token, end of sequence, slot of the state) of all sequences and of all chunks; slots of final states."""
    if cu_seqlens is None:
        count = batch
        row = torch.arange(batch, device=device)
        begin, end = torch.zeros_like(row), torch.full_like(row, length)
        most = batch * -(-length // chunk)
    else:
        count = len(cu_seqlens) - 1
        begin, end = cu_seqlens[:-1].to(torch.int64), cu_seqlens[1:].to(torch.int64)
        row = torch.zeros_like(begin)
        most = length // chunk + count
    chunks = (end - begin + chunk - 1) // chunk
    total = torch.cumsum(chunks, 0)
    slot = total - chunks + torch.arange(count, device=device)  # a sequence of c chunks has c + 1 boundaries
    index = torch.arange(most, device=device)
    owner = torch.searchsorted(total, index, right=True).clamp(max=count - 1)
    nth = index - (total - chunks)[owner]
    by_chunk = torch.stack([row[owner], begin[owner] + nth * chunk, end[owner], slot[owner] + nth], 1)
    return torch.stack([row, begin, end, slot], 1), by_chunk, slot + chunks
