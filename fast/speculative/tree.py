"""Token trees of a batch of requests: who sees whom, how deep each node stands, the paths to the leaves, and what the text keeps.

`parents (B, N)` are int64 or int32; `lengths (B,)` gives each request a tree of its own size (0 … N nodes, the root included; clamped),
and what stands past it is ignored. A parent out of order, not -1 at node 0 or not a smaller node elsewhere, is an error on the CPU. A GPU
cannot raise without being waited for: there that request comes back as if it had no nodes.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels.build_tree import BITS, build_tree
from twofold.fast.kernels.gather_cache import LONGEST, gather_cache, gather_cache_in_place

__all__ = ["mask", "depth", "paths", "commit"]


def mask(parents, *, lengths=None, packed=False):
    """Whether node i sees node j `(B, N, N)`, bool; nobody sees a node that does not exist.

    `packed` keeps it as bits `(B, N, ceil(N / 64))`, int64: bit j % 64 of word j // 64.
    """
    words = _built(parents, lengths)[1]
    return words if packed else _unpacked(words, parents.shape[1])


def depth(parents, *, lengths=None):
    """How far each node is from the root `(B, N)`, in the dtype of `parents`; -1 where there is no node."""
    return _built(parents, lengths)[0]


def paths(parents, *, lengths=None):
    """The node ids from the root to each leaf `(B, N, N)`, leaves by id, padded with -1 on both axes, in the dtype of `parents`."""
    depths, words, first_child, _ = _built(parents, lengths)
    N = parents.shape[1]
    node = torch.arange(N, device=parents.device)
    leaves = torch.where((depths >= 0) & (first_child < 0), node, N).sort(1).values  # (B, N), N where there are no more
    seen = _unpacked(words, N).gather(1, leaves.clamp(max=N - 1)[:, :, None].expand(-1, -1, N))  # (B, N, N)
    place = torch.where(seen & (leaves < N)[:, :, None], depths[:, None], N).long()
    lines = parents.new_full((*place.shape[:2], N + 1), -1)  # what is on no line goes to a last column
    return lines.scatter(2, place, node.to(parents.dtype).expand_as(place))[:, :, :N]


def commit(cache, path, *, start=None, in_place=False):
    """The root's row and the rows of the accepted path, side by side `(B, 1 + D, ...)`; zeros past the path's end.

    `cache (B, S, ...)` may have any dtype of 1, 2, 4 or 8 bytes, any shape behind S and any strides. `path (B, D)` holds node ids without
    the root and ends at the first negative one. `start (B,)` is the row of each request's root (default 0): node n is row `start + n`.
    `in_place` writes the result to the rows from `start` on, leaves all other rows as they are, and returns the cache itself.
    """
    checks.shape(path=(path, "B D"))
    if not isinstance(cache, torch.Tensor) or cache.ndim < 2 or len(cache) != len(path):
        given = tuple(cache.shape) if isinstance(cache, torch.Tensor) else type(cache).__name__
        raise ValueError(f"cache must have shape (B, S, ...) with B = {len(path)}, not {given}")
    if cache.element_size() > 8:
        raise TypeError(f"cache must have a dtype of 1, 2, 4 or 8 bytes, not {str(cache.dtype).removeprefix('torch.')}")
    checks.dtypes(torch.int64, torch.int32, path=path, start=start)
    if start is not None:
        checks.shape(path=(path, "B D"), start=(start, "B"))
    checks.same_device(cache=cache, path=path, start=start)
    if path.shape[1] > LONGEST:
        raise ValueError(f"path must hold at most {LONGEST} nodes, not {path.shape[1]}")
    if not in_place:
        return gather_cache(cache, path, start)
    if any(size > 1 and stride == 0 for size, stride in zip(cache.shape, cache.stride(), strict=True)):
        raise ValueError("cache must not be expanded: its rows share memory and cannot be written in place")
    gather_cache_in_place(cache, path, start)
    return cache


def _built(parents, lengths):
    checks.shape(parents=(parents, "B N"))
    checks.dtypes(torch.int64, torch.int32, parents=parents, lengths=lengths)
    if parents.shape[1] == 0:
        raise ValueError(f"parents must have room for the root, shape (B, N) with N at least 1, not {tuple(parents.shape)}")
    if lengths is not None:
        checks.shape(parents=(parents, "B N"), lengths=(lengths, "B"))
    checks.same_device(parents=parents, lengths=lengths)
    return build_tree(parents, lengths)


def _unpacked(words, N):
    """The bits of the words `(B, N, N)`, as bool."""
    bits = words[..., None] >> torch.arange(BITS, device=words.device) & 1  # (B, N, W, 64)
    return bits.flatten(2)[:, :, :N].bool()
