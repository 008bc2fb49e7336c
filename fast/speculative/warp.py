"""From logits to the law that tokens are drawn from, on any leading axes: `(..., V)` in, float32 out.

Every setting is a number for all rows or a tensor of one value per row (shape `(...)`), so one batch serves requests of different
settings. Ties go to the lowest id. What the spec calls an error, a row without a finite greatest logit, becomes a row of NaN, and
`chain.verify` draws -1 from it. Top-k and top-p sort; top-k at 0, top-p at 1 and min-p at 0, given as numbers, cost nothing.
"""

import torch

from twofold.fast import checks

__all__ = ["pipeline", "along", "temperature", "top_k", "top_p", "min_p", "penalize"]


def pipeline(logits, counts=None, mask=None, T=1, k=0, mass=1, ratio=0, **penalties):
    """Bias and penalties, mask, temperature and softmax, top-k, top-p, min-p, in this order; `mask` is True where a token is allowed."""
    _check(logits=logits, counts=counts, mask=mask)
    counts = torch.zeros_like(logits, dtype=torch.int64) if counts is None else counts
    logits = penalize(logits, counts, **penalties)
    logits = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
    return min_p(top_p(top_k(temperature(logits, T), k), mass), ratio)


def along(logits, draft, counts=None, masks=None, **settings):
    """`pipeline` at every position of drafted chains, bonus row included.

    Logits and masks are `(B, gamma + 1, V)`, draft `(B, gamma)`, counts `(B, V)`.
    Position i counts the first i draft tokens as emitted. Ids outside the vocabulary (padding) count nowhere. Settings per row have
    shape `(B, gamma + 1)`.
    """
    checks.shape(logits=(logits, "B rows V"), draft=(draft, "B gamma"))
    if logits.shape[1] != draft.shape[1] + 1:
        raise ValueError(f"logits must have gamma + 1 = {draft.shape[1] + 1} rows per request, not {logits.shape[1]}")
    ids = torch.arange(logits.shape[2], device=logits.device)
    drafted = (draft[:, :, None] == ids).long().cumsum(1)  # (B, gamma, V)
    drafted = torch.cat([torch.zeros_like(logits[:, :1], dtype=torch.int64), drafted], 1)
    return pipeline(logits, drafted if counts is None else drafted + counts[:, None], masks, **settings)


def temperature(logits, T):
    """Softmax of logits / T; where T is 0, all mass on the first greatest logit."""
    _check(logits=logits)
    _number("T", T, 0, torch.inf)
    logits = logits.float()
    greatest, T = logits.amax(-1, keepdim=True), _per_row(T, logits)
    greedy = torch.arange(logits.shape[-1], device=logits.device) == logits.argmax(-1, keepdim=True)
    soft = torch.softmax((logits - greatest) / torch.where(T > 0, T, 1), -1)
    return torch.where(torch.isfinite(greatest), torch.where(T > 0, soft, greedy.float()), torch.nan)


def top_k(p, k):
    """The k likeliest tokens, renormalized; 0 keeps all."""
    _check(p=p)
    _number("k", k, 0, torch.inf)
    if not isinstance(k, torch.Tensor) and k == 0:
        return p
    k = _per_row(k, p)
    return _kept(p, (_rank(p)[1] < k) | (k == 0))


def top_p(p, mass):
    """The shortest list of likeliest tokens whose mass reaches `mass`, renormalized; 1 keeps all, and at least one stays."""
    _check(p=p)
    _number("mass", mass, 0, torch.inf)
    if not isinstance(mass, torch.Tensor) and mass >= 1:
        return p
    mass = _per_row(mass, p)
    ordered, rank = _rank(p)
    short = (ordered.cumsum(-1) < mass).sum(-1, keepdim=True)  # the crossing token is the last one kept
    return _kept(p, (rank <= short) | (mass >= 1))


def min_p(p, ratio):
    """The tokens at least `ratio` times as likely as the likeliest, renormalized; 0 keeps all."""
    _check(p=p)
    _number("ratio", ratio, 0, 1)
    if not isinstance(ratio, torch.Tensor) and ratio == 0:
        return p
    return _kept(p, p >= _per_row(ratio, p) * p.amax(-1, keepdim=True))


def penalize(logits, counts, repetition=1, presence=0, frequency=0, bias=None):
    """Logits after bias (added first), repetition penalty, then presence and frequency penalties, float32."""
    _check(logits=logits, counts=counts, bias=bias)
    logits, emitted = logits.float(), counts > 0
    repetition, presence, frequency = (_per_row(x, logits) for x in (repetition, presence, frequency))
    logits = logits if bias is None else logits + bias
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    return torch.where(emitted, repeated, logits) - presence * emitted - frequency * counts


def _rank(p):
    """The row in descending order, equals by ascending id, and each token's place in it."""
    ordered, ids = p.sort(dim=-1, descending=True, stable=True)
    places = torch.arange(p.shape[-1], device=p.device).expand_as(ids)
    return ordered, torch.empty_like(ids).scatter_(-1, ids, places)


def _kept(p, keep):
    kept = torch.where(keep, p, 0)
    return kept / kept.sum(-1, keepdim=True)


def _per_row(setting, rows):
    if not isinstance(setting, torch.Tensor):
        return torch.tensor(setting, dtype=torch.float32, device=rows.device)
    if setting.ndim and setting.shape != rows.shape[:-1]:
        raise ValueError(f"a setting must be a number or have one value per row, shape {tuple(rows.shape[:-1])}, not {setting.shape}")
    return setting.to(rows.device)[..., None]


def _number(name, setting, low, high):
    if not isinstance(setting, torch.Tensor) and not low <= setting <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], not {setting}")


def _check(**tensors):
    (first, rows), *rest = tensors.items()
    if not isinstance(rows, torch.Tensor) or not rows.is_floating_point():
        given = str(rows.dtype).removeprefix("torch.") if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise TypeError(f"{first} must be a floating-point tensor, not {given}")
    if rows.ndim == 0 or rows.shape[-1] == 0:
        raise ValueError(f"{first} must have shape (..., V) with V at least 1, not {tuple(rows.shape)}")
    for name, tensor in rest:
        sizes = [] if tensor is None else list(zip(reversed(tensor.shape), reversed(rows.shape)))
        if tensor is not None and not (0 < tensor.ndim <= rows.ndim and all(size in (1, whole) for size, whole in sizes)):
            raise ValueError(f"{name} must broadcast to {first}, shape {tuple(rows.shape)}, not {tuple(tensor.shape)}")
        if name == "mask" and tensor is not None:
            checks.dtypes(torch.bool, mask=tensor)
