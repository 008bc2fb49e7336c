"""MesaNet: at every token the memory that answers all pairs so far best (arXiv:2506.05233). See `twofold.spec.test_time_training.mesa`.

Layout: q, k `(B, T, H, K)`, v `(B, T, H, V)`; log-decays g, at most 0, and weights beta `(B, T, H)`; lam `(H, K)`, above 0; states
`(B, H, K, K)` and `(B, H, K, V)` in float32. PyTorch on every device, in float32 (float64 where q is).

`chunked_cg` is the one to use: all tokens of a chunk walk down together, and no matrix is formed per token. `recurrent` and `step` solve a
system of equations per token. All are differentiable. `cu_seqlens` `(N + 1,)` packs N sequences along T: B is 1, states `(N, …)`.
"""

import torch

from twofold.fast import checks
from twofold.fast.test_time_training._tokens import by_sequence, wide

__all__ = ["recurrent", "chunked_cg", "step"]

ROW = "B T H"


def chunked_cg(q, k, v, g, beta, lam, S0=None, chunk=64, iterations=30, *, cu_seqlens=None):
    """Returns the outputs `(B, T, H, V)` in the dtype of v and the state (H, R)."""
    if chunk < 1 or iterations < 0:
        raise ValueError(f"chunk must be at least 1 and iterations at least 0, not {chunk} and {iterations}")
    if cu_seqlens is not None:
        run = lambda tokens, own: chunked_cg(*tokens, lam, own, chunk, iterations)
        return by_sequence(run, (q, k, v, g, beta), S0, cu_seqlens)
    tokens, lam, state = _wide(q, k, v, g, beta, lam, S0)
    tokens = [x.transpose(1, 2) for x in tokens]  # (B, H, T, ·)
    outputs = [tokens[2][:, :, :0]]
    for start in range(0, q.shape[1], chunk):
        output, state = _one_chunk(*(x[:, :, start : start + chunk] for x in tokens), lam[:, None], *state, iterations)
        outputs.append(output)
    return torch.cat(outputs, 2).transpose(1, 2).to(v.dtype), state


def recurrent(q, k, v, g, beta, lam, S0=None, *, cu_seqlens=None):
    """The definition, one system of equations per token."""
    if cu_seqlens is not None:
        return by_sequence(lambda tokens, own: recurrent(*tokens, lam, own), (q, k, v, g, beta), S0, cu_seqlens)
    tokens, lam, state = _wide(q, k, v, g, beta, lam, S0)
    outputs = [tokens[2][:, :0]]
    for t in range(q.shape[1]):
        output, state = step(state, *(x[:, t] for x in tokens), lam)
        outputs.append(output[:, None])
    return torch.cat(outputs, 1).to(v.dtype), state


def step(state, q, k, v, g, beta, lam):
    """Absorb one token, q `(B, H, K)`, g `(B, H)`, then answer: the output `(B, H, V)` and the new state."""
    sizes = checks.shape(q=(q, "B H K"), k=(k, "B H K"), v=(v, "B H V"), g=(g, "B H"), beta=(beta, "B H"), lam=(lam, "H K"))
    H, R = state
    checks.shape(H=(H, " ".join(str(sizes[x]) for x in "BHKK")), R=(R, " ".join(str(sizes[x]) for x in "BHKV")))
    dtype, (q, k, v, g, beta, lam) = v.dtype, (x.to(H.dtype) for x in (q, k, v, g, beta, lam))
    decay, weighed = g.exp()[..., None, None], (beta[..., None] * k)[..., None]
    H, R = decay * H + weighed * k[..., None, :], decay * R + weighed * v[..., None, :]
    x = torch.linalg.solve(H + torch.diag_embed(lam), q)
    return torch.einsum("bhk,bhkv->bhv", x, R).to(dtype), (H, R)


def _one_chunk(q, k, v, g, beta, lam, H, R, iterations):
    decay, since = _decays(g), g.cumsum(-1).exp()[..., None]  # (B, H, C, C), (B, H, C, 1)
    weights = decay * beta[..., None, :]
    seen = lambda x: (x @ k.mT) * weights
    times = lambda x: seen(x) @ k + since * (x @ H) + x * lam
    x = q / (weights @ k.square() + since * H.diagonal(dim1=-2, dim2=-1)[..., None, :] + lam)
    residual = q - times(x)
    direction, size = residual, residual.square().sum(-1, keepdim=True)
    for _ in range(iterations):
        image = times(direction)
        length = size / torch.where(size == 0, 1, (direction * image).sum(-1, keepdim=True))
        x, residual = x + length * direction, residual - length * image
        before, size = size, residual.square().sum(-1, keepdim=True)
        direction = residual + size / torch.where(before == 0, 1, before) * direction
    reach = weights[..., -1, :, None] * k
    last = since[..., -1:, :]
    return seen(x) @ v + since * (x @ R), (last * H + reach.mT @ k, last * R + reach.mT @ v)


def _decays(g):
    """e^(g_{j+1} + … + g_i) where j <= i, else 0: only what lies between is summed, and masked before the exponential."""
    times = torch.arange(g.shape[-1], device=g.device)
    between = torch.where(times[:, None] > times, g[..., None], 0.0).cumsum(-2)
    return torch.where(times[:, None] >= times, between, -torch.inf).exp()


def _wide(q, k, v, g, beta, lam, S0):
    per_token = {"q": (q, "B T H K"), "k": (k, "B T H K"), "v": (v, "B T H V"), "g": (g, ROW), "beta": (beta, ROW)}
    tokens, state = wide(per_token, S0, lambda n: [(n["B"], n["H"], n["K"], n["K"]), (n["B"], n["H"], n["K"], n["V"])])
    checks.shape(k=(k, "B T H K"), lam=(lam, "H K"))
    checks.same_device(k=k, lam=lam)
    return tokens, lam.to(tokens[0].dtype), state
