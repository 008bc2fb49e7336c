"""The PyTorch twin of `quantized_attention`, and the codes that both take: groups of rows that share a scale.

Products of codes are computed in float32, where they are exact: int8 codes up to 256 wide stay below 2^24. Tiles are those of the kernel
in the direction of the keys, because weights are rounded against the running maximum.
"""

import math

import torch

from twofold.fast.kernels.tiled_attention_torch import _heads_first, _rows

__all__ = ["encode", "forward_torch"]

ROWS = 128


def encode(x, tile, together, top, dtype):
    """Codes (B, T, H, D), scales (B, H, groups), and the scale of each row (B, H, T), of x (B, T, H, D).

    Rows come in tiles, of shape `tile`; those that differ only along the axes `together` of a tile share a scale, with which their largest
    magnitude becomes `top`. A group of zeros has scale 1. One division, so that ties are ties: half to even.
    """
    t, size = x.shape[1], math.prod(tile)
    tiles = -(-t // size)
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 0, tiles * size - t))  # zeros are never the largest
    rows = padded.unflatten(1, (tiles, *tile))  # (B, tiles, *tile, H, D)
    axes = [2 + axis for axis in together]
    largest = rows.abs().amax((*axes, rows.ndim - 1), keepdim=True) if rows.numel() else rows.new_zeros(*rows.shape[:-1], 1)
    codes = (top * rows).div_(torch.where(largest == 0, 1, largest))
    codes = codes.clamp_(-top, top).to(dtype) if dtype.is_floating_point else codes.round_().to(dtype)
    scale = torch.where(largest == 0, 1, largest / top)
    by_row = scale.expand(*rows.shape[:-1], 1).reshape(x.shape[0], tiles * size, x.shape[2])[:, :t]
    groups = scale.reshape(x.shape[0], scale.shape[1:-2].numel(), x.shape[2])
    codes = codes.reshape(x.shape[0], tiles * size, *x.shape[2:])[:, :t].contiguous()
    return codes, groups.transpose(1, 2).contiguous(), by_row.transpose(1, 2).contiguous()


def forward_torch(q, k, v, q_scale, k_scale, v_scale, shared, shared_rows, left, right, scale, block_k, top, by_tile, reverse, dtype):
    """As `quantized_attention.forward`."""
    (b, t_q, heads, _), (_, t_k, kv_heads, dv) = q.shape, v.shape
    group, coded = heads // kv_heads, v.element_size() == 1
    o, lse = q.new_empty((b, t_q, heads, dv), dtype=dtype), q_scale.new_empty((b, heads, t_q))
    keys, values = _heads_first(k), _heads_first(v)  # (B Hkv, Tk, D)
    for rows in (slice(at, min(at + ROWS, t_q)) for at in range(0, t_q, ROWS)):
        queries = _rows(q, rows, kv_heads)  # (B Hkv, group rows, D)
        n = rows.stop - rows.start
        q_rows = scale * q_scale[:, :, rows].reshape(*queries.shape[:2], 1)
        m = queries.new_full(queries.shape[:2], -math.inf)
        l, acc = torch.zeros_like(m), queries.new_zeros(*queries.shape[:2], dv)
        for columns, mask in _tiles(rows, t_q, t_k, left, right, block_k, reverse, q.device):
            s = torch.bmm(queries, keys[:, columns].mT).mul_(q_rows).mul_(k_scale[:, :, columns].flatten(0, 1)[:, None])
            if shared is not None:
                block = torch.arange(rows.start, rows.stop, device=q.device) // shared_rows
                s += scale * shared[:, :, block, columns].reshape(s.shape)
            if mask is not None:
                s.unflatten(1, (group, n)).masked_fill_(~mask, -math.inf)
            m_new = torch.maximum(m, s.amax(-1))
            m_safe = torch.where(m_new == -math.inf, 0, m_new)
            p = s.sub_(m_safe[..., None]).exp_()
            rescale = torch.exp(m - m_safe)
            p = p.mul_(top).round_() if v.dtype == torch.int8 else p
            l = l * rescale + p.sum(-1)
            acc = acc.mul_(rescale[..., None])
            p = p.mul_(top) if v.dtype == torch.float8_e4m3fn else p
            products = torch.bmm(p.to(v.dtype).float(), values[:, columns])
            acc += products * v_scale[:, :, columns.start // block_k].reshape(-1, 1, 1) if by_tile else products
            m = m_new
        total = torch.where(l == 0, 1, l)
        mass = total / top if v.dtype == torch.int8 else total
        acc = acc.div_((total * top if v.dtype == torch.float8_e4m3fn else total)[..., None])
        if coded and not by_tile:
            acc *= v_scale.reshape(b * kv_heads, 1, dv)
        o[:, rows] = acc.view(b, heads, n, dv).transpose(1, 2)
        lse[:, :, rows] = torch.where(l == 0, -math.inf, m + mass.log()).view(b, heads, n)
    return o, lse


def _tiles(rows, t_q, t_k, left, right, block_k, reverse, device):
    """The tiles of keys that these rows see, which begin at multiples of block_k, and the mask (rows, keys) where one is needed."""
    first, last = rows.start + t_k - t_q, rows.stop - 1 + t_k - t_q  # positions
    begin = 0 if left is None else max(first - left, 0)
    end = t_k if right is None else min(last + right + 1, t_k)
    starts = range(begin // block_k * block_k, end, block_k)
    for tile in reversed(starts) if reverse else starts:
        start = max(tile, begin)  # values before what these rows see may be anything
        columns = slice(start, min(tile + block_k, t_k))
        mask = None
        if (left is not None and start < last - left) or (right is not None and columns.stop - 1 > first + right):
            distance = torch.arange(start, columns.stop, device=device) - torch.arange(first, last + 1, device=device)[:, None]
            mask = torch.ones_like(distance, dtype=torch.bool)
            mask = mask if left is None else mask & (distance >= -left)
            mask = mask if right is None else mask & (distance <= right)
        yield columns, mask
