"""What the models of this family share: tokens in the computing format, the start state, and packed sequences one after the other."""

import torch

from twofold.fast import checks

__all__ = ["by_sequence", "wide"]


def wide(per_token, S0, start):
    """Checked tokens and states in float32, or float64 where q is.

    `per_token` maps names to (tensor, axes); `start` gives the states' shapes for the sizes of those axes. q, k, v share one dtype.
    """
    sizes = checks.shape(**per_token)
    tensors = {name: x for name, (x, _) in per_token.items()}
    checks.same(q=tensors["q"], k=tensors["k"], v=tensors["v"])
    checks.same_device(**tensors)
    format = torch.float64 if tensors["q"].dtype == torch.float64 else torch.float32
    shapes = start(sizes)
    if S0 is None:
        S0 = tuple(tensors["v"].new_zeros(shape, dtype=format) for shape in shapes)
    if len(S0) != len(shapes):
        raise ValueError(f"S0 must be a tuple of {len(shapes)} tensors, not of {len(S0)}")
    for i, (state, shape) in enumerate(zip(S0, shapes, strict=True)):
        checks.shape(**{f"S0[{i}]": (state, " ".join(map(str, shape)))})
        checks.dtypes(format, **{f"S0[{i}]": state})
    return [x.to(format) for x in tensors.values()], tuple(S0)


def by_sequence(run, tokens, S0, cu_seqlens):
    """`run(tokens, S0)` on each packed sequence, B = 1; states are (N, …). Reads `cu_seqlens`, which a GPU has to be waited for."""
    checks.shape(cu_seqlens=(cu_seqlens, "boundaries"))
    checks.dtypes(torch.int32, torch.int64, cu_seqlens=cu_seqlens)
    ends, total = cu_seqlens.tolist(), tokens[0].shape[1]
    if tokens[0].shape[0] != 1 or ends[:1] != [0] or ends[-1] != total or ends != sorted(ends):
        raise ValueError(f"cu_seqlens must rise from 0 to the {total} tokens of a batch of one, not be {ends}")
    outputs, states = [], []
    for n, (begin, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        own = None if S0 is None else tuple(state[n : n + 1] for state in S0)
        output, state = run([x[:, begin:end] for x in tokens], own)
        outputs.append(output)
        states.append(state)
    if not states:
        raise ValueError("cu_seqlens must name at least one sequence")
    return torch.cat(outputs, 1), tuple(torch.cat(parts) for parts in zip(*states, strict=True))
