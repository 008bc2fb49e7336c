"""Packed sequences: each attends itself alone, whatever lies beside it, behind it, or in the storage that it does not use."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, poison
from twofold.conformance.attention import field
from twofold.conformance.attention.problems import HEADS, WIDTHS, WINDOWS, visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, varlen

LENGTHS = st.lists(st.tuples(st.sampled_from([0, 1, 15, 17, 33]), st.sampled_from([0, 1, 16, 20, 35]), st.integers(0, 3)), max_size=4)


@dataclass
class Packed:
    """Sequences of (rows, keys, unused keys), and what is behind the last one."""

    sizes: list
    tail: int
    heads: tuple
    widths: tuple
    options: dict
    sink: bool
    dtype: str
    seed: int

    def __post_init__(self):
        self.cu_q = np.cumsum([0, *(rows for rows, _, _ in self.sizes)])
        self.cu_k = np.cumsum([0, *(keys + unused for _, keys, unused in self.sizes)])
        self.used_k = np.array([keys for _, keys, _ in self.sizes], dtype=int)
        (h, h_kv), (d, dv) = self.heads, self.widths
        nq, nk = self.cu_q[-1] + self.tail, self.cu_k[-1] + self.tail
        shapes = [(nq, h, d), (nk, h_kv, d), (nk, h_kv, dv), (nq, h, dv)]
        self.q, self.k, self.v, self.do = inputs.values("normal", shapes, self.seed, self.dtype)
        self.dlse, (self.z,) = inputs.values("normal", [(h, nq), (1, h)], self.seed + 1, "float32")
        self.owner_q, self.owner_k = np.full(nq, -1), np.full(nk, -2)  # nobody's rows and nobody's keys do not meet
        self.mask = np.zeros((nq, nk), dtype=bool)
        for r, (rows, keys, _) in enumerate(self.sizes):
            a, b = slice(self.cu_q[r], self.cu_q[r] + rows), slice(self.cu_k[r], self.cu_k[r] + keys)
            self.owner_q[a], self.owner_k[b] = r, r
            self.mask[a, b] = visible(rows, keys, self.options["causal"], self.options["window"])

    def where(self):
        return {"cu_q": inputs.tensor(self.cu_q), "cu_k": inputs.tensor(self.cu_k), "used_k": inputs.tensor(self.used_k)}

    def keywords(self):
        return self.options | {"sink": inputs.tensor(self.z, "float32") if self.sink else None}

    def run(self, fast, nan=False, layout="contiguous"):
        """(o, lse) and (dq, dk, dv); with NaN in all that belongs to nobody, if asked."""
        q, k, v = (inputs.tensor(x, self.dtype, layout) for x in (self.q, self.k, self.v))
        do, dlse = inputs.tensor(self.do, self.dtype), inputs.tensor(self.dlse, "float32")
        if nan:
            rows, keys = (torch.from_numpy(owner >= 0).to(q.device) for owner in (self.owner_q, self.owner_k))
            q, do = (poison.nan_outside(x, rows) for x in (q, do))
            k, v = (poison.nan_outside(x, keys) for x in (k, v))
            dlse = poison.nan_outside(dlse, rows.expand(dlse.shape))
        with poison.poisoned_empty():
            o, lse = fast.attention(q, k, v, **self.where(), **self.keywords())
            return (o, lse), fast.backward(q, k, v, o, lse, do, **self.where(), dlse=dlse, **self.keywords())


@st.composite
def packings(draw, dtypes=("float32", "bfloat16", "float16")):
    options = {"causal": draw(st.booleans()), "window": draw(st.sampled_from(WINDOWS)), "softcap": draw(st.sampled_from([None, 2.5]))}
    heads, widths, dtype = draw(st.sampled_from(HEADS)), draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(dtypes))
    return Packed(draw(LENGTHS), draw(st.integers(0, 2)), heads, widths, options, draw(st.booleans()), dtype, draw(inputs.seeds))


PLAIN = {"causal": True, "window": None, "softcap": None}
RAGGED = Packed([(17, 33, 2), (0, 5, 0), (1, 0, 3), (40, 20, 1)], 2, (4, 2), (33, 16), PLAIN, True, "float32", 0)
WINDOWED = Packed([(33, 35, 0), (15, 20, 1)], 0, (2, 1), (16, 16), {"causal": False, "window": (5, 3), "softcap": 2.5}, True, "bfloat16", 1)


@given(inputs.seeds, LENGTHS, st.integers(0, 2), st.booleans(), st.sampled_from(WINDOWS))
def test_packing_is_a_block_diagonal_mask(seed, sizes, tail, causal, window):
    """Without rounding."""
    sizes = [(rows % 5, keys % 6, unused) for rows, keys, unused in sizes]
    case = Packed(sizes, tail, (1, 1), (16, 16), {"causal": causal, "window": window, "softcap": None}, False, "float32", 0)
    q, k, v = field.problem(seed, len(case.q), len(case.k), 2)
    result = varlen.attention(q, k, v, case.cu_q, case.cu_k, causal=causal, window=window, used_k=case.used_k, scale=1)
    field.exactly(result, dense.attention(q, k, v, mask=case.mask, scale=1))


@given(packings())
@example(RAGGED)
@example(WINDOWED)
def test_results_and_gradients_agree_with_the_definition(fast, case):
    (o, lse), (dq, dk, dv) = case.run(fast)
    group = case.heads[0] // case.heads[1]
    total = {}
    options = case.options | {"used_k": case.used_k, "precision": Precision(case.dtype)}
    for h in range(case.heads[0]):
        sink = float(case.z[h]) if case.sink else None
        arrays = case.q[:, h], case.k[:, h // group], case.v[:, h // group]
        expected = bounded(varlen.attention, *arrays, case.cu_q, case.cu_k, sink=sink, outputs=(case.dtype, "float32"), **options)
        agree(o[:, h], expected[0], "output")
        agree(lse[h], expected[1], "log-sum-exp")
        given_ = inputs.array(o[:, h]), inputs.array(lse[h]), case.do[:, h]
        parts = bounded(
            varlen.backward, *arrays, *given_, case.cu_q, case.cu_k, dlse=case.dlse[h], sink=sink, outputs="float32", **options
        )
        agree(dq[:, h], parts[0].rounded_to(case.dtype), "dq")
        total[h // group] = [x + y for x, y in zip(total[h // group], parts[1:])] if h % group else parts[1:]
    for h, pair in total.items():
        for actual, expected, name in zip((dk, dv), pair, ("dk", "dv"), strict=True):
            agree(actual[:, h], expected.rounded_to(case.dtype), name)


@given(packings())
@example(RAGGED)
def test_what_no_sequence_uses_is_never_read(fast, case):
    """Unused keys, rows and keys behind the last sequence hold NaN: no bit changes, forward and backward, and their gradients are 0."""
    clean, dirty = case.run(fast), case.run(fast, nan=True)
    for name, x, y in zip(("output", "log-sum-exp", "dq", "dk", "dv"), (*clean[0], *clean[1]), (*dirty[0], *dirty[1]), strict=True):
        exactly(y, x, name)
    nobody_q, nobody_k = case.owner_q < 0, case.owner_k < 0
    for x, nobody in ((dirty[0][0], nobody_q), (dirty[1][0], nobody_q), (dirty[1][1], nobody_k), (dirty[1][2], nobody_k)):
        exactly(inputs.array(x)[nobody], np.zeros_like(inputs.array(x)[nobody]), "what is nobody's")
    exactly(inputs.array(dirty[0][1])[:, nobody_q], np.full((case.heads[0], nobody_q.sum()), -np.inf), "log-sum-exp of nobody's rows")


@given(packings(("float32", "bfloat16")), st.integers(0, 3))
@example(RAGGED, 3)
def test_a_sequence_has_the_same_bits_alone(fast, case, r):
    if r >= len(case.sizes):
        return
    rows, keys, unused = case.sizes[r]
    alone = Packed([(rows, keys, unused)], 0, case.heads, case.widths, case.options, case.sink, case.dtype, case.seed)
    a, b = slice(case.cu_q[r], case.cu_q[r + 1]), slice(case.cu_k[r], case.cu_k[r + 1])
    alone.q, alone.k, alone.v, alone.do, alone.dlse, alone.z = case.q[a], case.k[b], case.v[b], case.do[a], case.dlse[:, a], case.z
    ((o, lse), (dq, dk, dv)), ((o1, lse1), (dq1, dk1, dv1)) = case.run(fast), alone.run(fast)
    for name, x, y in (("o", o[a], o1), ("lse", lse[:, a], lse1), ("dq", dq[a], dq1), ("dk", dk[b], dk1), ("dv", dv[b], dv1)):
        exactly(x, y, f"{name} of sequence {r}")


@given(LENGTHS, st.sampled_from(HEADS), st.booleans(), st.sampled_from(WINDOWS))
@example([(17, 33, 2), (0, 5, 0), (1, 0, 3), (40, 20, 1)], (4, 2), True, None)
@example([(33, 35, 1), (15, 20, 0)], (2, 1), False, (5, 3))
def test_mask_tomography(fast, sizes, heads, causal, window):
    """q = 0 makes weights equal: one-hot values show which keys a row read, and one-hot gradients which rows read a key."""
    case = Packed(sizes, 1, heads, (16, 16), {"causal": causal, "window": window, "softcap": None}, False, "float32", 0)
    n_q, n_k = case.mask.shape
    q, k = np.zeros((n_q, heads[0], 16)), np.ones((n_k, heads[1], 16))
    v, do = np.eye(n_k)[:, None].repeat(heads[1], 1), np.eye(n_q, n_k)[:, None].repeat(heads[0], 1)
    tensors = [inputs.tensor(x, "float32") for x in (q, k, v)]
    o, lse = fast.attention(*tensors, **case.where(), causal=causal, window=window)
    count = case.mask.sum(1)
    for h in range(heads[0]):
        exactly(np.rint(inputs.array(o[:, h]) * count[:, None]), case.mask.astype(float), f"keys read by head {h}")
        exactly(np.rint(np.exp(inputs.array(lse[h]))), count.astype(float), "number of keys")
    _, _, dv = fast.backward(*tensors, o, lse, inputs.tensor(do, "float32"), **case.where(), causal=causal, window=window)
    rows = min(n_q, n_k)  # as many as there are columns of dv
    for h in range(heads[1]):
        read = np.rint(inputs.array(dv[:, h, :rows]) * count[:rows])  # (keys, rows)
        exactly(read, heads[0] // heads[1] * case.mask.T[:, :rows].astype(float), f"rows that read keys of head {h}")
