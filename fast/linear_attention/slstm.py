"""sLSTM: an LSTM whose gates look at its own output, with an exponential input gate and a normalizer (arXiv:2405.04517).

Layout: the tokens' own parts of candidates and gates z, i, f, o `(B, T, H, D)`, weights of the last output R `(H, 4, D, D)`, in the order
z, i, f, o; a state is a quadruple of `(B, H, D)` in float32: cell, normalizer, last output, log of the unit of both, -inf at the start.

Gates need the last output, so tokens wait for each other and nothing is gained from chunks. This is plain PyTorch everywhere, one product
with all four matrices per token; there is no kernel. Everything is computed in float32, the last output included; outputs are rounded once,
to the format of z. To autograd the unit is a constant, but for the final state, which is divided by it.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from twofold.fast import checks
from twofold.fast.kernels import running_maximum
from twofold.fast.test_time_training._tokens import by_sequence

__all__ = ["recurrent", "step"]

State = tuple[Tensor, Tensor, Tensor, Tensor]
FLOATS = torch.float32, torch.bfloat16, torch.float16, torch.float64


def recurrent(
    z: Tensor, i: Tensor, f: Tensor, o: Tensor, R: Tensor, exp_forget: bool = False, S0: State | None = None, *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Outputs `(B, T, H, D)` and final state, with gradients for everything, R and S0 included.

    `cu_seqlens` `(N + 1,)`, from 0 to T, packs N sequences along T: B is 1, states are `(N, H, D)`, and an empty sequence returns its S0.
    Packed sequences run one after the other, for which the host reads `cu_seqlens`.
    """
    tokens, weights, start = _checked(z, i, f, o, R, S0, cu_seqlens)
    run = lambda tokens, state: _run(tokens, weights, exp_forget, state)
    h, (c, n, last, m) = run(tokens, start) if cu_seqlens is None else by_sequence(run, tokens, start, cu_seqlens)
    return h.to(z.dtype), (c, n, last, m)


def step(state: State, z: Tensor, i: Tensor, f: Tensor, o: Tensor, R: Tensor, exp_forget: bool = False) -> tuple[Tensor, State]:
    """One token, `(B, H, D)` each: the output in the format of z, and the new state, float32."""
    h, state = recurrent(z[:, None], i[:, None], f[:, None], o[:, None], R, exp_forget, state)
    return h[:, 0], state


def _run(tokens, R, exp_forget, state):
    c, n, h, m = state
    before, outputs = m, [tokens[0][:, :0]]
    for own in zip(*(x.unbind(1) for x in tokens)):
        z, i, f, o = torch.stack(own, -2).add(torch.einsum("bhd,hjde->bhje", h, R)).unbind(-2)
        keep = f if exp_forget else logsigmoid(f)
        m = torch.maximum(keep + m, i)
        unit = m.detach()
        kept, added = (keep + before - unit).exp(), (i - unit).exp()
        c, n, before = kept * c + added * z.tanh(), kept * n + added, unit
        h = o.sigmoid() * (c / n)
        outputs.append(h[:, None])
    one = (running_maximum.known(before) - running_maximum.known(m)).exp()  # gives a state the gradient by its unit
    return torch.cat(outputs, 1), (one * c, one * n, h, m)


def _checked(z, i, f, o, R, S0, cu_seqlens):
    """Tokens and weights in the computing format, and a state."""
    sizes = checks.shape(z=(z, "B T H D"), i=(i, "B T H D"), f=(f, "B T H D"), o=(o, "B T H D"), R=(R, "H 4 D D"))
    checks.dtypes(*FLOATS, z=z, i=i, f=f, o=o, R=R)
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    sequences = sizes["B"] if cu_seqlens is None else checks.shape(cu_seqlens=(cu_seqlens, "edges"))["edges"] - 1
    if S0 is None:
        nothing = torch.zeros((3, sequences, sizes["H"], sizes["D"]), dtype=wide, device=z.device)
        S0 = *nothing, torch.full_like(nothing[0], -torch.inf)
    if len(S0) != 4:
        raise ValueError(f"S0 must be a quadruple, cell, normalizer, output and log of the unit, not {len(S0)} tensors")
    for name, part in zip(("c", "n", "h", "m"), S0, strict=True):
        checks.shape(**{name: (part, f"{sequences} {sizes['H']} {sizes['D']}")})
        checks.dtypes(wide, **{name: part})
    checks.same_device(z=z, i=i, f=f, o=o, R=R, c=S0[0], n=S0[1], h=S0[2], m=S0[3], cu_seqlens=cu_seqlens)
    return [x.to(wide) for x in (z, i, f, o)], R.to(wide), S0
