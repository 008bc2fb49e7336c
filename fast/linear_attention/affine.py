"""The affine recurrence S_t = (Diag(e^{g_t}) + b_t a_t^T) S_{t-1} + k_t v_t^T, o_t = q_t^T S_t: one update behind many models.

Layout: q, k, a, b `(B, T, H, K)`, v `(B, T, H, V)`; log-decays g `(B, T, H, K)`, `(B, T, H, 1)` or None for none; states `(B, H, K, V)`.
a and b are tensors, or both None where the transition is diagonal. States are float32, float64 where q is.

What runs where: `chunked` is an operator, Triton kernels on a GPU and their PyTorch twin on the CPU, and takes 16-bit formats as they are
(see `gla.chunked`). With a and b each token runs as two: the first decays, reads with a and writes what it read under b; the second writes
its pair and is read. All other forms are PyTorch on every device and compute in the format of the states.
"""

import torch

from twofold.fast import checks
from twofold.fast.kernels import diagonal_recurrence

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


def chunked(q, k, v, g, a, b, S0=None, chunk=64, *, cu_seqlens=None, check=False):
    """The same, chunk by chunk, one unit-triangular system each; packing and gradients as in `gla.chunked`."""
    if (a is None) != (b is None):
        raise ValueError("a and b must be given both, or both be None")
    if a is None:
        return diagonal_recurrence.run(q, k, v, g, S0, chunk, cu_seqlens, check)
    checks.shape(q=(q, "B T Hq K"), k=(k, "B T Hq K"), a=(a, "B T Hq K"), b=(b, "B T Hq K"))
    checks.same(q=q, k=k, v=v, a=a, b=b)
    gates = None if g is None else _two(g, torch.zeros_like(g))
    edges = None if cu_seqlens is None else 2 * cu_seqlens
    nothing = torch.zeros_like(q)
    rows = _two(nothing, q), _two(b, k), _two(torch.zeros_like(v), v), gates
    o, state = diagonal_recurrence.run(*rows, S0, chunk, edges, check, a=_two(a, nothing))
    return o[:, 1::2], state


def _two(first, second):
    """Rows of two kinds, token by token: `(B, 2 T, …)`."""
    return torch.stack([first, second], 2).flatten(1, 2)


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
