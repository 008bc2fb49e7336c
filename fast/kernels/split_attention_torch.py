"""The PyTorch twin of `split_attention`: the same chunks, all sequences, heads and chunks side by side, in float32.

Keys are cut into chunks (B, S, Hkv, C, D), each as long as the longest of them, so that what is computed for a chunk does not depend on how
many there are. Keys that a sequence does not have are replaced by zeros, and their logits by -inf.

For a single row PyTorch's kernel for the CPU takes chunks for so many sequences, without a copy where all keys are there. (It multiplies
weights of 0 by keys that a row must not see; with several rows one may see what another must not, be it finite or not.)
"""

import math

import torch
from torch.nn.functional import pad

from twofold.fast.kernels.combine_splits import combine_torch

__all__ = ["attention", "gather", "partials"]

aten = torch.ops.aten


def attention(q, k, v, sink, *options):
    """q (B, N, H, D), k (B, Tk, Hkv, D) or pool, v likewise, sink (H,) or None -> o (B, N, H, DV), lse (B, H, N)."""
    return combine_torch(*partials(q, k, v, *options), q.dtype, sink)


def partials(q, k, v, q_rest, k_rest, table, length, bounds, size, left, right, scale, softcap):
    """o (S, B, N, H, DV) and lse (S, B, H, N), float32."""
    (b, n, heads, _), kv_heads = q.shape, k.shape[2]
    capacity = k.shape[1] if table is None else table.shape[1] * k.shape[1]
    token = _tokens(capacity, bounds, size, q.device)  # (S, C), capacity where there is none
    length = torch.full((b,), capacity, device=q.device) if length is None else length.long()
    first = (length - n - left).clamp(min=0) if left is not None else torch.zeros_like(length)
    there = (token < length[:, None, None]) & (token >= first[:, None, None])  # (B, S, C)
    if q.is_cpu and n == 1 and q_rest is None and softcap is None and bounds is None and q.shape[3] == v.shape[3] and there.numel():
        return _of_library(q, k, v, table, token, there, scale)
    position = torch.arange(n, device=q.device) + (length[:, None] - n)  # (B, N)
    allowed = _allowed(position, token, length, left, right)  # (B, S, N, C)
    packed = n, heads // kv_heads
    keys = _chunks(k, table, token, there)  # (B, S, Hkv, C, D)
    s = _queries(q, kv_heads) @ keys.mT  # (B, S, Hkv, N g, C)
    if q_rest is not None:
        s = s + _queries(q_rest, kv_heads) @ _chunks(k_rest[:, :, None], table, token, there).mT
    s = s.mul_(scale)
    s = s if softcap is None else s.div_(softcap).tanh_().mul_(softcap)
    s = s.unflatten(3, packed).masked_fill(~allowed[:, :, None, :, None], -math.inf).flatten(3, 4)
    top = s.amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, 0, top)
    p = s.sub_(top).exp_()
    total = p.sum(-1, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1, total)
    values = keys if v is k else _chunks(v, table, token, there)
    o = (_as(p, q.dtype) @ values).div_(total)  # (B, S, Hkv, N g, DV)
    lse = torch.where(empty, -math.inf, top + total.log())
    o = o.unflatten(3, packed).permute(1, 0, 3, 2, 4, 5).flatten(3, 4)  # (S, B, N, H, DV)
    lse = lse.unflatten(3, packed).permute(1, 0, 2, 4, 3, 5).flatten(2, 3)[..., 0]  # (S, B, H, N)
    return o.contiguous(), lse.contiguous()


def _of_library(q, k, v, table, token, there, scale):
    """o (S, B, 1, H, DV), lse (S, B, H, 1) of one row, which sees what is `there` (B, S, C)."""
    b, splits, size = there.shape
    queries = q.float().transpose(1, 2)[:, None]  # (B, 1, H, 1, D)
    mask = torch.zeros(there.shape).masked_fill_(~there, -math.inf)
    results, whole = [], splits if table is not None else k.shape[1] // size
    for piece in (slice(0, whole), slice(whole, splits)):  # chunks that lie in memory as they are, and a last one that is filled up
        if piece.start < piece.stop:
            seen, count = there[:, piece], piece.stop - piece.start
            if table is not None:
                keys, values = (gather(x, table, token, there) for x in (k, v))  # (B, S, C, Hkv, D)
            else:
                rows = slice(piece.start * size, piece.stop * size)
                keys, values = (_filled(x[:, rows], rows.stop - rows.start).unflatten(1, (count, size)) for x in (k, v))
                if not seen.all():
                    keys, values = (x.masked_fill(~seen[..., None, None], 0) for x in (keys, values))
            keys, values = (x.float().flatten(0, 1).transpose(1, 2) for x in (keys, values))
            row = queries.expand(-1, count, -1, -1, -1).flatten(0, 1)
            hidden = mask[:, piece].reshape(b * count, 1, 1, size)
            parts = aten._scaled_dot_product_flash_attention_for_cpu(row, keys, values, 0.0, False, attn_mask=hidden, scale=scale)
            results.append([x.unflatten(0, (b, count)) for x in parts])
    o, lse = (torch.cat(parts, 1).transpose(0, 1) for parts in zip(*results))  # (S, B, H, 1, D), (S, B, H, 1)
    empty = ~there.any(2).T[..., None, None]  # (S, B, 1, 1)
    return o.masked_fill(empty[..., None], 0).transpose(2, 3).contiguous(), lse.masked_fill(empty, -math.inf).contiguous()


def _filled(x, n):
    """(B, T, H, D) with zeros behind it, where it is shorter than n."""
    return x if x.shape[1] == n else pad(x, (0, 0, 0, 0, 0, n - x.shape[1]))


def gather(pool, table, token, there):
    """The tokens (B, …) of each sequence, `token` broadcast over it, from a pool (n_blocks, page, …); zeros where not `there`."""
    page = pool.shape[1]
    token = token.expand(there.shape)
    column = torch.where(there, token // page, 0)
    block = torch.where(there, table.long().gather(1, column.flatten(1)).view(there.shape), 0)
    rows = pool[block, token % page]
    return rows.masked_fill_(~there.view(*there.shape, *[1] * (pool.ndim - 2)), 0)


def _tokens(capacity, bounds, size, device):
    """Which tokens each chunk holds (S, C); `capacity` stands for none."""
    if bounds is None:
        splits = -(-capacity // size)
        return torch.arange(splits * size, device=device).clamp(max=capacity).view(splits, size)
    bounds = bounds.long()
    widest = max(int((bounds[1:] - bounds[:-1]).max()), 1)
    token = bounds[:-1, None] + torch.arange(widest, device=device)
    return torch.where(token < bounds[1:, None], token, capacity)


def _allowed(position, token, length, left, right):
    distance = token[None, :, None] - position[:, None, :, None]  # (B, S, N, C)
    allowed = (token < length[:, None, None])[:, :, None].expand(distance.shape)
    if left is not None:
        allowed = allowed & (distance >= -left)
    if right is not None:
        allowed = allowed & (distance <= right)
    return allowed


def _chunks(x, table, token, there):
    """(B, T, H, D), or a pool, -> (B, S, H, C, D) in float32; zeros where a sequence has no such token."""
    if table is not None:
        rows = gather(x, table, token, there)
    else:
        rows = pad(x, (0, 0, 0, 0, 0, 1))[:, token].masked_fill(~there[..., None, None], 0)  # (B, S, C, H, D)
    return rows.transpose(2, 3).float().contiguous()


def _queries(x, kv_heads):
    """(B, N, H, D) -> (B, 1, Hkv, N g, D) in float32: the heads that share keys side by side."""
    return x.float().unflatten(2, (kv_heads, -1)).transpose(1, 2).flatten(2, 3)[:, None]


def _as(x, dtype):
    """Rounded to the dtype in which matrix products take their operands, and back."""
    return x if dtype == torch.float32 else x.to(dtype).float()
