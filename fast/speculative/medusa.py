"""Medusa's heads on a batch of hidden states, all heads at once, and the tree of their candidates.

Everything keeps the dtype of its input and is differentiable: heads are trained by calling `heads` on `(..., T, D)` and `loss`. The
choice of a tree runs once, before any text is written, on the host: a heap finds n nodes among R ranks in O(n R log(n R)).
"""

import heapq

import torch
import torch.nn.functional as F

from twofold.fast import checks

__all__ = ["heads", "candidates", "choices", "loss"]


def heads(h, w1, b1, w2):
    """Logits `(..., K, V)` of hidden states h `(..., D)`; w1 `(K, D, D)`, b1 `(K, D)`, w2 `(K, V, D)`."""
    if not isinstance(h, torch.Tensor) or h.ndim == 0:
        raise TypeError("h must be a tensor of shape (..., D)")
    checks.shape(w1=(w1, "K D D"), b1=(b1, "K D"), w2=(w2, "K V D"))
    checks.same(h=h, w1=w1, b1=b1, w2=w2)
    if h.shape[-1] != w1.shape[-1]:
        raise ValueError(f"h must have shape (..., D) with D = {w1.shape[-1]}, not {tuple(h.shape)}")
    K, D, _ = w1.shape
    states = h.reshape(-1, D)  # (N, D)
    hidden = torch.baddbmm(b1[:, None], states.expand(K, -1, -1), w1.transpose(1, 2))  # (K, N, D)
    logits = torch.bmm(F.silu(hidden) + states, w2.transpose(1, 2))  # (K, N, V)
    return logits.transpose(0, 1).reshape(*h.shape[:-1], K, w2.shape[1])


def candidates(topk, choices):
    """Tokens `(B, N)`, with -1 at the root for the caller to fill in, and parents `(B, N)`; topk `(B, K, R)` are token ids."""
    _, K, R = checks.shape(topk=(topk, "B K R")).values()
    checks.dtypes(torch.int64, torch.int32, topk=topk)
    nodes = [(), *sorted(set(choices), key=lambda node: (len(node), node))]
    place = {node: n for n, node in enumerate(nodes)}
    for node in nodes[1:]:
        if len(node) > K or node[-1] not in range(R):
            raise ValueError(f"choices must hold tuples of at most K = {K} ranks below R = {R}, not {node}")
        if node[:-1] not in place:
            raise ValueError(f"choices must hold the parent of every node: {node} is there, {node[:-1]} is not")
    depth, rank = ([f(node) for node in nodes[1:]] for f in (lambda node: len(node) - 1, lambda node: node[-1]))
    tokens = F.pad(topk[:, depth, rank], (1, 0), value=-1)
    parents = torch.tensor([-1, *(place[node[:-1]] for node in nodes[1:])], device=topk.device)
    return tokens, parents.expand(len(topk), -1)


def choices(accuracy, nodes):
    """The tree of `nodes` nodes, or all there are, that is expected to keep the most tokens; accuracy `(K, R)`, tensor or lists."""
    accuracy = accuracy.tolist() if isinstance(accuracy, torch.Tensor) else accuracy
    chosen, heap = [], [(-a, 1, (rank,)) for rank, a in enumerate(accuracy[0])] if len(accuracy) else []
    heapq.heapify(heap)
    while heap and len(chosen) < nodes:
        worth, depth, node = heapq.heappop(heap)  # the worthiest; of equals the shallowest, then the lowest ranks
        chosen.append(node)
        if depth < len(accuracy):
            for rank, a in enumerate(accuracy[depth]):
                heapq.heappush(heap, (worth * a, depth + 1, (*node, rank)))
    return sorted(chosen, key=lambda node: (len(node), node))


def loss(logits, tokens, decay=0.8):
    """Each head's mean cross-entropy, weighted by decay^(k + 1); logits `(B, T, K, V)`, tokens `(B, T)`, -100 where unlabeled."""
    _, T, K, _ = checks.shape(logits=(logits, "B T K V"), tokens=(tokens, "B T")).values()
    checks.dtypes(torch.int64, tokens=tokens)
    total = logits.new_zeros(())
    for k in range(min(K, T - 2)):
        labels = tokens[:, k + 2 :]
        ce = F.cross_entropy(logits[:, : T - k - 2, k].flatten(0, 1), labels.flatten(), reduction="sum")
        total = total + decay ** (k + 1) * ce / (labels != -100).sum().clamp(min=1)
    return total
