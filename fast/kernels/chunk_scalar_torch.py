"""The PyTorch twin of `chunk_recurrence` where all channels decay alike: scores of whole chunks are products of matrices.

All chunks are computed at once, and only what passes from chunk to chunk is a loop. Every exponent is a sum of the log-decays between two
tokens, as in the kernels.
"""

import torch
import torch.nn.functional as F

__all__ = ["Sequence"]


class Sequence:
    """Sequences of equal length `(B, H, T, D)`, padded by tokens that change nothing to whole chunks."""

    def __init__(self, chunk, q, k, v, g, a=None):
        self.length = q.shape[2]
        self.chunk = min(chunk, max(self.length, 1))
        self.q, self.k, self.v = (self._chunks(x) for x in (q, k, v))                     # (B, H, N, C, D)
        self.gated = g is not None
        g = self._chunks(g if self.gated else q.new_zeros((*q.shape[:3], 1))).clamp(min=-1e30)  # as good as -inf, but times zero is zero
        later = torch.ones(self.chunk, self.chunk, dtype=torch.bool, device=q.device).tril(-1)
        between = torch.where(later, g, 0.0).cumsum(3)                                    # from just after j through i
        self.within = between.exp().tril()                                                # (B, H, N, C, C)
        self.since, self.until = g.cumsum(3).exp(), self.within[..., -1, :, None]
        self.total = self.since[..., -1:, :]                                              # (B, H, N, 1, 1)
        self.a = None if a is None else self._chunks(a)
        if a is not None:  # rows that read before the update meet what the token before met
            self.before = torch.cat([torch.zeros_like(self.within[..., :1, :]), self.within[..., :-1, :]], 3)
            self.met = torch.cat([torch.ones_like(self.since[..., :1, :]), self.since[..., :-1, :]], 3)
            self.system = ((self.a @ self.k.mT) * self.before).neg_()  # and ones on the diagonal, which is not read
            self.read = self.a * self.met

    def _chunks(self, x):
        padding = -self.length % self.chunk
        return (F.pad(x, (0, 0, 0, padding)) if padding else x.contiguous()).unflatten(2, (-1, self.chunk))

    def _tokens(self, x):
        return x.flatten(2, 3)[:, :, : self.length]

    def _solved(self, rows, upper):
        """Rows that each need the earlier ones (upper: the later ones) of their chunk."""
        return torch.linalg.solve_triangular(self.system.mT if upper else self.system, rows, upper=upper, unitriangular=True)

    def _states(self, state):
        """States before all chunks and after the last `(B, H, N + 1, K, V)`, and what is written in place of v."""
        kept, states = self.k * self.until, [state]
        if self.a is None:
            for total, added in zip(self.total.unbind(2), (kept.mT @ self.v).unbind(2)):
                states.append(total * states[-1] + added)
            return torch.stack(states, 2), self.v
        written, factors = self._solved(self.v, upper=False), self._solved(self.read, upper=False)
        for total, keys, rows, factor in zip(*(x.unbind(2) for x in (self.total, kept, written, factors))):
            rows += factor @ states[-1]  # in its place among those written
            states.append(total * states[-1] + keys.mT @ rows)
        return torch.stack(states, 2), written

    def forward(self, state):
        states, written = self._states(state)
        output = ((self.q @ self.k.mT) * self.within) @ written + (self.q * self.since) @ states[:, :, :-1]
        return self._tokens(output), states[:, :, -1]

    def backward(self, state, do, dstate):
        states, written = self._states(state)
        do, asked = self._chunks(do), self.q * self.since
        dv, kept, dstates = ((self.q @ self.k.mT) * self.within).mT @ do, self.k * self.until, [dstate]
        if self.a is not None:
            dv, factors = self._solved(dv, upper=True), self._solved(kept, upper=True)
        for n in reversed(range(self.q.shape[2])):
            added = asked[:, :, n].mT @ do[:, :, n]
            if self.a is not None:
                dv[:, :, n] += factors[:, :, n] @ dstates[-1]
                added = added + self.read[:, :, n].mT @ dv[:, :, n]
            dstates.append(self.total[:, :, n] * dstates[-1] + added)
        dstates = torch.stack(dstates[::-1], 2)                                           # before each chunk, and after the last
        after = dstates[:, :, 1:]
        dv = dv + kept @ after if self.a is None else dv

        pairs = do @ written.mT
        weight, alone = pairs.tril(-1) * self.within, pairs.diagonal(dim1=-2, dim2=-1)[..., None]
        dq = weight @ self.k + self.since * (do @ states[:, :, :-1].mT)  # without a token's own pair, which meets no gate
        dk = weight.mT @ self.q + self.until * (written @ after.mT)
        flow, early = self.q * dq, []
        if self.a is not None:
            weight = (dv @ written.mT) * self.before
            da = weight @ self.k + self.met * (dv @ states[:, :, :-1].mT)
            dk = dk + weight.mT @ self.a
            flow = flow + F.pad((self.a * da)[..., 1:, :], (0, 0, 0, 1))
            early = [self._tokens(da)]
        flow = (flow - self.k * dk).sum(-1, keepdim=True).flip(3).cumsum(3).flip(3)
        flow = flow + (states[:, :, 1:] * after).sum((-1, -2))[..., None, None]
        rows = dq + alone * self.k, dk + alone * self.q, dv, flow if self.gated else flow[..., :0]
        return *(self._tokens(x) for x in rows), *early, dstates[:, :, 0]
