"""TTT layers: the hidden state is a model that every token trains (arXiv:2407.04620). See `twofold.spec.test_time_training.ttt`.

Layout: q, k `(B, T, H, D)`, v `(B, T, H, V)`, eta `(B, T, H, batch)`; weights, which are the state, W `(B, H, D, V)` and b `(B, H, V)` in
float32 (start from parameters: expand them over B); ln a pair of `(H, V)` or None. PyTorch on every device, in float32 (float64 where q
is), with gradients for everything, the start weights included.

`dual` is the one to use, and `mlp` is in that form, too: products of matrices, one mini-batch after the other. `primal` makes the weights
after every token. `cu_seqlens` `(N + 1,)` packs N sequences along T: B is 1, weights are `(N, H, …)`, each sequence has batches of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from twofold.fast import checks
from twofold.fast.test_time_training._tokens import by_sequence, wide

__all__ = ["primal", "dual", "mlp"]

EPS = 1e-6
AXES = {2: {"W": "B H D V", "b": "B H V"}, 4: {"W1": "B H D M", "b1": "B H M", "W2": "B H M V", "b2": "B H V"}}  # by the number of weights
Norm = tuple[Tensor, Tensor] | None


def dual(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, W: Tensor, b: Tensor | None = None, ln: Norm = None, batch: int = 16, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """Outputs `(B, T, H, V)` in the dtype of v and the weights (W, b) after the last token."""
    return _run(_dual, (q, k, v, eta), (W, b), ln, batch, cu_seqlens)


def primal(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, W: Tensor, b: Tensor | None = None, ln: Norm = None, batch: int = 16, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """The definition: weights after every token."""
    return _run(_primal, (q, k, v, eta), (W, b), ln, batch, cu_seqlens)


def mlp(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor, ln: Norm = None, batch: int = 16, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """Two layers, W1 `(B, H, D, M)`, b1 `(B, H, M)`, W2 `(B, H, M, V)`, b2 `(B, H, V)`: outputs and all weights after the last token."""
    return _run(_mlp, (q, k, v, eta), (W1, b1, W2, b2), ln, batch, cu_seqlens)


def _run(form, tokens, weights, ln, batch, cu_seqlens):
    """Check, then one mini-batch after the other."""
    q, k, v, eta = tokens
    checks.at_least(1, batch=batch)
    if cu_seqlens is not None:
        return by_sequence(lambda own, state: _run(form, own, state, ln, batch, None), tokens, _start(weights), cu_seqlens)
    weights, axes = _start(weights), AXES[len(weights)]
    checks.shape(q=(q, "B T H D"), v=(v, "B T H V"), **{name: (x, axes[name]) for name, x in zip(axes, weights, strict=True)})
    per_token = {"q": (q, "B T H D"), "k": (k, "B T H D"), "v": (v, "B T H V"), "eta": (eta, f"B T H {batch}")}
    rows, weights = wide(per_token, weights, lambda sizes: [tuple(x.shape) for x in weights])
    if ln is not None:
        checks.shape(q=(q, "B T H D"), v=(v, "B T H D"), gamma=(ln[0], "H D"), beta=(ln[1], "H D"))
        ln = tuple(x.to(rows[0].dtype)[:, None] for x in ln)  # (H, 1, V)
    rows = [x.transpose(1, 2) for x in rows]  # (B, H, T, ·)
    outputs = [rows[2][:, :, :0]]
    for start in range(0, q.shape[1], batch):
        Q, K, V, steps = (x[:, :, start : start + batch] for x in rows)
        output, weights = form(Q, K, V if ln is None else V - K, steps[..., : Q.shape[2]].tril(), *weights, ln)
        outputs.append(output)
    return torch.cat(outputs, 2).transpose(1, 2).to(v.dtype), weights


def _start(weights):
    """A bias that is not given is zero."""
    return tuple(weights[0].new_zeros(*weights[0].shape[:2], weights[0].shape[3]) if x is None else x for x in weights)


def _dual(Q, K, target, steps, W, b, ln):
    G = _gradient(K @ W + b[..., None, :], target, ln)
    Z, W, b = _layer(Q, K, G, steps, W, b, ln)
    return _answer(Q, Z, ln), (W, b)


def _mlp(Q, K, target, steps, W1, b1, W2, b2, ln):
    before = K @ W1 + b1[..., None, :]
    hidden = F.gelu(before, approximate="tanh")
    G2 = _gradient(hidden @ W2 + b2[..., None, :], target, ln)
    G1 = (G2 @ W2.mT) * _slope(before)
    Z1, W1, b1 = _layer(Q, K, G1, steps, W1, b1, ln)
    Z2, W2, b2 = _layer(F.gelu(Z1, approximate="tanh"), hidden, G2, steps, W2, b2, ln)
    return _answer(Q, Z2, ln), (W1, b1, W2, b2)


def _primal(Q, K, target, steps, W, b, ln):
    G, outputs = _gradient(K @ W + b[..., None, :], target, ln), []
    for t in range(Q.shape[2]):
        Wt = W - (steps[:, :, t, :, None] * K).mT @ G
        bt = b if ln is None else b - (steps[:, :, t, None] @ G)[:, :, 0]
        row = Q[:, :, t : t + 1]
        outputs.append(_answer(row, row @ Wt + bt[..., None, :], ln))
    return torch.cat(outputs, 2), (Wt, bt)


def _layer(Q, K, G, steps, W, b, ln):
    """What queries get of a layer whose inputs K have the gradients G, each by the weights after its own token; and the last weights."""
    Z = Q @ W + b[..., None, :] - (steps * (Q @ K.mT)) @ G
    last = steps[:, :, -1]
    after = W - (last[..., None] * K).mT @ G
    return (Z, after, b) if ln is None else (Z - steps @ G, after, b - (last[..., None, :] @ G)[:, :, 0])


def _answer(x, z, ln):
    return z if ln is None else x + ln[0] * _normed(z)[0] + ln[1]


def _gradient(z, target, ln):
    if ln is None:
        return z - target
    unit, deviation = _normed(z)
    y = ln[0] * (ln[0] * unit + ln[1] - target)
    return (y - y.mean(-1, keepdim=True) - unit * (y * unit).mean(-1, keepdim=True)) / deviation


def _normed(z):
    centered = z - z.mean(-1, keepdim=True)
    deviation = (centered.square().mean(-1, keepdim=True) + EPS).sqrt()
    return centered / deviation, deviation


def _slope(x):
    """Of the GELU by its tanh."""
    root = (2 / torch.pi) ** 0.5
    t = torch.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x**2)
