"""Titans: a memory that learns by gradient descent with momentum and decay (arXiv:2501.00663).

See `twofold.spec.test_time_training.titans`.

Layout: q, k `(B, T, H, K)`, v `(B, T, H, V)`; alpha, eta, theta `(B, T, H)`; states, memory and momentum, `(B, H, K, V)` in float32.
PyTorch on every device, in float32 (float64 where q is), with gradients for everything, S0 included.

`chunked` is the one to train: products of matrices, one chunk after the other. `recurrent` and `retrieve_first` are another model, token
by token. `cu_seqlens` `(N + 1,)` packs N sequences along T: B is 1, states are `(N, H, K, V)`, an empty sequence returns its own.
"""

import torch

from twofold.fast import checks
from twofold.fast.test_time_training._tokens import by_sequence, wide

__all__ = ["recurrent", "retrieve_first", "chunked", "step"]

ROW = "B T H"


def chunked(q, k, v, alpha, eta, theta, S0=None, chunk=16, *, cu_seqlens=None):
    """Gradients at the memory of each chunk's start. Returns the outputs `(B, T, H, V)` in the dtype of v and the state (M, S)."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    if cu_seqlens is not None:
        run = lambda tokens, own: chunked(*tokens, own, chunk)
        return by_sequence(run, (q, k, v, alpha, eta, theta), S0, cu_seqlens)
    tokens, state = _wide(q, k, v, alpha, eta, theta, S0)
    tokens = [x.transpose(1, 2) for x in tokens]  # (B, H, T, ·)
    outputs = [tokens[2][:, :, :0]]
    for start in range(0, q.shape[1], chunk):
        output, state = _one_chunk(*(x[:, :, start : start + chunk] for x in tokens), *state)
        outputs.append(output)
    return torch.cat(outputs, 2).transpose(1, 2).to(v.dtype), state


def recurrent(q, k, v, alpha, eta, theta, S0=None, *, cu_seqlens=None):
    """The definition, token by token: learn, then answer."""
    return _by_token(recurrent, True, (q, k, v, alpha, eta, theta), S0, cu_seqlens)


def retrieve_first(q, k, v, alpha, eta, theta, S0=None, *, cu_seqlens=None):
    """Answer, then learn."""
    return _by_token(retrieve_first, False, (q, k, v, alpha, eta, theta), S0, cu_seqlens)


def step(state, q, k, v, alpha, eta, theta):
    """Learn one token, q `(B, H, K)`, alpha `(B, H)`, then answer: the output `(B, H, V)` and the new state."""
    sizes = checks.shape(q=(q, "B H K"), k=(k, "B H K"), v=(v, "B H V"), alpha=(alpha, "B H"), eta=(eta, "B H"), theta=(theta, "B H"))
    memory, momentum = state
    checks.shape(memory=(memory, " ".join(str(sizes[x]) for x in "BHKV")), momentum=(momentum, " ".join(str(sizes[x]) for x in "BHKV")))
    q, k, wanted, alpha, eta, theta = (x.to(memory.dtype) for x in (q, k, v, alpha, eta, theta))
    error = torch.einsum("bhk,bhkv->bhv", k, memory) - wanted
    momentum = eta[..., None, None] * momentum - (theta[..., None] * k)[..., None] * error[..., None, :]
    memory = (1 - alpha)[..., None, None] * memory + momentum
    return torch.einsum("bhk,bhkv->bhv", q, memory).to(v.dtype), (memory, momentum)


def _by_token(form, learn_first, tokens, S0, cu_seqlens):
    if cu_seqlens is not None:
        return by_sequence(lambda own, state: form(*own, state), tokens, S0, cu_seqlens)
    dtype = tokens[2].dtype
    tokens, state = _wide(*tokens, S0)
    outputs = [tokens[2][:, :0]]
    for t in range(tokens[0].shape[1]):
        before = state
        output, state = step(state, *(x[:, t] for x in tokens))
        output = output if learn_first else torch.einsum("bhk,bhkv->bhv", tokens[0][:, t], before[0])
        outputs.append(output[:, None])
    return torch.cat(outputs, 1).to(dtype), state


def _one_chunk(q, k, v, alpha, eta, theta, memory, momentum):
    kept, carried = _products(1 - alpha), _products(eta)  # (B, H, C, C + 1)
    error = k @ memory - v
    moved = kept[..., 1:] @ carried
    answer = (q @ k.mT) * moved[..., 1:] * theta[..., None, :]
    output = kept[..., :1] * (q @ memory) + moved[..., :1] * (q @ momentum) - answer @ error
    learned = lambda weights: (k * (weights[..., -1, 1:] * theta)[..., None]).mT @ error
    last = kept[..., -1:, :1] * memory + moved[..., -1:, :1] * momentum - learned(moved)
    return output, (last, carried[..., -1:, :1] * momentum - learned(carried))


def _products(x):
    """Products of the factors after j up to i, for j = -1, 0, …: 0 where j > i."""
    size = x.shape[-1]
    after = torch.arange(size, device=x.device)[:, None] > torch.arange(-1, size, device=x.device)
    return torch.where(after, x[..., None], 1.0).cumprod(-2).tril(1)


def _wide(q, k, v, alpha, eta, theta, S0):
    per_token = {"q": (q, "B T H K"), "k": (k, "B T H K"), "v": (v, "B T H V")}
    per_token |= {"alpha": (alpha, ROW), "eta": (eta, ROW), "theta": (theta, ROW)}
    return wide(per_token, S0, lambda n: [(n["B"], n["H"], n["K"], n["V"])] * 2)
