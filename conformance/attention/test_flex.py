"""Flexible attention: what a function says is what is computed, dense or block by block, forward and backward."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.attention import field
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, flex, masks

DOCUMENTS = np.sort(np.random.default_rng(0).integers(0, 4, 200))
PARENTS = np.array([-1, 0, 0, 1, 1, 2, 3, 5, 5, 8] + list(range(9, 100)))
fives = lambda start, stop: np.floor(np.arange(start, stop) / 5)
MASKS = {  # as functions of integers or of arrays of them; and as the chapter on masks says it
    "causal": (lambda off: lambda b, h, i, j: j <= i + off, masks.causal),
    "window": (lambda off: lambda b, h, i, j: (j - (i + off) <= 3) & (i + off - j <= 20), lambda nq, nk: masks.window(nq, nk, 20, 3)),
    "prefix": (lambda off: lambda b, h, i, j: (j < 7) | (j <= i + off), lambda nq, nk: masks.prefix_lm(nq, nk, 7)),
    "chunked": (lambda off: lambda b, h, i, j: (j <= i + off) & (j // 5 == (i + off) // 5), lambda nq, nk: masks.chunked(nq, nk, 5)),
    "fives": (lambda off: lambda b, h, i, j: j // 5 == (i + off) // 5, lambda nq, nk: masks.document(fives(nk - nq, nk), fives(0, nk))),
}
SIZES = st.sampled_from([(1, 1), (17, 33), (33, 17), (40, 40), (5, 70)])


def on_tensors(table, dtype=torch.int64):
    return torch.from_numpy(np.array(table)).to(dtype).to(target.device())


def matrix_mod(seen):
    table = on_tensors(seen, torch.bool)
    return lambda b, h, i, j: table[i, j]


@st.composite
def matrices(draw):
    """A mask (Nq, Nk) of any kind, with rows that see nothing among them."""
    n_q, n_k = draw(SIZES)
    rng = np.random.default_rng(draw(inputs.seeds))
    kind = draw(st.sampled_from(["random", "document", "tree", "rows", "nothing", "everything", *MASKS]))
    if kind in MASKS:
        return MASKS[kind][1](n_q, n_k)
    if kind == "document":
        return masks.document(DOCUMENTS[:n_q], DOCUMENTS[:n_k])
    if kind == "tree":
        return masks.tree(PARENTS[: min(n_q, n_k)], max(n_k - n_q, 0))
    density = {"random": rng.random((n_q, 1)), "rows": rng.random((n_q, 1)) < 0.5, "nothing": 0.0, "everything": 1.0}[kind]
    return rng.random((n_q, n_k)) < density


@given(matrices(), inputs.seeds, st.sampled_from([1, 3, 16]), st.sampled_from([1, 5, 16]))
def test_visiting_the_listed_blocks_is_visiting_everything(seen, seed, bq, bk):
    """Without rounding, and with any bias."""
    seen = seen[:9, :9]
    q, k, v = field.problem(seed, *seen.shape, 2)
    bias = field.logits(np.random.default_rng(seed), *seen.shape)
    mods = (lambda b, h, i, j: seen[i, j]), (lambda s, b, h, i, j: s + bias[i, j])
    expected = dense.attention(q, k, v, mask=seen, bias=bias, scale=1)
    field.exactly(flex.attention(q, k, v, *mods, scale=1), expected)
    blocks = flex.block_mask(mods[0], *seen.shape, bq, bk)
    field.exactly(flex.sparse(q, k, v, *mods, blocks, bq, bk, scale=1), expected)


@given(matrices(), st.sampled_from([1, 3, 16]), st.sampled_from([1, 5, 16]))
def test_lists_are_the_blocks_of_the_mask_and_so_is_their_transpose(fast, seen, bq, bk):
    """Full where all of a block is seen, partial where some is; nothing else is listed, nothing twice."""
    full, partial = flex.block_mask(lambda b, h, i, j: seen[i, j], *seen.shape, bq, bk)
    kinds = masks.blocks(seen, bq, bk)
    assert [[j for j in range(kinds.shape[1]) if kinds[line, j] == 2] for line in range(len(kinds))] == full
    assert [[j for j in range(kinds.shape[1]) if kinds[line, j] == 1] for line in range(len(kinds))] == partial
    if target.target() == target.OURS:
        blocks = fast.block_mask(matrix_mod(seen), *seen.shape, bq, bk, device=target.device())
        for lists, kind in ((blocks.lines, kinds), (blocks.columns, kinds.T)):
            for at, entries, wanted in ((*lists[:2], 2), (*lists[2:], 1)):
                got = [entries[at[n] : at[n + 1]].tolist() for n in range(len(at) - 1)]
                assert got == [np.nonzero(line == wanted)[0].tolist() for line in kind]


@given(matrices(), st.sampled_from([(1, 1), (4, 2)]), st.booleans())
@example(masks.tree(PARENTS[:40], 0), (4, 2), True)
@example(np.zeros((17, 33), bool), (1, 1), True)
def test_mask_tomography(fast, seen, heads, listed):
    """q = 0 makes weights equal: one-hot values show which keys a row read, and one-hot gradients which rows read a key."""
    n_q, n_k = seen.shape
    mod = matrix_mod(seen)
    q, k = np.zeros((1, n_q, heads[0], 16)), np.ones((1, n_k, heads[1], 16))
    v, do = np.eye(n_k)[None, :, None].repeat(heads[1], 2), np.eye(n_q, n_k)[None, :, None].repeat(heads[0], 2)
    q, k, v, do = (inputs.tensor(x, "float32").requires_grad_() for x in (q, k, v, do))
    more = (fast.block_mask(mod, n_q, n_k, 16, 32, device=q.device), 16, 32) if listed else ()
    o, lse = (fast.sparse if listed else fast.attention)(q, k, v, mod, None, *more)
    count, rows = seen.sum(1), min(n_q, n_k)
    (dv,) = torch.autograd.grad(o, v, do)
    for h in range(heads[0]):
        exactly(np.rint(inputs.array(o[0, :, h].detach()) * count[:, None]), seen.astype(float), f"keys read by head {h}")
        exactly(np.rint(np.exp(inputs.array(lse[0, h].detach()))), count.astype(float), "number of keys")
    for h in range(heads[1]):
        read = np.rint(inputs.array(dv[0, :, h, :rows]) * count[:rows])
        exactly(read, heads[0] // heads[1] * seen.T[:, :rows].astype(float), f"rows that read keys of head {h}")


@given(st.sampled_from(list(MASKS)), SIZES, st.booleans())
@example("chunked", (40, 40), True)
@example("fives", (33, 17), False)
@example("window", (33, 17), False)
def test_functions_of_indices_say_what_the_matrices_say(fast, name, sizes, listed):
    """Written with operators, with the offset between rows and keys that the function itself has to add; // floors below 0 as well."""
    n_q, n_k = sizes
    mod, matrix = MASKS[name][0](n_k - n_q), MASKS[name][1](n_q, n_k)
    i, j = np.arange(n_q)[:, None], np.arange(n_k)[None, :]
    exactly(mod(0, 0, i, j), matrix, "on arrays")
    q, k = np.zeros((1, n_q, 1, 16)), np.ones((1, n_k, 1, 16))
    tensors = [inputs.tensor(x, "float32") for x in (q, k, np.eye(n_k)[None, :, None])]
    more = (fast.block_mask(mod, n_q, n_k, 32, 16, device=tensors[0].device), 32, 16) if listed else ()
    o, lse = (fast.sparse if listed else fast.attention)(*tensors, mod, None, *more)
    exactly(np.rint(inputs.array(o[0, :, 0]) * matrix.sum(1)[:, None]), matrix.astype(float), "keys read")
    exactly(np.rint(np.exp(inputs.array(lse[0, 0]))), matrix.sum(1).astype(float), "number of keys")


SLOPES = np.array([0.5, 0.25, 1.0, 0.125])


def quadratic(q, k, v, do, dlse, mask, bias, c, scale):
    """(o, lse, dq, dk, dv) of attention whose logits are x + bias + c x x, written out with every derivative."""
    x = scale * (q @ k.T)
    s = np.where(mask, x + bias + c * (x * x), -np.inf)
    o, lse = flex.attention(q, k, v, lambda b, h, i, j: mask, lambda y, b, h, i, j: y + bias + c * (y * y), scale=scale)
    p = np.where(mask, np.exp(s - np.where(lse == -np.inf, 0.0, lse)[:, None]), 0.0)
    ds = p * (do @ v.T - (np.sum(do * o, axis=1) - dlse)[:, None])
    dx = np.where(mask, ds * (1 + 2 * c * x), 0.0)
    return o, lse, scale * (dx @ k), scale * (dx.T @ q), p.T @ do


@given(matrices(), inputs.seeds, st.sampled_from([(1, 1), (4, 2)]), st.sampled_from([(16, 16), (33, 24)]), inputs.dtypes(), st.booleans())
@example(masks.causal(33, 17), 0, (4, 2), (33, 24), "float32", True)
@example(masks.document(DOCUMENTS[:40], DOCUMENTS[:40]), 1, (4, 2), (16, 16), "bfloat16", False)
def test_results_and_gradients_agree_with_the_definition(fast, seen, seed, heads, widths, dtype, listed):
    """Under ALiBi, whose slope is the head's, and a term that is quadratic in the logit, so that the score has a derivative of its own."""
    (h, h_kv), (d, dv), (n_q, n_k), c = heads, widths, seen.shape, 0.125
    shapes = [(1, n_q, h, d), (1, n_k, h_kv, d), (1, n_k, h_kv, dv), (1, n_q, h, dv)]
    q, k, v, do = inputs.values("normal", shapes, seed, dtype)
    (dlse,) = inputs.values("normal", [(1, h, n_q)], seed + 1, "float32")
    slopes, mod = inputs.tensor(SLOPES, "float32"), matrix_mod(seen)
    score = lambda s, b, h, i, j: s - slopes[h] * abs(i - j) + s * s * c
    tensors = [inputs.tensor(x, dtype).requires_grad_() for x in (q, k, v)]
    more = (fast.block_mask(mod, n_q, n_k, 16, 32, device=tensors[0].device), 16, 32) if listed else ()
    o, lse = (fast.sparse if listed else fast.attention)(*tensors, mod, score, *more)
    cotangents = inputs.tensor(do, dtype), torch.where(lse == -torch.inf, 0, inputs.tensor(dlse, "float32"))
    gradients = torch.autograd.grad((o, lse), tensors, cotangents)
    dlse = np.where(seen.any(1), dlse, 0)
    distance = np.abs(np.arange(n_q)[:, None] - np.arange(n_k)[None, :])
    total = {}
    for head in range(h):
        j = head // (h // h_kv)
        arrays = q[0, :, head], k[0, :, j], v[0, :, j], do[0, :, head], dlse[0, head]
        options = {"precision": Precision(dtype), "outputs": (dtype, *["float32"] * 4)}
        expected = bounded(quadratic, *arrays, mask=seen, bias=-SLOPES[head] * distance, c=c, scale=d**-0.5, **options)
        agree(o[0, :, head].detach(), expected[0], "output")
        agree(lse[0, head].detach(), expected[1], "log-sum-exp")
        agree(gradients[0][0, :, head], expected[2].rounded_to(dtype), "dq")
        total[j] = [x + y for x, y in zip(total[j], expected[3:])] if j in total else expected[3:]
    for j, pair in total.items():
        for actual, bound, name in zip(gradients[1:], pair, ("dk", "dv"), strict=True):
            agree(actual[0, :, j], bound.rounded_to(dtype), name)


@given(matrices(), inputs.seeds, inputs.dtypes(), st.booleans())
@example(masks.causal(33, 17), 0, "float32", True)
@example(masks.causal(40, 40), 1, "bfloat16", False)
def test_a_cap_comes_before_the_score_and_a_sink_after_all(fast, seen, seed, dtype, listed):
    """As dense attention has them, with the score as its bias; results and gradients, that of the sink as well."""
    n_q, n_k = seen.shape
    arrays = inputs.values("normal", [(1, n_q, 2, 16), (1, n_k, 1, 16), (1, n_k, 1, 8), (1, n_q, 2, 8)], seed, dtype)
    dlse, sinks = inputs.values("normal", [(1, 2, n_q), (2,)], seed + 1, "float32")
    leaves = [inputs.tensor(x, dtype).requires_grad_() for x in arrays[:3]] + [inputs.tensor(sinks, "float32").requires_grad_()]
    slopes, mod = inputs.tensor(SLOPES, "float32"), matrix_mod(seen)
    more = (fast.block_mask(mod, n_q, n_k, 32, 16, device=leaves[0].device), 32, 16) if listed else ()
    score = lambda s, b, h, i, j: s - slopes[h] * abs(i - j)
    o, lse = (fast.sparse if listed else fast.attention)(*leaves[:3], mod, score, *more, softcap=2.5, sink=leaves[3])
    cotangents = inputs.tensor(arrays[3], dtype), torch.where(lse == -torch.inf, 0, inputs.tensor(dlse, "float32"))
    gradients = torch.autograd.grad((o, lse), leaves, cotangents)
    dlse, shared = np.where(seen.any(1), dlse, 0), []
    for h in range(2):
        q, k, v, do = arrays[0][0, :, h], arrays[1][0, :, 0], arrays[2][0, :, 0], arrays[3][0, :, h]
        bias = -SLOPES[h] * np.abs(np.arange(n_q)[:, None] - np.arange(n_k)[None, :])
        options = {"mask": seen, "bias": bias, "softcap": 2.5, "sink": float(sinks[h]), "precision": Precision(dtype)}
        expected = bounded(dense.attention, q, k, v, outputs=(dtype, "float32"), **options)
        agree(o[0, :, h].detach(), expected[0], "output")
        agree(lse[0, h].detach(), expected[1], "log-sum-exp")
        dq, dk, dv, _, dsink = bounded(dense.backward, q, k, v, do, dlse=dlse[0, h], outputs=("float32",) * 5, **options)
        agree(gradients[0][0, :, h], dq.rounded_to(dtype), "dq")
        agree(gradients[3][h], dsink, "dsink")
        shared.append((dk, dv))
    for actual, one, other, name in zip(gradients[1:3], *shared, ("dk", "dv"), strict=True):
        agree(actual[0, :, 0], (one + other).rounded_to(dtype), name)
