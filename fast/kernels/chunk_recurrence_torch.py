"""The PyTorch twin of `chunk_recurrence`: the same chunks and sub-chunks, vectorized over batch and heads, a loop over chunks only.

It computes in float32 (float64 where the inputs are) and runs packed sequences one by one, so that packing changes no bit.
"""

import torch
import torch.nn.functional as F

from twofold.fast.kernels import chunk_scalar_torch

__all__ = ["backward", "forward"]

SUB = 16


def forward(q, k, v, g, S0, cu_seqlens, chunk: int, a=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(B, T, H, V)` and final states `(N, H, K, V)`; g is `(B, T, H, K)`, `(B, T, H, 1)` or None; a as of `chunk_erasure`."""
    o, final = torch.empty_like(v, memory_format=torch.contiguous_format), torch.empty_like(S0, memory_format=torch.contiguous_format)
    for batch, tokens, states in _sequences(q, cu_seqlens):
        x = _sequence(g)(chunk, *(_piece(y, batch, tokens, v.shape[2]) for y in (q, k, v, g, a)))
        output, state = x.forward(S0[states].to(x.v.dtype))
        o[batch, tokens] = output.transpose(1, 2).to(o.dtype)
        final[states] = state
    return o, final


def backward(q, k, v, g, S0, cu_seqlens, do, dS, chunk: int, a=None):
    """dq, dk, dv, dg (empty without g), dS0 and, with a, da."""
    heads, group = v.shape[2], v.shape[2] // q.shape[2]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    dq, dk, da = (torch.empty((*v.shape[:3], q.shape[3]), dtype=wide, device=q.device) for _ in range(3))
    dv, dS0 = torch.empty(v.shape, dtype=v.dtype, device=v.device), torch.empty(S0.shape, dtype=S0.dtype, device=S0.device)
    dg = torch.empty((*v.shape[:3], 0) if g is None else g.shape, dtype=wide, device=v.device)
    wholes = (dq, dk, dv, dg) if a is None else (dq, dk, dv, dg, da)
    for batch, tokens, states in _sequences(q, cu_seqlens):
        x = _sequence(g)(chunk, *(_piece(y, batch, tokens, heads) for y in (q, k, v, g, a)))
        *gradients, dS0[states] = x.backward(S0[states].to(wide), _piece(do, batch, tokens, heads), dS[states].to(wide))
        for whole, part in zip(wholes, gradients, strict=True):
            whole[batch, tokens] = part.transpose(1, 2).to(whole.dtype)
    dq, dk, da = (x.unflatten(2, (-1, group)).sum(3).to(q.dtype) for x in (dq, dk, da))
    return (dq, dk, dv, dg, dS0) if a is None else (dq, dk, dv, dg, dS0, da)


def _sequence(g):
    return _Sequence if g is not None and g.shape[-1] > 1 else chunk_scalar_torch.Sequence


def _sequences(q, cu_seqlens):
    """(batch rows, tokens, states) that one run covers: the whole batch at once, or packed sequences one by one."""
    if cu_seqlens is None:
        yield slice(None), slice(None), slice(None)
    else:
        edges = cu_seqlens.tolist()
        for n, (begin, end) in enumerate(zip(edges, edges[1:])):
            yield slice(None), slice(begin, end), slice(n, n + 1)


def _piece(x, batch, tokens, heads):
    """`(B, T, H', D)` to `(B, H, T, D)` in the computing format; value head h reads query and key head h // (H / H')."""
    if x is None:
        return None
    x = x[batch, tokens].transpose(1, 2)
    return x.repeat_interleave(heads // x.shape[1], 1).to(torch.float64 if x.dtype == torch.float64 else torch.float32)


class _Sequence:
    """Sequences of equal length, padded by tokens that change nothing to whole sub-chunks."""

    def __init__(self, chunk, q, k, v, g, a=None):
        self.length, self.chunk, self.channels = q.shape[2], -(-chunk // SUB) * SUB, 0 if g is None else g.shape[3]
        padding = -self.length % SUB
        self.q, self.k, self.v = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v))
        self.a = None if a is None else F.pad(a, (0, 0, 0, padding))
        g = F.pad(g, (0, 0, 0, padding)) if g is not None else self.q.new_zeros((*self.q.shape[:3], 1))
        self.g = g.clamp(min=-1e30)  # as good as -inf, but may meet a zero in a product
        i, j, s = torch.meshgrid(*[torch.arange(SUB, device=q.device)] * 3, indexing="ij")
        self.steps = ((j < s) & (s <= i)).flatten(0, 1).to(self.g.dtype)  # the tokens s that decay key j on its way to query i
        self.early_steps = ((j < s) & (s < i)).flatten(0, 1).to(self.g.dtype)  # … if it reads before the update
        self.starts = range(0, self.q.shape[2], self.chunk)

    def _chunk(self, start, *others):
        """One chunk of every input, cut into sub-chunks: `(B, H, J, SUB, D)`."""
        parts = (x[:, :, start : start + self.chunk] for x in (self.q, self.k, self.v, self.g, *others))
        return [x.unflatten(2, (-1, SUB)) for x in parts]

    def forward(self, state):
        outputs = [self.v[:, :, :0]]
        for start in self.starts:
            q, k, v, g = self._chunk(start)
            near, far, within, since, until, total = self._decays(g)
            v = v if self.a is None else self._written(start, k, v, g, far, state)
            distant = (q * near) @ (k.flatten(2, 3)[:, :, None] * far).mT                 # (B, H, J, SUB, C)
            output = distant @ v.flatten(2, 3)[:, :, None] + _scores(q, k, within) @ v + (q * since) @ state[:, :, None]
            outputs.append(output.flatten(2, 3))
            state = total * state + (k * until).flatten(2, 3).mT @ v.flatten(2, 3)
        return torch.cat(outputs, 2)[:, :, : self.length], state

    def backward(self, state, do, dstate):
        states, written = [state], []
        for start in self.starts:
            _, k, v, g = self._chunk(start)
            _, far, _, _, until, total = self._decays(g)
            written.append(v if self.a is None else self._written(start, k, v, g, far, states[-1]))
            states.append(total * states[-1] + (k * until).flatten(2, 3).mT @ written[-1].flatten(2, 3))
        do = F.pad(do, (0, 0, 0, self.v.shape[2] - self.length))
        rows = []
        for nth, start in reversed(list(enumerate(self.starts))):
            q, k, _, g, dout = self._chunk(start, do)
            v, state = written[nth], states[nth][:, :, None]
            near, far, within, since, until, total = self._decays(g)
            dq, dk, pairs = _pairs(q, k, v, dout, near, far, within)
            dq, dk = dq + since * (dout @ state.mT), dk + until * (v @ dstate[:, :, None].mT)
            distant = (q * near) @ (k.flatten(2, 3)[:, :, None] * far).mT
            dv = (distant.mT @ dout).sum(2).unflatten(2, (-1, SUB)) + (k * until) @ dstate[:, :, None]
            dv = dv + _scores(q, k, within).mT @ dout
            through, flow, early = total * dstate + (q * since).flatten(2, 3).mT @ dout.flatten(2, 3), q * dq, []
            if self.a is not None:
                a, scores, near, within, since = self._early(start, k, g, far)
                dv = torch.linalg.solve_triangular(scores.mT, dv.flatten(2, 3), upper=True, unitriangular=True).unflatten(2, (-1, SUB))
                da, more, _ = _pairs(a, k, v, dv, near, far, within)
                da, dk = da + since * (dv @ state.mT), dk + more
                flow = flow + F.pad((a * da).flatten(2, 3)[:, :, 1:], (0, 0, 0, 1)).unflatten(2, (-1, SUB))
                through = through + (a * since).flatten(2, 3).mT @ dv.flatten(2, 3)
                early = [da.flatten(2, 3)]
            flow = (flow - k * dk).flatten(2, 3).flip(2).cumsum(2).flip(2) + (states[nth + 1] * dstate).sum(-1)[:, :, None]
            flow = flow if self.channels == flow.shape[-1] else flow.sum(-1, keepdim=True)[..., : self.channels]
            alone = pairs.diagonal(dim1=-2, dim2=-1)[..., None]  # a token's own pair meets no gate: kept out of dg
            rows.append([(dq + alone * k).flatten(2, 3), (dk + alone * q).flatten(2, 3), dv.flatten(2, 3), flow, *early])
            dstate = through
        empty = [self.q[:, :, :0], self.k[:, :, :0], self.v[:, :, :0], do.new_zeros((*do.shape[:2], 0, self.channels))]
        columns = zip(empty if self.a is None else [*empty, self.a[:, :, :0]], *reversed(rows))
        return *(torch.cat(x, 2)[:, :, : self.length] for x in columns), dstate

    def _early(self, start, k, g, far):
        """Rows a of a chunk, I minus their scores with its keys `(B, H, C, C)`, and the decays that they meet: near, within and since."""
        a = self.a[:, :, start : start + self.chunk].unflatten(2, (-1, SUB))
        near = F.pad(g.cumsum(3), (0, 0, 1, -1))
        before = F.pad(g.sum(3).cumsum(2), (0, 0, 1, -1))[:, :, :, None]
        within = (self.early_steps @ g).exp_().unflatten(3, (SUB, SUB))
        scores = (a * near.exp()) @ (k.flatten(2, 3)[:, :, None] * far).mT                # (B, H, J, SUB, C)
        scores.unflatten(4, (-1, SUB)).diagonal(dim1=2, dim2=4).copy_(_scores(a, k, within, -1).movedim(2, -1))
        eye = torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device)
        return a, eye - scores.flatten(2, 3), near.exp(), within, (before + near).exp()

    def _written(self, start, k, v, g, far, state):
        """What is written in place of values v: v + (what a reads of the memory before the update)."""
        a, scores, _, _, since = self._early(start, k, g, far)
        values = (v + (a * since) @ state[:, :, None]).flatten(2, 3)
        return torch.linalg.solve_triangular(scores, values, upper=False, unitriangular=True).unflatten(2, (-1, SUB))

    def _decays(self, g):
        """Decays of one chunk `(B, H, J, SUB, G)`; all exponents are sums of log-decays over the tokens between two, so at most 0.

        near: from the sub-chunk's start through the token; far: from the token to the start of a later sub-chunk, `(B, H, J, C, G)`;
        within: from j through i, `(B, H, J, SUB, SUB, G)`, 1 where i < j; since, until: from the chunk's start, to its end; total:
        `(B, H, G, 1)`.
        """
        near, rest = g.cumsum(3), _after(g, 3)
        totals = near[:, :, :, -1]                                                        # (B, H, J, G)
        blocks = torch.arange(g.shape[2], device=g.device)
        later = (blocks[:, None] > blocks)[..., None]                                     # whether sub-chunk m comes after j
        between = torch.where(later, totals[:, :, :, None], 0.0).cumsum(2)                # from j's end through m
        between = F.pad(between, (0, 0, 0, 0, 1, -1))                                     # from j's end to m's start
        far = torch.where(later[..., None], rest[:, :, None] + between[..., None, :], -torch.inf).exp().flatten(3, 4)
        within = (self.steps @ g).exp_().unflatten(3, (SUB, SUB))
        before = F.pad(totals.cumsum(2), (0, 0, 1, -1))[:, :, :, None]
        return near.exp(), far, within, (before + near).exp(), (rest + _after(totals, 2).unsqueeze(3)).exp(), totals.sum(2).exp()[..., None]


def _scores(q, k, within, diagonal=0):
    """Scores of a sub-chunk's queries with its own keys: `(B, H, J, SUB, SUB)`, those above a diagonal 0."""
    if within.shape[-1] == 1:
        return ((q @ k.mT) * within[..., 0]).tril(diagonal)
    return (q[..., None, :] * within * k[..., None, :, :]).sum(-1).tril(diagonal)


def _pairs(q, k, v, do, near, far, within):
    """dq and dk of the pairs of a chunk, without a token's own pair, and the d scores within sub-chunks `(B, H, J, SUB, SUB)`."""
    dscores = do @ v.flatten(2, 3).mT[:, :, None]                                         # (B, H, J, SUB, C)
    dq = near * (dscores @ (k.flatten(2, 3)[:, :, None] * far))
    dk = (far * (dscores.mT @ (q * near))).sum(2).unflatten(2, (-1, SUB))
    pairs = do @ v.mT
    weight = pairs.tril(-1)[..., None] * within
    if within.shape[-1] == 1:
        return dq + weight[..., 0] @ k, dk + weight[..., 0].mT @ q, pairs
    return dq + (weight * k[..., None, :, :]).sum(-2), dk + (weight * q[..., None, :]).sum(-3), pairs


def _after(x, axis):
    """Sums of what follows along an axis, without the element itself."""
    shifted = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), torch.zeros_like(x.narrow(axis, 0, 1))], axis)
    return shifted.flip(axis).cumsum(axis).flip(axis)
