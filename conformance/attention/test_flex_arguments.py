"""Flexible attention: hard cases, what a function may say, and how a wrong one is told."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.compare import exactly
from twofold.fast.kernels.attention_mods import evaluate, trace

causal = lambda b, h, i, j: j <= i


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(target.device())


def arguments(t_q=37, t_k=45):
    return [draw(2, t_q, 4, 16), draw(2, t_k, 2, 16, seed=1), draw(2, t_k, 2, 8, seed=2)]


def test_functions_know_their_batch_and_their_head(fast):
    """Tables with an axis for each: every sequence and head has the result of its own table."""
    q, k, v = arguments()
    seen = draw(2, 4, 37, 45, seed=3) < 0.3
    seen[0, 0] = True  # blocks that are full here are so nowhere else
    bias = draw(4, 45, seed=4)
    mask, score = (lambda b, h, i, j: seen[b, h, i, j]), (lambda s, b, h, i, j: s + bias[h, j])
    blocks = fast.block_mask(mask, 37, 45, 16, 32, batch=2, heads=4, device=q.device)
    for form, more in ((fast.attention, ()), (fast.sparse, (blocks, 16, 32))):
        o, lse = form(q, k, v, mask, score, *more)
        for b, h in np.ndindex(2, 4):
            own, row = seen[b, h].contiguous(), bias[h].contiguous()
            single = [x[b : b + 1, :, n : n + 1] for x, n in ((q, h), (k, h // 2), (v, h // 2))]
            lists = (fast.block_mask(lambda b, h, i, j, own=own: own[i, j], 37, 45, 16, 32, device=q.device), 16, 32) if more else ()
            alone = form(*single, lambda b, h, i, j, own=own: own[i, j], lambda s, b, h, i, j, row=row: s + row[j], *lists)
            for x, y in ((o[b, :, h], alone[0][0, :, 0]), (lse[b, h], alone[1][0, 0])):  # full blocks come first, so lists matter
                assert torch.allclose(x, y, rtol=2**-18, atol=2**-18), (b, h)


def test_a_nan_under_the_mask_does_not_leak(fast):
    """A score that is not a number where nobody looks: results and gradients as without it."""
    poison = torch.full((45, 45), torch.nan, device=target.device()).triu(1)
    qkv = [x.requires_grad_() for x in arguments(45, 45)]
    blocks = fast.block_mask(causal, 45, 45, 16, 16, device=poison.device), 16, 16
    for form, more in ((fast.attention, ()), (fast.sparse, blocks)):
        plain = form(*qkv, causal, None, *more)
        for score in (lambda s, b, h, i, j: s + poison[i, j], lambda s, b, h, i, j: s * (1 + poison[i, j])):  # its slope is one, too
            poisoned = form(*qkv, causal, score, *more)
            for x, y in zip(poisoned, plain, strict=True):
                assert torch.isfinite(x).all() and torch.allclose(x, y, rtol=2**-18, atol=2**-18)
            for x in torch.autograd.grad(poisoned[0].sum() + poisoned[1].sum(), qkv):
                assert torch.isfinite(x).all()


def test_lists_of_a_longer_problem_serve_a_shorter_one(fast):
    """Its last block is full in the long one, and has an edge: every key that is seen is read once, forward and backward."""
    window = lambda b, h, i, j: (j - i < 30) & (i - j < 30)
    long = fast.block_mask(window, 90, 90, 16, 16, device=target.device())
    seen = np.array([[window(0, 0, i, j) for j in range(37)] for i in range(37)])
    q, k = (torch.zeros(1, 37, 1, 16, device=target.device()) for _ in range(2))
    v = torch.eye(37, device=q.device)[None, :, None].requires_grad_()
    o, lse = fast.sparse(q, k, v, window, None, long, 16, 16)
    count = seen.sum(1)
    exactly(np.rint(inputs.array(o[0, :, 0].detach()) * count[:, None]), seen.astype(float), "keys read")
    exactly(np.rint(np.exp(inputs.array(lse[0, 0].detach()))), count.astype(float), "number of keys")
    (dv,) = torch.autograd.grad(o, v, torch.eye(37, device=q.device)[None, :, None])
    exactly(np.rint(inputs.array(dv[0, :, 0]) * count), seen.T.astype(float), "rows that read keys")


def test_no_mask_no_rows_no_keys(fast):
    q, k, v = arguments()
    for t_q, t_k in ((0, 45), (37, 0), (0, 0)):
        few = [x.requires_grad_() for x in (q[:, :t_q], k[:, :t_k], v[:, :t_k])]
        blocks = fast.block_mask(causal, t_q, t_k, 16, 16, device=q.device), 16, 16
        for form, more in ((fast.attention, ()), (fast.sparse, blocks)):
            o, lse = form(*few, causal, None, *more)
            exactly(o.detach(), np.zeros((2, t_q, 4, 8)), "output")
            exactly(lse.detach(), np.full((2, 4, t_q), -np.inf), "log-sum-exp")
            for x, like in zip(torch.autograd.grad(o.sum(), few), few, strict=True):
                exactly(x, np.zeros(like.shape), "gradient")


EXPRESSIONS = [
    lambda i, j: i + j - 3, lambda i, j: 7 - i * j, lambda i, j: (i - j) // 5, lambda i, j: (i - j) % 5,
    lambda i, j: (j - i) // 3 + 100 // (i + 1),
    lambda i, j: 17 % (j + 2), lambda i, j: abs(i - j), lambda i, j: -i + j * 2,
    lambda i, j: (i < j) | (i == 3) & ~(j >= 5), lambda i, j: (i != j) ^ (j > 2), lambda i, j: (i <= 4) & True,
]  # fmt: skip


@pytest.mark.parametrize("n", range(len(EXPRESSIONS)))
def test_traced_text_computes_what_python_computes(n):
    """Integers of both signs, floor division and remainder among them."""
    f = EXPRESSIONS[n]
    i, j = torch.arange(-6, 12)[:, None], torch.arange(0, 9)
    i = i[7:] if n == 4 else i
    mods = trace(lambda b, h, i, j: f(i, j), None)
    value = evaluate(mods.mask, mods.tables, mods.numbers, i=i, j=j)
    exactly(value.expand(len(i), 9).long(), np.array([[int(f(int(a), int(c))) for c in j] for a in i.flatten()]), "values")


@given(inputs.seeds)
def test_the_slope_is_the_derivative(seed):
    """Of every operator that a score may pass through, against autograd in float64."""
    table = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    s = torch.randn(20, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).requires_grad_()
    j = torch.arange(20) % 5
    scores = [
        lambda s, j: 3 * s - s * s / 4 + table[j], lambda s, j: -s * table[j] * (s + 1), lambda s, j: 1 / (4 + s * s),
        lambda s, j: abs(s) * s,
        lambda s, j: (2 - s) / (5 + abs(s)) - (s - 1) * (s > 0),
    ]  # fmt: skip
    for n, score in enumerate(scores):
        mods = trace(None, lambda s, b, h, i, j, f=score: f(s, j))
        value = evaluate(mods.score, mods.tables, mods.numbers, s=s, j=j)
        exactly(value.detach(), score(s, j).detach(), f"score {n}")
        (slope,) = torch.autograd.grad(value.sum(), s)
        got = evaluate(mods.slope, mods.tables, mods.numbers, s=s.detach(), j=j)
        assert torch.allclose(got.expand(20), slope, rtol=1e-12, atol=1e-12), f"slope {n}"


table3 = torch.zeros(3, 3)
BAD = [
    (TypeError, "mask_mod", lambda b, h, i, j: True),
    (TypeError, "&", lambda b, h, i, j: i <= j and j < 5),
    (TypeError, "&", lambda b, h, i, j: 0 < j < 5),
    (TypeError, "operators", lambda b, h, i, j: torch.sin(i)),
    (TypeError, "operators", lambda b, h, i, j: i.float() < 3),
    (TypeError, "indexed by 2", lambda b, h, i, j: table3[i] > 0),
    (TypeError, "numbers", lambda b, h, i, j: i < "3"),
]


@pytest.mark.parametrize(("error", "message", "mask"), BAD)
def test_a_function_that_cannot_be_traced_says_why(fast, error, message, mask):
    with pytest.raises(error, match=message):
        fast.attention(*arguments(), mask)


def test_wrong_arguments_are_named(fast):
    q, k, v = arguments()
    blocks = fast.block_mask(causal, 37, 45, 16, 32, device=q.device)
    for name, call in (
        ("bq", lambda: fast.sparse(q, k, v, causal, None, blocks, 32, 32)),
        ("bk", lambda: fast.sparse(q, k, v, causal, None, fast.block_mask(causal, 37, 45, 16, 8, device=q.device), 16, 8)),
        ("rows", lambda: fast.sparse(draw(2, 60, 4, 16), k, v, causal, None, blocks, 16, 32)),
        ("keys", lambda: fast.sparse(q, draw(2, 70, 2, 16), draw(2, 70, 2, 8), causal, None, blocks, 16, 32)),
        ("nq", lambda: fast.block_mask(causal, -1, 3, 16, 16)),
        ("heads", lambda: fast.block_mask(causal, 3, 3, 16, 16, heads=0)),
        ("scale", lambda: fast.attention(q, k, v, causal, scale=0.0)),
        ("k", lambda: fast.attention(q, k[..., :8], v, causal)),
    ):
        with pytest.raises(ValueError, match=name):
            call()


@pytest.mark.skipif(target.target() != target.OURS, reason="our operators")
@given(st.booleans())
def test_operators_are_registered_in_full(fast, listed):
    fast.attention  # noqa: B018  the module that registers them
    q, k, v = (x.requires_grad_() for x in arguments(17, 33))
    seen, slope = draw(17, 33, seed=5) < 0.5, draw(4, seed=6)
    mods = trace(lambda b, h, i, j: seen[i, j], lambda s, b, h, i, j: s - slope[h] * (i - j) * 0.5)
    numbers, whole = [float(x) for x in mods.numbers], [n for n, x in enumerate(mods.numbers) if isinstance(x, int)]
    blocks = fast.block_mask(lambda b, h, i, j: seen[i, j], 17, 33, 16, 16, device=q.device)
    more = ([16, 16], [*blocks.lines, *blocks.columns]) if listed else ([], [])
    texts = mods.mask, mods.score, mods.slope, list(mods.tables), numbers, whole
    torch.library.opcheck(torch.ops.twofold.tiled_attention_forward, (q, k, v, None, None, None, 0.25, None, [], *texts, *more))
