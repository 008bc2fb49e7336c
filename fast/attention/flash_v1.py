"""FlashAttention on tensors (B, T, H, D), and attention to chosen tiles. See `twofold.spec.attention.flash_v1`.

`forward` and `backward` are the tiled kernel of `twofold.fast.attention.flash`: FlashAttention-2 is the same function, moves less and does
fewer operations, so nobody should run the older loop order today. What this chapter adds is `block_sparse`, which loads and computes the
tiles of a block mask only.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import flash, online_softmax
from twofold.fast.attention._arguments import three

__all__ = ["forward", "backward", "block_sparse", "traffic"]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, Tq, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, Tq) in float32; options as in `flash`."""
    return flash.forward(q, k, v, causal=causal, window=window, scale=scale)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    do: Tensor,
    *,
    dlse: Tensor | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv) from what `forward` returned and the gradients of its results; two runs agree bit for bit."""
    return flash.backward(q, k, v, o, lse, do, dlse=dlse, causal=causal, window=window, scale=scale)[:3]


def block_sparse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: Tensor,
    *,
    block_q: int = 64,
    block_k: int = 64,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention to the tiles of `block_mask`, boolean, broadcasting to (B, H, ⌈Tq/block_q⌉, ⌈Tk/block_k⌉); `causal` masks within them.

    Plain PyTorch on every device, differentiable: step n takes the n-th tile of every block of rows. It costs as many steps as the fullest
    block has tiles; scores and sums are float32. For one mask that all heads share, the tiled kernel does it: `attention.flex.sparse`.
    """
    mask = _checked(q, k, v, block_mask, block_q, block_k, scale)
    (b, t_q, heads, d), (_, t_k, kv_heads, dv) = q.shape, v.shape
    queries, keys, values = _tiles(q, block_q), _tiles(k, block_k, 1), _tiles(v, block_k, 1)  # (B, H, blocks, block, D)
    scale = d**-0.5 if scale is None else scale
    state = online_softmax.identity(dv, shape=(b, heads, mask.shape[2], block_q), device=q.device)
    lists = _lists(mask)
    batch, head = torch.arange(b, device=q.device)[:, None, None], torch.arange(heads, device=q.device)[:, None] // (heads // kv_heads)
    row = torch.arange(mask.shape[2] * block_q, device=q.device).view(-1, block_q, 1) + t_k - t_q  # positions  (n_q, block_q, 1)
    lane = torch.arange(block_k, device=q.device)
    for tile in lists.unbind(-1):  # (B, H, n_q)
        key = (tile[..., None] * block_k + lane)[..., None, :]  # (B, H, n_q, 1, block_k)
        seen = key < t_k
        if causal:
            seen = seen & (key <= row)
        s = scale * (queries @ keys[batch, head, tile].mT)  # (B, H, n_q, block_q, block_k)
        state = online_softmax.update(state, s.masked_fill(~seen, -math.inf), values[batch, head, tile])
    o, lse = online_softmax.finish(state)  # (B, H, block_q, n_q, Dv), (B, H, n_q, block_q)
    o = o.transpose(2, 3).flatten(2, 3).transpose(1, 2)[:, :t_q]
    return o.contiguous().to(q.dtype), lse.flatten(2, 3)[..., :t_q].contiguous()


def traffic(nq: int, nk: int, d: int, dv: int, block_q: int, block_k: int) -> int:
    """How many elements the published algorithm moves between slow and fast memory, in closed form."""
    return nk * (d + dv) + -(-nk // block_k) * nq * (d + 2 * dv + 4)


def _tiles(x, block, more=0):
    """(B, T, H, D) -> (B, H, blocks, block, D) in float32, the last block padded with zeros, and `more` blocks of zeros."""
    x = x.float().transpose(1, 2)
    return F.pad(x, (0, 0, 0, -x.shape[2] % block + more * block)).unflatten(2, (-1, block))


def _lists(mask):
    """Each block's tiles in ascending order, then the tile of zeros behind all others (B, H, n_q, longest), at least once anywhere."""
    counts = mask.sum(-1, keepdim=True)  # (B, H, n_q, 1)
    longest = max(int(counts.max()) if counts.numel() else 0, 1)
    order = torch.argsort(F.pad(mask.byte(), (0, 1)), dim=-1, descending=True, stable=True)[..., :longest]
    return torch.where(torch.arange(longest, device=mask.device) < counts, order, mask.shape[-1])


def _checked(q, k, v, block_mask, block_q, block_k, scale):
    """The mask expanded to (B, H, n_q, n_k)."""
    sizes = three(q, k, v)
    checks.dtypes(torch.bool, block_mask=block_mask)
    checks.same_device(q=q, block_mask=block_mask)
    checks.at_least(1, block_q=block_q, block_k=block_k)
    checks.positive(scale=scale)
    full = sizes["B"], sizes["H"], -(-sizes["Tq"] // block_q), -(-sizes["Tk"] // block_k)
    if block_mask.ndim != 4 or any(n not in (1, m) for n, m in zip(block_mask.shape, full, strict=True)):
        raise ValueError(f"block_mask must broadcast to (B, H, tiles of rows, of keys) = {full}, not have shape {tuple(block_mask.shape)}")
    return block_mask.expand(full)
