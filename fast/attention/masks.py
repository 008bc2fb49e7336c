"""Masks as boolean tensors, on any device, to be passed to `attention.dense` or `attention.grouped`. See `twofold.spec.attention.masks`.

`causal` and `window` are options of `attention.flash` as well, which then never makes a matrix.
"""

import torch
from torch import Tensor

from twofold.fast import checks

__all__ = ["causal", "window", "document", "prefix_lm", "chunked", "tree", "slopes", "alibi", "blocks"]

Device = torch.device | str | None


def causal(nq: int, nk: int, *, device: Device = None) -> Tensor:
    """Nothing that comes later (nq, nk); rows are aligned to the end of the keys."""
    return window(nq, nk, None, 0, device=device)


def window(nq: int, nk: int, left: int | None, right: int | None, *, device: Device = None) -> Tensor:
    """Nothing further than `left` tokens before a row's position or `right` after it (nq, nk); None is no bound."""
    for name, bound in (("left", left), ("right", right)):
        if bound is not None and bound < 0:
            raise ValueError(f"{name} must be at least 0, or None for no bound, not {bound}")
    ahead = torch.arange(nk, device=device)[None, :] - _positions(nq, nk, device)[:, None]  # (nq, nk)
    return (ahead >= (-nk - nq if left is None else -left)) & (ahead <= (nk + nq if right is None else right))


def document(id_q: Tensor, id_k: Tensor) -> Tensor:
    """Nothing of another document: (…, nq) and (…, nk) -> (…, nq, nk)."""
    checks.same_device(id_q=id_q, id_k=id_k)
    return id_q[..., :, None] == id_k[..., None, :]


def prefix_lm(nq: int, nk: int, n: int, *, device: Device = None) -> Tensor:
    """All of the first n tokens, and nothing later otherwise (nq, nk)."""
    return causal(nq, nk, device=device) | (torch.arange(nk, device=device) < n)


def chunked(nq: int, nk: int, c: int, *, device: Device = None) -> Tensor:
    """Nothing later, and nothing of another chunk of c tokens (nq, nk)."""
    if c < 1:
        raise ValueError(f"c must be at least 1, not {c}")
    chunk = torch.arange(nk, device=device) // c
    return causal(nq, nk, device=device) & (_positions(nq, nk, device).div(c, rounding_mode="floor")[:, None] == chunk)


def tree(parent: Tensor, context: int) -> Tensor:
    """Trees behind contexts: (…, T) -> (…, T, context + T). Parents come before their children, -1 is none.

    Ancestors are found by doubling: after k rounds a node knows those up to 2^k above it.
    """
    nodes = parent.shape[-1]
    order = torch.arange(nodes, device=parent.device)
    if not parent.is_cuda and bool(((parent >= order) | (parent < -1)).any()):
        raise ValueError("parent must name an earlier node or be -1")
    above = torch.where(parent < 0, order, parent).long()  # a root stands above itself
    known = (order[:, None] == order) | (above[..., :, None] == order)  # (…, T, T)
    for _ in range(max(nodes - 1, 1).bit_length()):
        known = known | known.gather(-2, above[..., :, None].expand_as(known))
        above = above.gather(-1, above)
    return torch.cat([known.new_ones(*known.shape[:-1], context), known], -1)


def slopes(h: int, *, device: Device = None) -> Tensor:
    """The slopes (h,) of h heads in float32, from the one that forgets fastest."""
    return (2.0 ** (-8 * torch.arange(1, h + 1, device=device, dtype=torch.float64) / h)).float()


def alibi(nq: int, nk: int, slopes: Tensor) -> Tensor:
    """The bias (H, nq, nk) of each head in float32: minus its slope for every token in between."""
    checks.shape(slopes=(slopes, "H"))
    device = slopes.device
    distance = (_positions(nq, nk, device)[:, None] - torch.arange(nk, device=device)).abs()
    return -slopes.float()[:, None, None] * distance


def blocks(mask: Tensor, bq: int, bk: int) -> Tensor:
    """Of every block of bq rows and bk keys (…, nq, nk) -> (…, ⌈nq/bq⌉, ⌈nk/bk⌉): 0 empty, 2 full, else 1; in int8."""
    if bq < 1 or bk < 1:
        raise ValueError(f"bq and bk must be at least 1, not {bq} and {bk}")
    checks.dtypes(torch.bool, mask=mask)
    kinds = []
    for filler in (False, True):  # what lies behind the last row and key neither makes a block partial nor full
        padded = torch.nn.functional.pad(mask, (0, -mask.shape[-1] % bk, 0, -mask.shape[-2] % bq), value=filler)
        cells = padded.unflatten(-1, (padded.shape[-1] // bk, bk)).unflatten(-3, (padded.shape[-2] // bq, bq))
        kinds.append(cells.all(-1).all(-2) if filler else cells.any(-1).any(-2))
    return kinds[0].to(torch.int8) + kinds[1]


def _positions(nq, nk, device):
    return torch.arange(nq, device=device) + nk - nq
