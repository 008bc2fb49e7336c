"""Ring attention over `torch.distributed`: gloo on CPUs, NCCL on GPUs. See `twofold.spec.attention.ring`.

Every rank calls with its own shard (B, n, H, D) of what the spec has as a list; only n may differ from rank to rank. While a rank attends
the keys that it holds, they are already on their way to the next rank and the next keys on theirs to it. `forward` and `striped` are
differentiable: the backward pass is a ring as well, so every rank has to take part in it. Nothing is added in an order that depends on
timing, so two runs agree bit for bit.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention import flash
from twofold.fast.attention.online_softmax import merge

__all__ = ["forward", "backward", "striped"]

KEYS, GRADIENTS = 0, 1  # message tags
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def forward(
    q_shards: Tensor,
    k_shards: Tensor,
    v_shards: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns this rank's output (B, n, H, Dv) and log-sum-exp (B, H, n) over the keys of all ranks of `group`.

    The arguments are this rank's shards. `causal`: rank r holds the tokens that follow those of rank r - 1, queries and keys alike.
    """
    return _Ring.apply(q_shards, k_shards, v_shards, causal, False, scale, group)  # type: ignore[no-any-return]


def striped(
    q_shards: Tensor, k_shards: Tensor, v_shards: Tensor, *, scale: float | None = None, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Causal attention where rank r of P holds the tokens r, r + P, r + 2P, …: all ranks have the same work at every step."""
    return _Ring.apply(q_shards, k_shards, v_shards, True, True, scale, group)  # type: ignore[no-any-return]


def backward(
    q_shards: Tensor,
    k_shards: Tensor,
    v_shards: Tensor,
    o_shards: Tensor,
    lse_shards: Tensor,
    do_shards: Tensor,
    *,
    dlse_shards: Tensor | None = None,
    causal: bool = False,
    stripes: bool = False,
    scale: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv) of this rank's shards from what `forward`, or `striped`, returned on it; all ranks call together.

    `dlse_shards` is given on every rank or on none. Contributions are summed in float32 and rounded once, at home.
    """
    checks.shape(q_shards=(q_shards, "B n H D"), v_shards=(v_shards, "B m Hkv Dv"), o_shards=(o_shards, "B n H Dv"))
    ring = _Travel(q_shards, k_shards, v_shards, causal or stripes, stripes, group)
    dq = torch.zeros_like(q_shards, dtype=torch.float32)
    held = torch.cat([k_shards, v_shards], -1)  # (B, m, Hkv, D + Dv)
    sums, arriving = None, None
    for step in range(ring.size):
        keys_arrive = ring.exchange(held, step, KEYS)
        part = torch.zeros_like(held, dtype=torch.float32)
        if (share := ring.share(step)) is not None:
            keys, aligned = share
            k, v = held[:, :keys].split(ring.widths, -1)
            mine = q_shards, k, v, o_shards, lse_shards, do_shards
            dq_part, *kv_part, _, _ = flash.backward(*mine, dlse=dlse_shards, causal=aligned, scale=scale)
            dq += dq_part
            part[:, :keys] = torch.cat(kv_part, -1)
        sums = part if arriving is None else arriving() + part  # what the ranks before have made of these keys
        arriving = ring.exchange(sums, step, GRADIENTS, last=True)
        held = keys_arrive()
    dk, dv = arriving().split(ring.widths, -1)  # type: ignore[misc]
    return dq.to(q_shards.dtype), dk.to(k_shards.dtype).contiguous(), dv.to(v_shards.dtype).contiguous()


class _Travel:
    """One journey of the keys around the ring: which shard this rank holds at each step, how much of it counts, and the messages."""

    def __init__(self, q, k, v, causal, stripes, group):
        if not dist.is_initialized():
            raise RuntimeError("ring attention needs torch.distributed: call torch.distributed.init_process_group first")
        sizes = checks.shape(q_shards=(q, "B n H D"), k_shards=(k, "B m Hkv D"), v_shards=(v, "B m Hkv Dv"))
        checks.same(q_shards=q, k_shards=k, v_shards=v)
        checks.dtypes(*DTYPES, q_shards=q)
        if causal and sizes["n"] != sizes["m"]:
            raise ValueError(f"k_shards must have the tokens of q_shards under a causal mask, {sizes['n']} of them, not {sizes['m']}")
        self.group, self.causal, self.stripes = group, causal, stripes
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.widths = [sizes["D"], sizes["Dv"]]
        self.lengths = self._lengths(k, sizes)
        if stripes and (total := sum(self.lengths)) and self.lengths != [-(-(total - r) // self.size) for r in range(self.size)]:
            raise ValueError(f"k_shards must hold every {self.size}th token of {total}, not {self.lengths} by rank")

    def share(self, step):
        """How many of the keys held at this step are seen at all, and whether they end where the rows end; None if none is seen."""
        own, other = self.lengths[self.rank], self._shard(step)
        if not self.causal:
            return self.lengths[other], False
        if self.stripes:  # keys of a later stripe end one row before
            return max(own - (other > self.rank), 0), True
        return None if other > self.rank else (self.lengths[other], other == self.rank)

    def exchange(self, tensor, step, tag, last=False):
        """Begin to send to the next rank and to receive from the one before; call the result to wait for what it sent."""
        if self.size == 1 or (step == self.size - 1 and not last):
            return lambda: tensor
        shape = (len(tensor), self.lengths[self._shard(step + 1)], *tensor.shape[2:])
        received = tensor.new_empty(shape)
        peer = lambda distance: dist.get_global_rank(self.group or dist.group.WORLD, (self.rank + distance) % self.size)
        outgoing = dist.P2POp(dist.isend, tensor.contiguous(), peer(1), self.group, tag) if tensor.numel() else None
        incoming = dist.P2POp(dist.irecv, received, peer(-1), self.group, tag) if received.numel() else None
        messages = [each for each in (outgoing, incoming) if each is not None]
        requests = dist.batch_isend_irecv(messages) if messages else []
        return lambda: _arrived(requests, messages, received)

    def _shard(self, step):
        return (self.rank - step) % self.size

    def _lengths(self, k, sizes):
        """The number of keys on each rank; everything else has to be the same on all."""
        axes = "m", "B", "Hkv", "D", "Dv"
        mine = torch.tensor([*(sizes[axis] for axis in axes), DTYPES.index(k.dtype)], device=k.device)
        table = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(table, mine, self.group)
        rows = torch.stack(table).tolist()
        if any(row[1:] != rows[0][1:] for row in rows):
            raise ValueError(f"k_shards must differ from rank to rank in their length only, not be of ({', '.join(axes)}, dtype) = {rows}")
        return [row[0] for row in rows]


def _arrived(requests, messages, received):
    """What was received, once all requests are done; until then their messages must stay alive."""
    for request in requests:
        request.wait()
    messages.clear()
    return received


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, stripes, scale, group):
        ring = _Travel(q, k, v, causal, stripes, group)
        held = torch.cat([k, v], -1)  # (B, m, Hkv, D + Dv): one message
        result = None
        for step in range(ring.size):
            keys_arrive = ring.exchange(held, step, KEYS)
            if (share := ring.share(step)) is not None:
                keys, aligned = share
                part = flash.forward(q, *held[:, :keys].split(ring.widths, -1), causal=aligned, scale=scale)
                result = (part[0].float(), part[1]) if result is None else merge(result, part)
            held = keys_arrive()
        o, lse = result[0].to(q.dtype), result[1]  # every rank sees its own keys, so there is a result
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.options = {"causal": causal, "stripes": stripes, "scale": scale, "group": group}
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, do, dlse):
        q, k, v, o, lse = ctx.saved_tensors
        do, dlse = torch.zeros_like(o) if do is None else do, torch.zeros_like(lse) if dlse is None else dlse
        return *backward(q, k, v, o, lse, do, dlse_shards=dlse, **ctx.options), None, None, None, None
