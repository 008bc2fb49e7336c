"""Context parallelism over `torch.distributed`: gloo on CPUs, NCCL on GPUs. See `twofold.spec.linear_attention.context_parallel`.

Every rank calls with its own shard, `(B, n, H, K)` and `(B, n, H, V)`, of what the spec has as a list; only n may differ from rank to rank,
and may be 0. S0 is the same on all ranks. Each rank runs its shard twice: for its summary, of which all ranks gather all, and from the
state that the summaries before it make of S0. The number of bytes that travel does not depend on n.

Everything is differentiable, as a sum of the losses of all ranks: the gradients of first and last states are gathered, so every rank has to
take part in the backward pass. Sums run in the order of the ranks, so two runs agree bit for bit.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from twofold.fast import checks
from twofold.fast.linear_attention import affine

__all__ = ["forward", "incoming"]


def forward(
    q_shards: Tensor, k_shards: Tensor, v_shards: Tensor, g_shards: Tensor | None, a_shards: Tensor | None, b_shards: Tensor | None,
    S0: Tensor | None = None, *, chunk: int = 64, group: dist.ProcessGroup | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """This rank's outputs `(B, n, H, V)`, and the state `(B, H, K, V)` after the last rank's tokens, the same on all ranks, in float32."""
    tokens = k_shards, v_shards, g_shards, a_shards, b_shards
    before, after = incoming(*tokens, S0, chunk=chunk, group=group, check=check)
    return affine.chunked(q_shards, *tokens, before, chunk, check=check)[0], after


def incoming(
    k_shards: Tensor, v_shards: Tensor, g_shards: Tensor | None, a_shards: Tensor | None, b_shards: Tensor | None,
    S0: Tensor | None = None, *, chunk: int = 64, group: dist.ProcessGroup | None = None, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The state before this rank's tokens, and that after the last rank's, both `(B, H, K, V)` in float32.

    Hand the first to the `chunked` form of any model: it is its S0.
    """
    if not dist.is_initialized():
        raise RuntimeError("context parallelism runs in processes joined by torch.distributed.init_process_group")
    _demand_one_shape(k_shards, v_shards, a_shards, group)
    M, B = _summary(k_shards, v_shards, g_shards, a_shards, b_shards, chunk, check)
    state = torch.zeros_like(B) if S0 is None else S0
    checks.shape(k_shards=(k_shards, "B n H K"), v_shards=(v_shards, "B n Hv V"), S0=(state, "B Hv K V"))
    return _Compose.apply(M, B, state, a_shards is not None, group)


def _summary(k, v, g, a, b, chunk, check):
    """What a shard does to a state: M `(B, H, K, K)`, its diagonal `(B, H, K, 1)` without a low-rank part, and what it adds."""
    if a is None and b is None:
        _, added = affine.chunked(k, k, v, g, None, None, None, chunk, check=check)
        decay = added.new_ones((1, 1, 1)) if g is None else g.to(added.dtype).sum(1).exp()
        return decay[..., None].expand(*added.shape[:3], 1), added
    width, eye = k.shape[3], torch.eye(k.shape[3], dtype=torch.float64 if k.dtype == torch.float64 else torch.float32, device=k.device)
    both = torch.cat([v, v.new_zeros((*v.shape[:3], width))], 3)  # one run carries what is added from zeros, and M from the identity
    first = torch.cat([eye.new_zeros(v.shape[0], v.shape[2], width, v.shape[3]), eye.expand(v.shape[0], v.shape[2], width, width)], 3)
    added, M = affine.chunked(k, k, both, g, a, b, first, chunk, check=check)[1].split([v.shape[3], width], 3)
    return M, added


def _demand_one_shape(k, v, a, group):
    """Shards differ in their length only: all ranks are told, before any of them waits for a message that has another size."""
    sizes = checks.shape(k_shards=(k, "B n H K"), v_shards=(v, "B n Hv V"))
    mine = torch.tensor([sizes["B"], k.shape[2], sizes["K"], sizes["Hv"], sizes["V"], a is not None], device=k.device)
    table = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(table, mine, group)
    rows = torch.stack(table).tolist()
    if any(row != rows[0] for row in rows):
        axes = "(B, H, K, Hv, V, with a and b)"
        raise ValueError(f"k_shards and v_shards must differ from rank to rank in their length only, not be of {axes} = {rows}")


class _Compose(torch.autograd.Function):
    """The states before this rank and after the last, from what each rank does to a state."""

    @staticmethod
    def forward(ctx, M, B, S0, full, group):
        ctx.full, ctx.group, ctx.rank = full, group, dist.get_rank(group)
        maps, added, states = _gathered(M, group), _gathered(B, group), [S0.clone()]
        for one, more in zip(maps, added):
            states.append((one @ states[-1] if full else one * states[-1]) + more)
        ctx.save_for_backward(maps, states[ctx.rank])
        return states[ctx.rank], states[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, before, after):
        maps, state = ctx.saved_tensors
        before, after = _gathered(torch.stack([before, after]), ctx.group).unbind(1)
        gradients = [after.sum(0)]  # of the states after the last rank, before it, before the one before …
        for one, own in zip(maps.flip(0), before.flip(0)):
            gradients.append(own + (one.mT @ gradients[-1] if ctx.full else one * gradients[-1]))
        mine, gradient = gradients[len(maps) - 1 - ctx.rank], gradients[-1]
        return mine @ state.mT if ctx.full else (mine * state).sum(-1, keepdim=True), mine, gradient, None, None


def _gathered(x, group):
    """A tensor of every rank: `(ranks, …)`."""
    table = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(table, x.contiguous(), group)
    return torch.stack(table)
