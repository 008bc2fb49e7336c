"""The PyTorch twin of `tiled_attention`: the same tiles, the heads of a batch side by side, in float32.

A tile is (B · Hkv, group · rows, keys): the query heads that share keys stand below each other. Probabilities and their gradients are
rounded to the dtype of the inputs before they enter a product, as in the kernel.
"""

import math

import torch

from twofold.fast.kernels.tiled_attention import row_terms

__all__ = ["backward_torch", "forward_torch"]

ROWS, KEYS = 128, 512


def forward_torch(q, k, v, sink, left, right, scale, softcap):
    """q (B, Tq, H, D), k (B, Tk, Hkv, D), v (B, Tk, Hkv, DV), sink (H,) or None -> o (B, Tq, H, DV), lse (B, H, Tq)."""
    (b, t_q, heads, _), (_, t_k, kv_heads, dv) = q.shape, v.shape
    group = heads // kv_heads
    o = q.new_empty(b, t_q, heads, dv)
    lse = q.new_empty(b, heads, t_q, dtype=torch.float32)
    keys, values = _heads_first(k), _heads_first(v)  # (B Hkv, Tk, D)
    for rows in _blocks(t_q, ROWS):
        queries = _rows(q, rows, kv_heads)  # (B Hkv, group rows, D)
        m = queries.new_full(queries.shape[:2], -math.inf)
        l = torch.zeros_like(m)
        acc = queries.new_zeros(*queries.shape[:2], dv)
        for columns, mask in _tiles(rows, t_q, t_k, left, right, q.device):
            s = _scores(queries, keys[:, columns], scale, softcap)
            if mask is not None:
                s.unflatten(1, (group, -1)).masked_fill_(~mask, -math.inf)
            m_new = torch.maximum(m, s.amax(-1))
            m_safe = torch.where(m_new == -math.inf, 0, m_new)
            p = s.sub_(m_safe[..., None]).exp_()
            rescale = torch.exp(m - m_safe)
            l = l * rescale + p.sum(-1)
            acc = acc.mul_(rescale[..., None]).baddbmm_(_as(p, q.dtype), values[:, columns])
            m = m_new
        total = torch.where(l == 0, 1, l)
        acc = acc.div_(total[..., None]).view(b, heads, rows.stop - rows.start, dv)
        sums = torch.where(l == 0, -math.inf, m + total.log()).view(b, heads, rows.stop - rows.start)
        if sink is not None:
            acc = acc * torch.sigmoid(torch.where(sums == -math.inf, 0, sums) - sink[:, None])[..., None]
        o[:, rows] = acc.transpose(1, 2)
        lse[:, :, rows] = sums
    return o, lse


def backward_torch(q, k, v, sink, o, lse, do, dlse, left, right, scale, softcap):
    """The gradients dq, dk, dv in the dtype of the inputs, and dsink (H,) in float32 (None without a sink)."""
    (_, t_q, _, _), (_, t_k, kv_heads, _) = q.shape, v.shape
    group = q.shape[2] // kv_heads
    d = (do.float() * o.float()).sum(-1).transpose(1, 2)  # (B, H, Tq)
    sums, delta, dsink = row_terms(d, lse, dlse, sink)
    keys, values = _heads_first(k), _heads_first(v)  # (B Hkv, Tk, D)
    dk, dv = torch.zeros_like(keys), torch.zeros_like(values)
    dq = q.new_empty(q.shape)
    for rows in _blocks(t_q, ROWS):
        queries, gradients = _rows(q, rows, kv_heads), _rows(do, rows, kv_heads)  # (B Hkv, group rows, D)
        dq_rows = torch.zeros_like(queries)
        row_sums, row_delta = (x[:, :, rows].reshape(*queries.shape[:2], 1) for x in (sums, delta))
        for columns, mask in _tiles(rows, t_q, t_k, left, right, q.device):
            s = _scores(queries, keys[:, columns], scale, softcap)
            p = torch.exp(s - row_sums)
            if mask is not None:
                p.unflatten(1, (group, -1)).masked_fill_(~mask, 0)
            dv[:, columns].baddbmm_(_as(p, q.dtype).mT, gradients)
            ds = torch.bmm(gradients, values[:, columns].mT).sub_(row_delta).mul_(p)
            if softcap is not None:
                ds = ds * (1 - (s / softcap).square())
            ds = _as(ds, q.dtype)
            dk[:, columns].baddbmm_(ds.mT, queries, alpha=scale)
            dq_rows.baddbmm_(ds, keys[:, columns], alpha=scale)
        dq[:, rows] = dq_rows.view(q.shape[0], q.shape[2], rows.stop - rows.start, q.shape[3]).transpose(1, 2)
    return dq, _tokens_first(dk, k), _tokens_first(dv, v), dsink


def _scores(queries, keys, scale, softcap):
    """The logits of a tile; the scale is applied to the float32 products."""
    s = torch.baddbmm(queries.new_empty(()), queries, keys.mT, beta=0, alpha=scale)
    return s if softcap is None else s.div_(softcap).tanh_().mul_(softcap)


def _tiles(rows, t_q, t_k, left, right, device):
    """The tiles of keys that these rows see: columns, and the mask (rows, keys) where not every row sees all of them."""
    first, last = rows.start + t_k - t_q, rows.stop - 1 + t_k - t_q  # positions
    begin = 0 if left is None else max(first - left, 0)
    end = t_k if right is None else min(last + right + 1, t_k)
    for columns in _blocks(end, KEYS, begin):
        mask = None
        if (left is not None and columns.start < last - left) or (right is not None and columns.stop - 1 > first + right):
            distance = torch.arange(columns.start, columns.stop, device=device) - torch.arange(first, last + 1, device=device)[:, None]
            mask = torch.ones_like(distance, dtype=torch.bool)
            if left is not None:
                mask &= distance >= -left
            if right is not None:
                mask &= distance <= right
        yield columns, mask


def _blocks(stop, size, start=0):
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def _heads_first(x):
    """(B, T, H, D) -> (B H, T, D) in float32."""
    return x.transpose(1, 2).float().flatten(0, 1)


def _tokens_first(x, like):
    """(B H, T, D) -> (B, T, H, D) in the dtype of `like`."""
    return x.view(like.shape[0], like.shape[2], *x.shape[1:]).transpose(1, 2).to(like.dtype).contiguous()


def _rows(x, rows, kv_heads):
    """(B, T, H, D) -> (B Hkv, group rows, D) in float32: the heads that share keys below each other."""
    return x[:, rows].transpose(1, 2).float().unflatten(1, (kv_heads, -1)).flatten(2, 3).flatten(0, 1)


def _as(x, dtype):
    """Rounded to the dtype in which matrix products take their operands, and back."""
    return x if dtype == torch.float32 else x.to(dtype).float()
