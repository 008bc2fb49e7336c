"""An 8-bit cache, attended: every byte and every scale is read where its token lies, in rows and in pages, in any layout."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.attention.decoding import Decoding, decodings, pools
from twofold.conformance.attention.test_fp8_kv import CODES
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import fp8_kv

DTYPE = {"e4m3": "float8_e4m3fn", "int8": "int8"}
kinds = st.sampled_from(["e4m3", "int8"])
groups = st.sampled_from([None, 1, 4])
pages = st.sampled_from([None, 4, 16, 48])
heads = [(1, 1), (3, 1), (4, 2)]


def stored(problem, number, tokens):
    """Codes (B, Tk, Hkv, ·) of keys and values and the scale of every token (B, Tk, Hkv), one for `tokens` neighbors."""
    results = []
    for x in (problem.k, problem.v):
        codes, scales = np.zeros_like(x), np.ones(x.shape[:3])
        for b, _, h in problem.heads:
            codes[b, :, h], scale = fp8_kv.quantize(x[b, :, h], tokens, number)
            scales[b, :, h] = inputs.rounded(np.repeat(scale[:, 0], tokens)[: x.shape[1]], "float32")
        results.append((codes, scales))
    return results


def run(fast, problem, number, group, page=None, seed=0, layout="contiguous"):
    """The implementation's result, on rows or on pages in a random order of blocks; with it codes and scales."""
    tokens = group or page or max(problem.k.shape[1], 1)
    pairs = stored(problem, number, tokens)
    q, keywords = problem.tensors(layout)[0], problem.keywords | {"group": group, "length": problem.length}
    if page is None:
        codes = [inputs.tensor(x, DTYPE[number], layout) for x, _ in pairs]
        scales = [inputs.tensor(s[:, ::tokens], "float32", layout) for _, s in pairs]
        return fast.attention(q, *codes, *scales, **keywords), pairs
    codes, table = pools([x for x, _ in pairs], problem.lengths, page, DTYPE[number], seed, layout)
    scales = [x[:, ::tokens] for x in pools([s for _, s in pairs], problem.lengths, page, "float32", seed, layout)[0]]
    return fast.attention(q, *codes, *scales, table=table, **keywords), pairs


@given(decodings(heads=heads), kinds, groups, pages, inputs.seeds, inputs.layouts)
@example(Decoding(np.ones((1, 1, 1, 16)), np.ones((1, 50, 1, 16)), np.ones((1, 50, 1, 16)), [50], None, "bfloat16",
                  {"causal": False, "window": None, "softcap": None}), "e4m3", 4, 16, 0, "contiguous")  # fmt: skip
def test_attention_agrees_with_the_definition(fast, problem, number, group, page, seed, layout):
    """Scales per token, per part of a page, per page, per row; tails of pages and free blocks are NaN, codes and scales alike."""
    (o, lse), pairs = run(fast, problem, number, group, page, seed, layout)
    for b, h, h_kv in problem.heads:
        n = slice(problem.lengths[b])
        arrays = [x[b, n, h_kv] for x, _ in pairs] + [s[b, n, h_kv, None] for _, s in pairs]
        options = {"mask": problem.mask(b), "softcap": problem.options["softcap"]}
        options |= {"sink": None if problem.sink is None else float(problem.sink[h])}
        options |= {"precision": Precision(problem.dtype), "outputs": (problem.dtype, "float32")}
        expected = bounded(fp8_kv.attention, problem.q[b, :, h], *arrays, group=1, **options)
        agree(o[b, :, h], expected[0], "output")
        agree(lse[b, h], expected[1], "log-sum-exp")


@pytest.mark.usefixtures("one_thread")
@given(decodings(("float32", "bfloat16"), rows=(1,), heads=heads, widths=[(16, 16)]), kinds, groups, st.sampled_from([4, 16]),
       inputs.seeds, inputs.layouts)  # fmt: skip
def test_scales_follow_their_page(fast, problem, number, group, page, seed, layout):
    """The same pages somewhere else, in tensors of other strides: the same bits."""
    first, moved = run(fast, problem, number, group, page)[0], run(fast, problem, number, group, page, seed + 1, layout)[0]
    for x, y in zip(moved, first, strict=True):
        exactly(x, y, f"relocated, {layout}")


@given(kinds, groups, pages, st.sampled_from(heads), st.sampled_from([1, 15, 33]))
def test_every_token_is_read_once_with_its_own_scale(fast, number, group, page, heads, n):
    """q = 0 makes every logit 0, and one-hot values under powers of two, another one for every group and head, come out as those."""
    tokens, width = group or page or n, 16
    power = lambda t, h: 2.0 ** ((t // tokens * 3 + h) % 7 - 3)
    for start in range(0, n, width):
        k, v = np.ones((1, n, heads[1], 8)), np.zeros((1, n, heads[1], width))
        for t in range(start, min(start + width, n)):
            v[0, t, :, t - start] = [power(t, h) for h in range(heads[1])]
        scales = np.array([[[power(t, h) for h in range(heads[1])] for t in range(n)]])
        codes = v / scales[..., None]
        q = torch.zeros(1, 1, heads[0], 8, device=target.device())
        length = inputs.tensor(np.array([n]))
        if page is None:
            tensors, more = [inputs.tensor(x, DTYPE[number]) for x in (k, codes)], {}
            parameters = [inputs.tensor(x[:, ::tokens], "float32") for x in (np.ones_like(scales), scales)]
        else:
            tensors, table = pools([k, codes], [n], page, DTYPE[number], 0)
            parameters = [x[:, ::tokens] for x in pools([np.ones_like(scales), scales], [n], page, "float32", 0)[0]]
            more = {"table": table}
        o, lse = fast.attention(q, *tensors, *parameters, group=group, length=length, **more)
        exactly(np.rint(np.exp(inputs.array(lse))), np.full((1, heads[0], 1), float(n)), "number of tokens")
        for h in range(heads[0]):
            expected = v[0, :, h // (heads[0] // heads[1])].sum(0)
            exactly(np.rint(inputs.array(o[0, 0, h]) * n * 8) / 8, expected, f"values of head {h}")


def test_every_byte_is_the_number_it_stands_for(fast):
    """Sixteen requests of one token each, whose value is sixteen of the bytes: signs, subnormals, both NaNs."""
    v = torch.arange(256, dtype=torch.uint8).view(16, 1, 1, 16).view(torch.float8_e4m3fn).to(target.device())
    scale = torch.full((1, 1, 1), 0.5, device=v.device)
    q = torch.zeros(16, 1, 1, 16, device=v.device)
    exactly(fast.attention(q, torch.zeros_like(v), v, scale, scale)[0], CODES.reshape(16, 1, 1, 16) / 2, "e4m3")
    v = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).view(16, 1, 1, 16).to(v.device)
    exactly(fast.attention(q, torch.zeros_like(v), v, scale, scale)[0], np.arange(-128, 128).reshape(16, 1, 1, 16) / 2, "int8")


@given(kinds, st.sampled_from([4, 16]), st.integers(0, 3))
@example("int8", 4, 1)
def test_scales_inside_padded_pages(fast, number, page, padding):
    """A page's bytes: codes, then the scale of every token and head, then padding that makes pages unequal to their content. Views of it
    have the strides that they have."""
    rng, (blocks, h, d) = np.random.default_rng(page), (5, 2, 16)
    codes = rng.integers(-7, 8, (2, blocks, page, h, d)).astype(float)
    scales = 2.0 ** rng.integers(-3, 4, (2, blocks, page, h))
    inside = page * h * d
    raw = torch.full((2, blocks, inside + 4 * page * h + 16 * padding), 0x7F, dtype=torch.uint8, device=target.device())
    seen, parameters = [], []
    for part, x, s in zip(raw, codes, scales, strict=True):
        part[:, :inside] = inputs.tensor(x, DTYPE[number]).view(torch.uint8).view(blocks, -1)
        part[:, inside : inside + 4 * page * h] = inputs.tensor(s, "float32").view(torch.uint8).view(blocks, -1)
        seen.append(part[:, :inside].unflatten(1, (page, h, d)).view(getattr(torch, DTYPE[number])))
        parameters.append(part[:, inside : inside + 4 * page * h].view(torch.float32).unflatten(1, (page, h)))
    q = inputs.tensor(rng.standard_normal((2, 1, 4, d)), "float32")
    table, length = inputs.tensor(np.array([[3, 1], [4, 0]])), inputs.tensor(np.array([2 * page, page + 1]))
    options = {"group": 1, "table": table, "length": length}
    compact = fast.attention(q, *(x.contiguous() for x in (*seen, *parameters)), **options)
    for x, y in zip(fast.attention(q, *seen, *parameters, **options), compact, strict=True):
        exactly(x, y)


def test_calibrated_scales_are_shared(fast):
    """One scale for all heads and blocks, one per head, or one per row, equals one for every token; one tensor may be both codes."""
    rng = np.random.default_rng(0)
    q, codes = inputs.tensor(rng.standard_normal((2, 1, 4, 16)), "float32"), inputs.tensor(rng.integers(-9, 10, (2, 20, 2, 16)), "int8")
    for shape in ((1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 1, 2)):
        scale = inputs.tensor(rng.uniform(0.5, 2, shape), "float32")
        each = scale.expand(2, 1, 2).repeat(1, 20, 1)
        apart = fast.attention(q, codes, codes.clone(), each, 3 * each, group=1)
        for x, y in zip(fast.attention(q, codes, codes, scale, 3 * scale), apart, strict=True):
            exactly(x, y, f"scales {shape}")


@pytest.mark.usefixtures("one_thread")
@given(decodings(("float32",), st.just([33, 5, 17]), (1,), heads, [(16, 16)]), kinds, groups, st.sampled_from([None, 16]))
def test_a_sequence_has_the_same_bits_alone(fast, problem, number, group, page):
    """With one row of 16 numbers: a CPU's library may add up larger products in an order that depends on where they lie."""
    together = run(fast, problem, number, group, page)[0]
    for b in range(3):
        own = [x[b : b + 1] for x in (problem.q, problem.k, problem.v)]
        alone = Decoding(*own, problem.lengths[b : b + 1], problem.sink, problem.dtype, problem.options)
        for x, y in zip(run(fast, alone, number, group, page)[0], together, strict=True):
            exactly(x[0], y[b], f"sequence {b}")
