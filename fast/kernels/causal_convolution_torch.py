"""The PyTorch twin of `causal_convolution`: whole batches and packed sequences at once, W shifted copies and no loop over tokens.

All sequences lie in one line, each behind its tail. Outputs are computed everywhere, also where they would mix two sequences, and picked
where they do not. It computes in float32 (float64 where the inputs are).
"""

import torch

__all__ = ["backward", "forward"]


def forward(x, w, b, tail, cu_seqlens, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs `(B, T, D)` and new tails `(sequences, W - 1, D)`."""
    (B, T, D), W = x.shape, len(w)
    line = _Line(x, W - 1, cu_seqlens, sequences)
    rows = line.rows(x, tail)
    total = rows.new_zeros(D) if b is None else b.to(rows.dtype)
    for j in range(W):
        total = total + w[j].to(rows.dtype) * rows[:, j : rows.shape[1] - (W - 1) + j]
    y = total[:, line.outputs] if cu_seqlens is not None else total.expand(B, T, D)
    new_tail = rows[:, line.after].reshape(sequences, W - 1, D).to(x.dtype)
    return y.to(x.dtype), new_tail.clone()  # a view would keep all rows alive


def backward(x, w, tail, dy, dnew_tail, cu_seqlens):
    """dx, dw `(W, D)` and db `(D,)` in the computing format, and d tail."""
    (B, _, D), W, sequences = x.shape, len(w), len(dnew_tail)
    line = _Line(x, W - 1, cu_seqlens, sequences)
    rows = line.rows(x, tail)
    count = max(rows.shape[1] - (W - 1), 0)
    dtotal = rows.new_zeros((B, count, D))
    dtotal[:, line.outputs] = dy.to(rows.dtype)
    drows, dw = torch.zeros_like(rows), []
    drows[:, line.after] = dnew_tail.to(rows.dtype).reshape_as(drows[:, line.after])
    for j in range(W):
        drows[:, j : count + j] += w[j].to(rows.dtype) * dtotal
        dw.append((dtotal * rows[:, j : count + j]).sum((0, 1)))
    dtail = drows[:, line.tails].reshape(sequences, W - 1, D).to(dnew_tail.dtype)
    return drows[:, line.tokens].to(x.dtype), torch.stack(dw), dtotal.sum((0, 1)), dtail.clone()


class _Line:
    """Where everything lies along the line of rows: the tails, the tokens, the outputs of the tokens, and the rows of the new tails."""

    def __init__(self, x, before, cu_seqlens, sequences):
        length = x.shape[1]
        if cu_seqlens is None:
            self.count = before + length
            self.tails, self.tokens = slice(0, before), slice(before, None)
            self.outputs, self.after = slice(0, length), slice(length, None)
        else:
            edges, number = cu_seqlens.to(torch.int64), torch.arange(sequences, device=x.device)
            self.count = before * sequences + length
            of_tail = lambda edge: (edge + before * number)[:, None] + torch.arange(before, device=x.device)
            self.tails, self.after = of_tail(edges[:-1]).flatten(), of_tail(edges[1:]).flatten()
            self.outputs = torch.arange(length, device=x.device) + before * torch.repeat_interleave(number, edges.diff())
            self.tokens = self.outputs + before

    def rows(self, x, tail):
        """Tails and tokens, `(B, rows, D)`, in the computing format."""
        rows = x.new_zeros((x.shape[0], self.count, x.shape[2]), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        if tail is not None:
            rows[:, self.tails] = tail.to(rows.dtype).reshape_as(rows[:, self.tails])
        rows[:, self.tokens] = x.to(rows.dtype)
        return rows
