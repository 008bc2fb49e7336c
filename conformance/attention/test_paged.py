"""PagedAttention: where the pages lie changes no bit, and what no sequence owns is never read."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention.decoding import Decoding, decodings, pools
from twofold.conformance.attention.problems import visible
from twofold.conformance.big_tensor import far_apart
from twofold.conformance.compare import agree, exactly
from twofold.spec.attention import dense, paged

pages = st.sampled_from([1, 8, 16, 48, 64, 256])
groups = [(1, 1), (3, 1), (4, 2)]


def run(fast, problem, page, seed=0, layout="contiguous", **more):
    (q, _, _), (stored, table) = problem.tensors(layout), pools([problem.k, problem.v], problem.lengths, page, problem.dtype, seed, layout)
    return fast.attention(q, *stored, table, problem.length, **problem.keywords, **more)


@given(decodings(dtypes=("float64",), rows=(1, 3)), pages, inputs.seeds)
def test_pages_are_rows_in_another_order(problem, page, seed):
    """Law of the spec: gathered through the table the tokens are those of the sequence, and its attention is dense attention over them."""
    (k, v), table = pools([problem.k, problem.v], problem.lengths, page, "float64", seed)
    k, v, table = (inputs.array(x)[..., 0, :] if x.ndim == 4 else inputs.array(x) for x in (k, v, table))
    for b, length in enumerate(problem.lengths):
        q, keys, values = problem.q[b, :, 0], problem.k[b, :length, 0], problem.v[b, :length, 0]
        exactly(paged.gather(k, table[b], length), keys, "gathered keys")
        options = {"softcap": problem.options["softcap"], "sink": None if problem.sink is None else float(problem.sink[0])}
        for mask in (None, problem.mask(b)):
            seen = visible(len(q), length, causal=True) if mask is None else mask
            actual = paged.attention(q, k, v, table[b], length, mask=mask, **options)
            for x, y in zip(actual, dense.attention(q, keys, values, mask=seen, **options), strict=True):
                exactly(x, y, "attention")


@given(decodings(heads=[(1, 1), (7, 1), (6, 2)]), pages, inputs.seeds, st.sampled_from([16, 512]))
@example(Decoding(np.ones((1, 1, 1, 16)), np.ones((1, 50, 1, 16)), np.ones((1, 50, 1, 16)), [50], None, "bfloat16",
                  {"causal": False, "window": None, "softcap": None}), 48, 0, 512)  # fmt: skip
def test_attention_agrees_with_the_definition(fast, problem, page, seed, size):
    """Tails of pages and free blocks are NaN, table entries behind the last token name blocks that do not exist."""
    o, lse = run(fast, problem, page, seed, size=size)
    for b, h, h_kv in problem.heads:
        expected = problem.expected(b, h, h_kv)
        agree(o[b, :, h], expected[0], "output")
        agree(lse[b, h], expected[1], "log-sum-exp")


@given(decodings(dtypes=("float32", "bfloat16"), heads=groups), pages, st.lists(inputs.seeds, min_size=2, max_size=2), inputs.layouts)
def test_relocation_changes_no_bit(fast, problem, page, seeds, layout):
    """The same pages somewhere else, in tensors of other strides."""
    for x, y in zip(run(fast, problem, page, seeds[0]), run(fast, problem, page, seeds[1], layout), strict=True):
        exactly(x, y, f"relocated, {layout}")


@given(st.sampled_from([1, 8, 16, 48]), st.sampled_from([1, 2, 3]), inputs.seeds)
def test_shared_blocks_are_copies(fast, page, shared, seed):
    """Two sequences whose tables name the same blocks, or blocks with the same content: the same bits."""
    q, k, v = inputs.values("normal", [(2, 2, 3, 16), (2, 4 * page, 1, 16), (2, 4 * page, 1, 16)], seed, "float32")
    for x in (k, v):
        x[1, : shared * page] = x[0, : shared * page]
    lengths = [4 * page, shared * page + 1]
    (k_pool, v_pool), table = pools([k, v], lengths, page, "float32", seed)
    copied = fast.attention(inputs.tensor(q, "float32"), k_pool, v_pool, table, inputs.tensor(np.array(lengths)))
    for pool in (k_pool, v_pool):
        pool[table[1, :shared].long()] = torch.nan
    table[1, :shared] = table[0, :shared]
    aliased = fast.attention(inputs.tensor(q, "float32"), k_pool, v_pool, table, inputs.tensor(np.array(lengths)))
    for x, y in zip(aliased, copied, strict=True):
        exactly(x, y, "aliased")


@given(
    st.sampled_from([1, 7, 16, 17, 33, 50]),
    st.sampled_from([1, 2, 5]),
    pages,
    inputs.seeds,
    st.sampled_from([None, (5, None), (20, 3)]),
    st.booleans(),
)
@example(50, 2, 8, 0, (20, 3), True)
@example(50, 1, 48, 0, None, False)
def test_mask_tomography(fast, length, n, page, seed, window, causal):
    """q = 0 and one-hot values show which tokens a row read through its table, each exactly once."""
    seen = visible(n, length, causal, window)
    count = seen.sum(1)  # (N,)
    q, k, v = np.zeros((1, n, 3, 16)), np.ones((1, length, 1, 16)), np.eye(length, 64)[None, :, None]
    (k_pool, v_pool), table = pools([k, v], [length], page, "float32", seed)
    used = inputs.tensor(np.array([length]))
    o, lse = fast.attention(inputs.tensor(q, "float32"), k_pool, v_pool, table, used, causal=causal, window=window, size=32)
    for h in range(3):
        exactly(np.rint(inputs.array(o[0, :, h]) * count[:, None])[:, :length], seen.astype(float), "tokens read")
        exactly(np.rint(np.exp(inputs.array(lse[0, h]))), count.astype(float), "number of tokens")


@given(st.sampled_from([1, 8, 16, 48]), inputs.seeds, st.integers(1, 20))
def test_blocks_in_front_of_the_window_may_be_gone(fast, page, seed, left):
    """An engine frees them and points their entries anywhere: not one bit changes."""
    length = 150
    q, k, v = inputs.values("normal", [(1, 2, 3, 16), (1, length, 1, 16), (1, length, 1, 16)], seed, "float32")
    (k_pool, v_pool), table = pools([k, v], [length], page, "float32", seed)
    arguments = inputs.tensor(q, "float32"), k_pool, v_pool, table, inputs.tensor(np.array([length]))
    before = fast.attention(*arguments, window=(left, 0), size=32)
    gone = (length - 2 - left) // page
    k_pool[table[0, :gone].long()], v_pool[table[0, :gone].long()] = torch.nan, torch.nan
    table[0, :gone] = table[0, 0]
    if gone:
        for x, y in zip(fast.attention(*arguments, window=(left, 0), size=32), before, strict=True):
            exactly(x, y, "with freed blocks")


@given(decodings(dtypes=("float32",), heads=groups), pages, inputs.seeds)
def test_gather_returns_the_tokens(fast, problem, page, seed):
    """Every sequence in order, and zeros behind its end, though its pages hold NaN there; any number of axes per token."""
    (k_pool, _), table = pools([problem.k, problem.v], problem.lengths, page, "float32", seed)
    rows = fast.gather(k_pool, table, problem.length)
    flat = fast.gather(k_pool.flatten(2), table, problem.length)
    exactly(flat, rows.flatten(2), "tokens with one axis")
    for b, length in enumerate(problem.lengths):
        exactly(rows[b, :length], problem.k[b, :length], "tokens")
        exactly(rows[b, length:], np.zeros(rows[b, length:].shape), "behind the end")


@pytest.mark.parametrize("page", [1, 16])
def test_pools_beyond_two_billion_elements(fast, page):
    """Blocks that lie 2^30 elements apart: the index of a block times its stride does not fit 32 bits."""
    q, k, v = inputs.values("normal", [(1, 2, 3, 16), (3, page, 1, 16), (3, page, 1, 16)], 5, "bfloat16")
    q, k, v = (inputs.tensor(x, "bfloat16", device="cpu") for x in (q, k, v))
    table, length = torch.tensor([[2, 0, 1]], dtype=torch.int32), torch.tensor([3 * page])
    far = fast.attention(q, far_apart(k), far_apart(v), table, length)
    for x, y in zip(far, fast.attention(q, k, v, table, length), strict=True):
        exactly(x, y, "far apart")


def test_nothing_to_attend(fast):
    """Empty sequences, tables without columns, no rows, no sequences."""
    pool = torch.full((3, 16, 1, 16), torch.nan, device=inputs.target.device())
    for b, n, columns in ((2, 1, 2), (2, 3, 0), (2, 0, 2), (0, 1, 2)):
        q, table = torch.ones(b, n, 2, 16, device=pool.device), torch.full((b, columns), 99, device=pool.device)
        o, lse = fast.attention(q, pool, pool, table, torch.zeros(b, dtype=torch.int32, device=pool.device))
        exactly(o, np.zeros((b, n, 2, 16)), "output")
        exactly(lse, np.full((b, 2, n), -np.inf), "log-sum-exp")
