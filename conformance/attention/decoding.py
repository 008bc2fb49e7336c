"""Decoding problems: a ragged batch of sequences with a few query rows each, their keys in rows or scattered over pages.

What no sequence owns is poison: NaN behind every length, in the tails of pages and in free blocks, the largest integer in table entries
that hold no token. Whoever reads it shows it, or reaches for a block that does not exist.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention.problems import visible
from twofold.conformance.compare import exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense

__all__ = ["HEADS", "Decoding", "decodings", "demand_pages_are_rows", "pools"]

HEADS = [(1, 1), (3, 1), (5, 1), (6, 2), (7, 1), (16, 2)]  # query heads, key heads: groups of 1, 3, 5, 3, 7 and 8
WIDTHS = [(16, 16), (8, 24), (33, 16)]  # of keys and queries, of values
WINDOWS = [None, (5, None), (None, 3), (20, 17), (40, 0)]
LENGTHS = st.lists(st.sampled_from([0, 1, 2, 15, 16, 17, 31, 32, 33, 47, 50]), min_size=1, max_size=3)


@dataclass
class Decoding:
    q: np.ndarray  # (B, N, H, D), already rounded to dtype
    k: np.ndarray  # (B, Tk, Hkv, D)
    v: np.ndarray  # (B, Tk, Hkv, Dv)
    lengths: list[int]
    sink: np.ndarray | None  # (H,)
    dtype: str
    options: dict  # causal, window, softcap

    @property
    def keywords(self):
        """What the implementation is given beside queries, keys and values."""
        return self.options | {"sink": None if self.sink is None else inputs.tensor(self.sink, "float32")}

    @property
    def length(self):
        return inputs.tensor(np.array(self.lengths, dtype=np.int32))

    @property
    def heads(self):
        """Every (sequence, query head, key head)."""
        group = self.q.shape[2] // self.k.shape[2]
        return [(b, h, h // group) for b in range(len(self.q)) for h in range(self.q.shape[2])]

    def tensors(self, layout="contiguous"):
        """Queries, keys and values; NaN behind every length."""
        behind = np.arange(self.k.shape[1]) >= np.array(self.lengths)[:, None]
        keys, values = (np.where(behind[..., None, None], np.nan, x) for x in (self.k, self.v))
        return [inputs.tensor(x, self.dtype, layout) for x in (self.q, keys, values)]

    def mask(self, b):
        return visible(self.q.shape[1], self.lengths[b], self.options["causal"], self.options["window"])

    def expected(self, b, h, h_kv, **more):
        """The definition's output and log-sum-exp for one head of one sequence, with their bounds."""
        keys = slice(self.lengths[b])
        options = {"mask": self.mask(b), "softcap": self.options["softcap"], "sink": None if self.sink is None else float(self.sink[h])}
        arrays = self.q[b, :, h], self.k[b, keys, h_kv], self.v[b, keys, h_kv]
        return bounded(dense.attention, *arrays, precision=Precision(self.dtype), outputs=(self.dtype, "float32"), **options | more)


@st.composite
def decodings(draw, dtypes=("float32", "bfloat16", "float16"), lengths=LENGTHS, rows=(1, 1, 2, 5), heads=HEADS, widths=WIDTHS):
    dtype, regime, seed = draw(st.sampled_from(dtypes)), draw(inputs.regimes), draw(inputs.seeds)
    (h, h_kv), (d, dv), n, lengths = draw(st.sampled_from(heads)), draw(st.sampled_from(widths)), draw(st.sampled_from(rows)), draw(lengths)
    room = max(lengths) + draw(st.sampled_from([0, 3]))
    shapes = [(len(lengths), n, h, d), (len(lengths), room, h_kv, d), (len(lengths), room, h_kv, dv)]
    q, k, v = inputs.values(regime, shapes, seed, dtype)
    (z,) = inputs.values("normal", [(h,)], seed + 1, "float32")
    options = {"causal": draw(st.booleans()), "window": draw(st.sampled_from(WINDOWS)), "softcap": 2.5 if draw(st.booleans()) else None}
    return Decoding(q, k, v, lengths, z if draw(st.booleans()) else None, dtype, options)


def pools(arrays, lengths, page, dtype, seed, layout="contiguous"):
    """Arrays (B, Tk, …) as pools (n_blocks, page, …) in a random order of blocks, and the table `(B, n)` of all of them."""
    rng = np.random.default_rng(seed)
    columns = -(-max(arrays[0].shape[1], 1) // page) + 1
    owned = [-(-length // page) for length in lengths]
    blocks = rng.permutation(sum(owned) + 3)
    table = np.full((len(lengths), columns), np.iinfo(np.int32).max, dtype=np.int32)
    filled = [np.full((len(blocks), page, *x.shape[2:]), np.nan) for x in arrays]
    for b, length in enumerate(lengths):
        table[b, : owned[b]], blocks = blocks[: owned[b]], blocks[owned[b] :]
        for pool, x in zip(filled, arrays):
            token = np.arange(length)
            pool[table[b, token // page], token % page] = x[b, :length]
    return [inputs.tensor(pool, dtype, layout) for pool in filled], inputs.tensor(table)


def demand_pages_are_rows(form, arrays, lengths, page, seed):
    """`form(*caches, length=…, table=…)` on caches (B, Tk, …) gives the same bits from scattered blocks as from rows; returns its results.

    In rows, too, everything behind a sequence's end is poison.
    """
    behind = np.arange(arrays[0].shape[1]) >= np.array(lengths)[:, None]
    rows = [inputs.tensor(np.where(np.expand_dims(behind, tuple(range(2, x.ndim))), np.nan, x), "float32") for x in arrays]
    length = inputs.tensor(np.array(lengths, dtype=np.int32))
    expected = form(*rows, length=length)
    stored, table = pools(arrays, lengths, page, "float32", seed)
    for actual, right in zip(form(*stored, length=length, table=table), expected, strict=True):
        exactly(actual, right)
    return expected
