"""The PyTorch twin of `tiled_attention`: the same tiles, the heads of a batch side by side, in float32.

A tile is (B · Hkv, group · rows, keys): the query heads that share keys stand below each other. Probabilities and their gradients are
rounded to the dtype of the inputs before they enter a product, as in the kernel. Packed sequences are done one after the other.

Where rows see all keys, or all up to their own, PyTorch's kernel for the CPU does the same in float32 and faster.
"""

import math

import torch

from twofold.fast.kernels.attention_mods import evaluate
from twofold.fast.kernels.packed_sequences import Packing
from twofold.fast.kernels.tiled_attention import NOTHING, Blocks
from twofold.fast.kernels.tiled_attention_backward import row_terms

__all__ = ["backward_torch", "forward_torch"]

aten = torch.ops.aten

ROWS, KEYS = 128, 512


def forward_torch(q, k, v, sink, left, right, scale, softcap, packing: Packing | None = None, mods=NOTHING, blocks: Blocks | None = None):
    """q (B, Tq, H, D), k (B, Tk, Hkv, D), v (B, Tk, Hkv, DV), sink (H,) or None -> o (B, Tq, H, DV), lse (B, H, Tq)."""
    (b, t_q, heads, _), (_, t_k, kv_heads, dv) = q.shape, v.shape
    if packing is not None:
        o, lse = q.new_zeros(b, t_q, heads, dv), q.new_full((b, heads, t_q), -math.inf, dtype=torch.float32)
        for rows, keys in _sequences(packing):
            o[:, rows], lse[:, :, rows] = forward_torch(q[:, rows], k[:, keys], v[:, keys], sink, left, right, scale, softcap)
        return o, lse
    if _plain(q, v, left, right, softcap, mods, blocks):
        return _of_library(q, k, v, sink, right, scale)
    o, lse = q.new_empty(b, t_q, heads, dv), q.new_empty(b, heads, t_q, dtype=torch.float32)
    keys, values = _heads_first(k), _heads_first(v)  # (B Hkv, Tk, D)
    for rows, tiles in _walks(t_q, t_k, left, right, blocks, q.device):
        queries, n = _rows(q, rows, kv_heads), rows.stop - rows.start  # (B Hkv, group rows, D)
        m = queries.new_full(queries.shape[:2], -math.inf)
        l = torch.zeros_like(m)
        acc = queries.new_zeros(*queries.shape[:2], dv)
        for columns, mask, full in tiles:
            s = _scores(queries, keys[:, columns], scale, softcap)
            by_head = s.view(b, heads, n, s.shape[-1])  # (B, H, rows, keys)
            if mods.score:
                by_head.copy_(_modified(mods.score, mods, rows, columns, by_head))
            if mask is not None:
                by_head.masked_fill_(~mask, -math.inf)
            if mods.mask and not full:
                by_head.masked_fill_(~_modified(mods.mask, mods, rows, columns, by_head), -math.inf)
            m_new = torch.maximum(m, s.amax(-1))
            m_safe = torch.where(m_new == -math.inf, 0, m_new)
            p = s.sub_(m_safe[..., None]).exp_()
            rescale = torch.exp(m - m_safe)
            l = l * rescale + p.sum(-1)
            acc = acc.mul_(rescale[..., None]).baddbmm_(_as(p, q.dtype), values[:, columns])
            m = m_new
        total = torch.where(l == 0, 1, l)
        acc = acc.div_(total[..., None]).view(b, heads, n, dv)
        sums = torch.where(l == 0, -math.inf, m + total.log()).view(b, heads, n)
        if sink is not None:
            acc = acc * torch.sigmoid(torch.where(sums == -math.inf, 0, sums) - sink[:, None])[..., None]
        o[:, rows] = acc.transpose(1, 2)
        lse[:, :, rows] = sums
    return o, lse


def backward_torch(
    q, k, v, sink, o, lse, do, dlse, left, right, scale, softcap, packing: Packing | None = None, mods=NOTHING, blocks: Blocks | None = None
):
    """The gradients dq, dk, dv in the dtype of the inputs, and dsink (H,) in float32 (None without a sink)."""
    (b, t_q, heads, _), (_, t_k, kv_heads, _) = q.shape, v.shape
    if packing is not None:
        return _packed_backward(q, k, v, sink, o, lse, do, dlse, left, right, scale, softcap, packing)
    d = (do.float() * o.float()).sum(-1).transpose(1, 2)  # (B, H, Tq)
    sums, delta, dsink = row_terms(d, lse, dlse, sink)
    if dlse is None and _plain(q, v, left, right, softcap, mods, blocks):
        return *_gradients_of_library(q, k, v, o, sums, do, right, scale), dsink
    keys, values = _heads_first(k), _heads_first(v)  # (B Hkv, Tk, D)
    dk, dv = torch.zeros_like(keys), torch.zeros_like(values)
    dq = q.new_empty(q.shape)
    for rows, tiles in _walks(t_q, t_k, left, right, blocks, q.device):
        queries, gradients, n = _rows(q, rows, kv_heads), _rows(do, rows, kv_heads), rows.stop - rows.start  # (B Hkv, group rows, D)
        dq_rows = torch.zeros_like(queries)
        row_sums, row_delta = (x[:, :, rows].reshape(*queries.shape[:2], 1) for x in (sums, delta))
        for columns, mask, full in tiles:
            key_tile, value_tile = keys[:, columns], values[:, columns]
            if mods.mask and not full:
                like = keys.new_empty(()).expand(b, heads, n, columns.stop - columns.start)
                seen = _modified(mods.mask, mods, rows, columns, like)
                mask = seen if mask is None else mask & seen
            s = _scores(queries, key_tile, scale, softcap)
            logits = s.view(b, heads, n, s.shape[-1])  # (B, H, rows, keys)
            if mods.score:
                logits = _modified(mods.score, mods, rows, columns, logits)
            p = torch.exp(logits.reshape(s.shape) - row_sums) if mods.score else torch.exp(s - row_sums)
            if mask is not None:
                p.view(b, heads, n, s.shape[-1]).masked_fill_(~mask, 0)
            dv[:, columns].baddbmm_(_as(p, q.dtype).mT, gradients)
            ds = torch.bmm(gradients, value_tile.mT).sub_(row_delta).mul_(p)
            if mods.slope:
                by_head = ds.view(b, heads, n, s.shape[-1])
                by_head.mul_(_modified(mods.slope, mods, rows, columns, s.view(by_head.shape)))
            if softcap is not None:
                ds = ds * (1 - (s / softcap).square())
            if mods.score and mask is not None:  # there, a score may be NaN and a slope infinite
                ds.view(b, heads, n, s.shape[-1]).masked_fill_(~mask, 0)
            ds = _as(ds, q.dtype)
            dk[:, columns].baddbmm_(ds.mT, queries, alpha=scale)
            dq_rows.baddbmm_(ds, key_tile, alpha=scale)
        dq[:, rows] = dq_rows.view(b, heads, n, q.shape[3]).transpose(1, 2)
    return dq, _tokens_first(dk, k), _tokens_first(dv, v), dsink


def _plain(q, v, left, right, softcap, mods, blocks):
    """Whether PyTorch's kernel for the CPU knows this attention; its causal mask is aligned to the first row and key."""
    (_, t_q, _, d), (_, t_k, _, dv) = q.shape, v.shape
    known = left is None and (right is None or t_q == 1 or (right == 0 and t_q == t_k)) and d == dv
    return q.is_cpu and known and softcap is None and mods == NOTHING and blocks is None and q.numel() > 0 and v.numel() > 0


def _of_library(q, k, v, sink, right, scale):
    arrays = (x.float().transpose(1, 2) for x in (q, k, v))
    o, lse = aten._scaled_dot_product_flash_attention_for_cpu(*arrays, 0.0, right == 0 and q.shape[1] > 1, scale=scale)
    o = o if sink is None else o * torch.sigmoid(lse - sink[:, None])[..., None]
    return o.transpose(1, 2).to(q.dtype).contiguous(), lse.contiguous()


def _gradients_of_library(q, k, v, o, sums, do, right, scale):
    """`sums` are log-sum-exps with the sink's share in them, so that the weights come out with it."""
    do, q_, k_, v_, o = (x.float().transpose(1, 2) for x in (do, q, k, v, o))
    how = 0.0, right == 0 and q.shape[1] > 1
    gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(do, q_, k_, v_, o, sums.contiguous(), *how, scale=scale)
    return tuple(x.transpose(1, 2).to(q.dtype).contiguous() for x in gradients)


def _packed_backward(q, k, v, sink, o, lse, do, dlse, left, right, scale, softcap, packing):
    dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    dsink = None if sink is None else torch.zeros_like(sink)
    for rows, keys in _sequences(packing):
        dlse_rows = None if dlse is None else dlse[:, :, rows]
        dq[:, rows], dk[:, keys], dv[:, keys], more = backward_torch(
            q[:, rows], k[:, keys], v[:, keys], sink, o[:, rows], lse[:, :, rows], do[:, rows], dlse_rows, left, right, scale, softcap
        )
        if dsink is not None:
            dsink += more
    return dq, dk, dv, dsink


def _sequences(packing: Packing):
    """Rows and keys of every sequence."""
    for first_q, rows, first_k, keys in packing.spans().tolist():
        yield slice(first_q, first_q + rows), slice(first_k, first_k + keys)


def _scores(queries, keys, scale, softcap):
    """The logits of a tile; the scale is applied to the float32 products."""
    s = torch.baddbmm(queries.new_empty(()), queries, keys.mT, beta=0, alpha=scale)
    return s if softcap is None else s.div_(softcap).tanh_().mul_(softcap)


def _modified(text, mods, rows, columns, s):
    """A mask, a score or a slope of a tile s (B, H, rows, keys)."""
    b, h = (torch.arange(size, device=s.device) for size in s.shape[:2])
    i, j = (torch.arange(x.start, x.stop, device=s.device) for x in (rows, columns))
    terms = {"b": b[:, None, None, None], "h": h[:, None, None], "i": i[:, None], "j": j}
    return evaluate(text, mods.tables, mods.numbers, s=s, **terms)


def _walks(t_q, t_k, left, right, blocks, device):
    """Every block of rows, and the tiles that it walks over: columns, mask (None where every row sees all), and whether a list says so."""
    if blocks is None:
        for rows in _blocks(t_q, ROWS):
            yield rows, [(columns, mask, False) for columns, mask in _tiles(rows, t_q, t_k, left, right, device)]
        return
    full_at, full, partial_at, partial = (x.tolist() for x in blocks.lines)
    for line, rows in enumerate(_blocks(t_q, blocks.rows)):
        listed = [(full[full_at[line] : full_at[line + 1]], True), (partial[partial_at[line] : partial_at[line + 1]], False)]
        yield rows, [(columns, None, kind) for entries, kind in listed for columns in _runs(entries, blocks.keys, t_k)]


def _runs(entries, size, t_k):
    """Ascending blocks as slices of keys: neighbors together, at most KEYS at a time, none beyond the last key."""
    begin = end = 0
    for at in (entry * size for entry in entries):
        if at != end:
            yield from _blocks(min(end, t_k), KEYS, begin)
            begin = at
        end = at + size
    yield from _blocks(min(end, t_k), KEYS, begin)


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
