"""The affine recurrence S_t = (Diag(e^{g_t}) + b_t a_t^T) S_{t-1} + k_t v_t^T, o_t = q_t^T S_t: one update behind many models.

Layout: q, k, a, b `(B, T, H, K)`, v `(B, T, H, V)`; log-decays g `(B, T, H, K)`, `(B, T, H, 1)` or None for none; states `(B, H, K, V)`.
a and b are tensors, or both None where the transition is diagonal. Everything is computed in float32, in float64 where q is.

What runs where: `chunked` with a = b = None is the operator of `gla.chunked`, Triton kernels on a GPU and their PyTorch twin on the
CPU, and takes 16-bit formats as they are. With a and b it is PyTorch on every device, O(T C K) memory traffic for chunks of C tokens;
so are all other forms.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import chunk_recurrence, diagonal_recurrence

__all__ = ["recurrent", "recurrent_pre", "chunked", "scan", "summary", "step", "matrix"]


def step(state, q, k, v, g, a, b):
    """Absorb one token, rows `(B, H, ·)`, then read: the output `(B, H, V)` and the new state `(B, H, K, V)`."""
    sizes = checks.shape(q=(q, "B H K"), k=(k, "B H K"), v=(v, "B H V"), state=(state, "B H K V"))
    g, a, b = _given(g, a, b, (sizes["B"], sizes["H"]), sizes["K"], state)
    k, v, q = (x.to(state.dtype) for x in (k, v, q))
    erased = b[..., None] * (a[..., None, :] @ state)
    state = g.exp()[..., None] * state + erased + k[..., None] * v[..., None, :]
    return (q[..., None, :] @ state).squeeze(-2), state


def recurrent(q, k, v, g, a, b, S0=None):
    """The definition: one `step` per token. Returns the outputs `(B, T, H, V)` and the final state."""
    q, k, v, g, a, b, state = _wide(q, k, v, g, a, b, S0)
    outputs = [v[:, :0]]
    for t in range(q.shape[1]):
        output, state = step(state, *(x[:, t] for x in (q, k, v, g, a, b)))
        outputs.append(output[:, None])
    return torch.cat(outputs, 1), state


def recurrent_pre(q, k, v, g, a, b, u, S0=None):
    """The read before the write, with bonus u `(H, K)` for the token's own pair; the states are those of `recurrent`."""
    q, k, v, g, a, b, state = _wide(q, k, v, g, a, b, S0)
    checks.shape(q=(q, "B T H K"), u=(u, "H K"))
    outputs = [v[:, :0]]
    for t in range(q.shape[1]):
        read = (q[:, t, :, None] @ state).squeeze(-2) + (q[:, t] * u * k[:, t]).sum(-1, keepdim=True) * v[:, t]
        _, state = step(state, *(x[:, t] for x in (q, k, v, g, a, b)))
        outputs.append(read[:, None])
    return torch.cat(outputs, 1), state


def chunked(q, k, v, g, a, b, S0=None, chunk=16, *, cu_seqlens=None, check=False):
    """The same, one unit-triangular solve per chunk. Packing and 16-bit formats: with a = b = None only (see `gla.chunked`)."""
    if a is None and b is None:
        return diagonal_recurrence.run(q, k, v, g, S0, chunk, cu_seqlens, check)
    if cu_seqlens is not None:
        raise ValueError("cu_seqlens packs sequences where a and b are None; with them, run the sequences one by one")
    if chunk not in chunk_recurrence.CHUNKS:
        raise ValueError(f"chunk must be one of {chunk_recurrence.CHUNKS}, not {chunk}")
    dtype = v.dtype
    *tokens, state = _wide(q, k, v, g, a, b, S0)
    tokens = [x.transpose(1, 2) for x in tokens]                                # (B, H, T, ·)
    outputs = [tokens[2][:, :, :0]]
    for start in range(0, q.shape[1], chunk):
        output, state = _one_chunk(*(x[:, :, start : start + chunk] for x in tokens), state)
        outputs.append(output)
    return torch.cat(outputs, 2).transpose(1, 2).to(dtype), state


def _one_chunk(q, k, v, g, a, b, state):
    through = _decays(g)                                                        # from j through i              (B, H, C, C, G)
    before = torch.cat([torch.zeros_like(through[:, :, :1]), through[:, :, :-1]], 2)
    since = g.cumsum(2).exp()
    until = torch.cat([torch.ones_like(since[:, :, :1]), since[:, :, :-1]], 2)
    reach = through[:, :, -1]                                                   # from the token to the end     (B, H, C, G)
    read = _paired(a, k, before) @ v + (a * until) @ state
    lower = torch.eye(q.shape[2], dtype=q.dtype, device=q.device) - _paired(a, b, before)
    reread = torch.linalg.solve_triangular(lower, read, upper=False, unitriangular=True)
    output = _paired(q, k, through) @ v + _paired(q, b, through) @ reread + (q * since) @ state
    return output, since[:, :, -1, :, None] * state + (k * reach).mT @ v + (b * reach).mT @ reread


def _decays(g):
    """Decay from token j through token i, 0 where j > i: sums of the log-decays between, masked before the exponential."""
    times = torch.arange(g.shape[2], device=g.device)
    between = torch.where((times[:, None] > times)[..., None], g[:, :, :, None], 0.0).cumsum(2)
    return torch.where((times[:, None] >= times)[..., None], between, -torch.inf).exp()


def _paired(x, y, decay):
    return (x[..., :, None, :] * y[..., None, :, :] * decay).sum(-1)


def summary(k, v, g, a, b):
    """A run of tokens as one affine map: `(M, B)` with final state = M @ S0 + B, `(B, H, K, K)` and `(B, H, K, V)`."""
    B, T, H, K = k.shape
    V = v.shape[3]
    eye = torch.eye(K, dtype=k.dtype, device=k.device).expand(B, H, K, K)
    both = torch.cat([v, v.new_zeros(B, T, H, K)], 3)  # one run carries B from a zero state and M from the identity
    start = torch.cat([eye.new_zeros(B, H, K, V), eye], 3)
    _, state = recurrent(k, k, both, g, a, b, start)
    return state[..., V:], state[..., :V]


def scan(q, k, v, g, a, b, S0=None):
    """The same, as a parallel prefix: log2(T) rounds of composing affine maps, T maps of K x K each. For short sequences."""
    q, k, v, g, a, b, state = _wide(q, k, v, g, a, b, S0)
    M = torch.diag_embed(g.exp().expand(k.shape)) + b[..., :, None] * a[..., None, :]
    B = k[..., :, None] * v[..., None, :]
    reach = 1
    while reach < q.shape[1]:
        later = M[:, reach:]
        B = torch.cat([B[:, :reach], later @ B[:, :-reach] + B[:, reach:]], 1)
        M = torch.cat([M[:, :reach], later @ M[:, :-reach]], 1)
        reach = 2 * reach
    states = torch.cat([state[:, None], M @ state[:, None] + B], 1)
    return (q[..., None, :] @ states[:, 1:]).squeeze(-2), states[:, -1]


def matrix(q, k, g, a, b):
    """The matrices `(B, H, T, T)` W with outputs = W @ v from a zero state: the recurrence run on the identity as values."""
    B, T, H, _ = q.shape
    eye = torch.eye(T, dtype=q.dtype, device=q.device)[None, :, None].expand(B, T, H, T)
    return recurrent(q, k, eye, g, a, b)[0].transpose(1, 2)


def _wide(q, k, v, g, a, b, S0):
    """Checked, in the computing format, zeros for what is None."""
    sizes = checks.shape(q=(q, "B T H K"), k=(k, "B T H K"), v=(v, "B T H V"))
    checks.same(q=q, k=k, v=v)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    B, T, H, K, V = (sizes[x] for x in ("B", "T", "H", "K", "V"))
    state = torch.zeros((B, H, K, V), dtype=wide, device=q.device) if S0 is None else S0
    checks.shape(S0=(state, f"{B} {H} {K} {V}"))
    checks.dtypes(wide, S0=state)
    return *(x.to(wide) for x in (q, k, v)), *_given(g, a, b, (B, T, H), K, state), state


def _given(g, a, b, leading, K, state):
    """g, a and b in the format of the state, zeros for those that are None; a and b only together."""
    if (a is None) != (b is None):
        raise ValueError("a and b must be given both, or both be None")
    axes = " ".join(map(str, leading))
    g = state.new_zeros((*leading, 1)) if g is None else g
    a, b = (state.new_zeros((*leading, K)) if x is None else x for x in (a, b))
    checks.shape(g=(g, f"{axes} {1 if g.shape[-1] == 1 else K}"), a=(a, f"{axes} {K}"), b=(b, f"{axes} {K}"))
    return (x.to(state.dtype) for x in (g, a, b))
