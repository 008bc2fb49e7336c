"""KIVI: what queries find in a quantized cache, old tokens as codes and new ones as they are."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, poison, target
from twofold.conformance.attention.test_kivi import batch, padded
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import kivi

FORMATS = [(2, 4, 4), (4, 2, 8), (3, 3, 6)]  # bits, group, residual
HEADS = [(1, 1), (2, 1), (4, 2)]


def caches(fast, seed, form, lengths, kv_heads, d, dv, dtype):
    """One cache of all requests, and the definition of each request and head; and two more tokens for each."""
    total = [n + 2 for n in lengths]
    k, v, _, _ = batch(seed, total, kv_heads, d, dv, *form[:2])
    cache = fast.Cache(*form)
    cache.prefill(*(padded(x, lengths, 0, max(lengths), dtype) for x in (k, v)), lengths=lengths)
    specs = {}
    for b, n in enumerate(lengths):
        for h in range(kv_heads):
            specs[b, h] = kivi.Cache(*form)
            specs[b, h].prefill(k[b, :n, h], v[b, :n, h])
    return cache, specs, [[padded(x, [1] * len(lengths), np.add(lengths, i), 1, dtype) for x in (k, v)] for i in range(2)]


@given(inputs.seeds, st.sampled_from(FORMATS), st.lists(st.integers(0, 24), min_size=1, max_size=2), st.sampled_from(HEADS),
       st.sampled_from([(16, 24), (5, 3)]), inputs.dtypes(), inputs.regimes)  # fmt: skip
@example(0, (2, 4, 4), [4, 33], (2, 1), (16, 24), "float32", "normal")
@example(1, (4, 2, 8), [7, 8], (4, 2), (5, 3), "bfloat16", "spiked")
@example(2, (3, 3, 6), [6, 0], (1, 1), (16, 24), "float16", "large")
def test_a_new_token_attends_before_it_is_quantized(fast, seed, form, lengths, heads, widths, dtype, regime):
    """Two tokens one after the other, and then queries that bring no token: each within the bound of the definition."""
    cache, specs, tokens = caches(fast, seed, form, lengths, heads[1], *widths, dtype)
    (queries,) = inputs.values(regime, [(3, len(lengths), 1, heads[0], widths[0])], seed + 1, dtype)
    options = {"precision": Precision(dtype), "outputs": (dtype, "float32")}
    for q, new in zip(queries, [*tokens, []], strict=True):
        with poison.poisoned_empty():
            o, lse = (cache.append if new else cache.attend)(inputs.tensor(q, dtype), *new)
        for b in range(len(lengths)):
            for h in range(heads[0]):
                own = h // (heads[0] // heads[1])
                token = [inputs.array(x[b, :, own]) for x in new]
                expected = bounded(lambda x, spec, token: _attended(spec, x, token), q[b, :, h], specs[b, own], token, **options)
                agree(o[b, :, h], expected[0], "output")
                agree(lse[b, h], expected[1], "log-sum-exp")
            for own in range(heads[1] if new else 0):
                specs[b, own].prefill(*(inputs.array(x[b, :, own]) for x in new))


def _attended(spec, q, token):
    """On a copy, which leaves the original without the token."""
    return copy.copy(spec).append(q, *token) if token else spec.attend(q)


@given(st.lists(st.integers(0, 16), min_size=1, max_size=2), st.sampled_from(FORMATS), st.sampled_from(HEADS))
@example([20, 3], (2, 4, 4), (4, 2))
def test_key_tomography(fast, lengths, form, heads):
    """q = 0 makes every logit 0; one-hot values, exact in their grid, show that each token of a request was read once, by its heads."""
    bits, group, _ = form
    longest, width = max(lengths), 16
    queries = torch.zeros(len(lengths), 1, heads[0], 8, device=target.device())
    for start in range(0, longest, width):
        hot = np.zeros((len(lengths), longest, heads[1], width))
        for h in range(heads[1]):
            count = min(width, longest - start)
            hot[:, start : start + count, h, :count] = (2**bits - 1) * (h + 1) * np.eye(count)
        cache = fast.Cache(*form)
        cache.prefill(padded(np.ones((*hot.shape[:3], 8)), lengths, 0, longest, "float32"), padded(hot, lengths, 0, longest, "float32"),
                      lengths=lengths)  # fmt: skip
        o, lse = (inputs.array(x) for x in cache.attend(queries))
        for b, n in enumerate(lengths):
            exactly(np.rint(np.exp(lse[b])), np.full((heads[0], 1), float(n)), "number of keys")
            for h in range(heads[0]):
                owner = h // (heads[0] // heads[1]) + 1
                read = np.rint(o[b, 0, h] * n / (2**bits - 1))
                exactly(read, owner * (start + np.arange(width) < n).astype(float), f"tokens of request {b} read by head {h}")


def test_requests_do_not_touch_each_other(fast):
    """A request's bits are the same alone, beside others, in another order, and beside requests of NaN."""
    form, lengths = (2, 4, 8), [13, 8, 18]
    k, v, _, _ = batch(0, [18, 18, 18], 1, 16, 16, *form[:2])
    (q,) = inputs.values("normal", [(3, 1, 2, 16)], 1)

    def run(rows, numbers=(k, v)):
        cache, own = fast.Cache(*form), [lengths[b] for b in rows]
        cache.prefill(*(inputs.tensor(x[rows], "float32") for x in numbers), lengths=own)
        return cache.append(*(inputs.tensor(x[rows], "float32") for x in (q, k[:, :1], v[:, :1])))

    spoiled = [np.where(np.arange(3)[:, None, None, None] == 1, np.nan, x) for x in (k, v)]
    whole = run([0, 1, 2])
    for rows, other in (([0], run([0])), ([2, 1, 0], run([2, 1, 0])), ([0, 1, 2], run([0, 1, 2], spoiled))):
        for place, b in enumerate(rows):
            if len(rows) < 3 or rows[0] == 2 or b != 1:
                for x, y in zip(other, whole, strict=True):
                    exactly(x[place], y[b], f"request {b} in {rows}")


@pytest.mark.parametrize(("layout", "form", "dtype"), [("transposed", (2, 4, 4), "float32"), ("sliced", (3, 3, 6), "bfloat16"),
                                                       ("offset", (4, 2, 8), "float16")])  # fmt: skip
def test_strides_do_not_matter_and_tensors_are_left_alone(fast, layout, form, dtype):
    k, v, _, _ = batch(0, [19, 19], 2, 16, 8, *form[:2])
    (q,) = inputs.values("normal", [(2, 1, 2, 16)], 1, dtype)

    def run(layout):
        tensors = [inputs.tensor(x, dtype, layout) for x in (k[:, :18], v[:, :18], q, k[:, 18:], v[:, 18:])]
        cache = fast.Cache(*form)
        cache.prefill(*tensors[:2])
        found = [*cache.append(*tensors[2:]), *cache.attend(tensors[2])]
        for x, y in zip(tensors, (k[:, :18], v[:, :18], q, k[:, 18:], v[:, 18:]), strict=True):
            exactly(x, y, "input")
        return found

    for x, y in zip(run(layout), run("contiguous"), strict=True):
        exactly(x, y, layout)


def test_nothing_to_attend(fast):
    """No requests, no tokens, no queries, and a first token that is appended to nothing."""
    x = torch.ones(2, 0, 1, 16, device=target.device())
    cache = fast.Cache(2, 4, 4)
    cache.prefill(x, x)
    o, lse = cache.attend(torch.ones(2, 3, 2, 16, device=x.device))
    exactly(o, np.zeros((2, 3, 2, 16)))
    exactly(lse, np.full((2, 2, 3), -np.inf))
    assert [tuple(part.shape) for part in cache.contents()] == [(2, 0, 1, 16)] * 2
    one = torch.full((2, 1, 1, 16), 2.0, device=x.device)
    for fresh in (cache, fast.Cache(2, 4, 4)):
        o, lse = fresh.append(one, one, one)
        exactly(o, np.full((2, 1, 1, 16), 2.0))
        exactly(lse, np.full((2, 1, 1), 16.0))
    assert cache.attend(one[:, :0])[0].shape == (2, 0, 1, 16)
    none = fast.Cache(2, 4, 4)
    none.prefill(one[:0], one[:0])
    assert none.append(one[:0], one[:0], one[:0])[0].shape == (0, 1, 1, 16)
