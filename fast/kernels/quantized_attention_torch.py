"""The PyTorch twin of `quantized_attention`, and the codes that both take: groups of rows that share a scale.

Products of codes are computed in float32, where they are exact: int8 codes up to 256 wide stay below 2^24. Tiles are those of the kernel
in the direction of the keys, because weights are rounded against the running maximum.
"""

import math

import torch

from twofold.fast.kernels.tiled_attention_torch import _as, _heads_first, _rows

__all__ = ["encode", "forward_torch"]

ROWS = 128


def encode(x, size):
    """Codes (B, T, H, D), scales (B, H, blocks), and the scale of each row (B, H, T), of x (B, T, H, D) in blocks of `size` rows.

    The largest magnitude of a block becomes 127; a block of zeros has scale 1. One division, so that ties are ties: half to even.
    """
    t, tiles = x.shape[1], -(-x.shape[1] // size)
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 0, tiles * size - t))  # zeros are never the largest
    rows = padded.unflatten(1, (tiles, size))  # (B, blocks, size, H, D)
    largest = rows.abs().amax((2, 4), keepdim=True)
    codes = (127 * rows).div_(torch.where(largest == 0, 1, largest)).round_().to(torch.int8).flatten(1, 2)[:, :t].contiguous()
    scale = torch.where(largest == 0, 1, largest / 127)[:, :, 0, :, 0].transpose(1, 2).contiguous()
    return codes, scale, scale.repeat_interleave(size, 2)[..., :t].contiguous()


def forward_torch(q, k, v, q_scale, k_scale, left, right, scale, block_k, dtype):
    """As `quantized_attention.forward`."""
    (b, t_q, heads, _), (_, t_k, kv_heads, dv) = q.shape, v.shape
    group = heads // kv_heads
    o, lse = q.new_empty((b, t_q, heads, dv), dtype=dtype), q_scale.new_empty((b, heads, t_q))
    keys, values = _heads_first(k), _heads_first(v)  # (B Hkv, Tk, D)
    for rows in (slice(at, min(at + ROWS, t_q)) for at in range(0, t_q, ROWS)):
        queries = _rows(q, rows, kv_heads)  # (B Hkv, group rows, D)
        n = rows.stop - rows.start
        q_rows = scale * q_scale[:, :, rows].reshape(*queries.shape[:2], 1)
        m = queries.new_full(queries.shape[:2], -math.inf)
        l, acc = torch.zeros_like(m), queries.new_zeros(*queries.shape[:2], dv)
        for columns, mask in _tiles(rows, t_q, t_k, left, right, block_k, q.device):
            s = torch.bmm(queries, keys[:, columns].mT).mul_(q_rows).mul_(k_scale[:, :, columns].reshape(b * kv_heads, 1, -1))
            if mask is not None:
                s.unflatten(1, (group, n)).masked_fill_(~mask, -math.inf)
            m_new = torch.maximum(m, s.amax(-1))
            m_safe = torch.where(m_new == -math.inf, 0, m_new)
            p = s.sub_(m_safe[..., None]).exp_()
            rescale = torch.exp(m - m_safe)
            l = l * rescale + p.sum(-1)
            acc = acc.mul_(rescale[..., None]).baddbmm_(_as(p, v.dtype), values[:, columns])
            m = m_new
        total = torch.where(l == 0, 1, l)
        o[:, rows] = acc.div_(total[..., None]).view(b, heads, n, dv).transpose(1, 2)
        lse[:, :, rows] = torch.where(l == 0, -math.inf, m + total.log()).view(b, heads, n)
    return o, lse


def _tiles(rows, t_q, t_k, left, right, block_k, device):
    """The tiles of keys that these rows see, which begin at multiples of block_k, and the mask (rows, keys) where one is needed."""
    first, last = rows.start + t_k - t_q, rows.stop - 1 + t_k - t_q  # positions
    begin = 0 if left is None else max(first - left, 0)
    end = t_k if right is None else min(last + right + 1, t_k)
    for tile in range(begin // block_k * block_k, end, block_k):
        start = max(tile, begin)  # values before what these rows see may be anything
        columns = slice(start, min(tile + block_k, t_k))
        mask = None
        if (left is not None and start < last - left) or (right is not None and columns.stop - 1 > first + right):
            distance = torch.arange(start, columns.stop, device=device) - torch.arange(first, last + 1, device=device)[:, None]
            mask = torch.ones_like(distance, dtype=torch.bool)
            mask = mask if left is None else mask & (distance >= -left)
            mask = mask if right is None else mask & (distance <= right)
        yield columns, mask
