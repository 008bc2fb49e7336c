"""Attention problems: shapes around tile edges, a window, a cap, a sink, grouped heads; and what the spec says about each head."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.rounding import Precision, bounded

__all__ = ["Problem", "problems", "visible"]

HEADS = [(1, 1), (2, 1), (3, 1), (4, 2)]  # query heads, key heads
WIDTHS = [(16, 16), (8, 24), (33, 16)]  # of keys and queries, of values
WINDOWS = [None, (None, None), (0, 0), (5, None), (None, 3), (20, 17), (1, 40)]


def visible(t_q, t_k, causal=False, window=None):
    """Which keys each row may see `(Tq, Tk)`, written down pair by pair."""
    left, right = window or (None, None)
    distance = np.arange(t_k)[None, :] - (np.arange(t_q)[:, None] + t_k - t_q)
    seen = np.ones((t_q, t_k), dtype=bool)
    if causal:
        seen &= distance <= 0
    if left is not None:
        seen &= distance >= -left
    if right is not None:
        seen &= distance <= right
    return seen


@dataclass
class Problem:
    q: np.ndarray  # (B, Tq, H, D), already rounded to dtype
    k: np.ndarray  # (B, Tk, Hkv, D)
    v: np.ndarray  # (B, Tk, Hkv, Dv)
    do: np.ndarray  # (B, Tq, H, Dv)
    dlse: np.ndarray  # (B, H, Tq)
    sink: np.ndarray | None  # (H,)
    dtype: str
    options: dict  # causal, window, softcap

    @property
    def mask(self):
        return visible(self.q.shape[1], self.k.shape[1], self.options["causal"], self.options["window"])

    @property
    def heads(self):
        """Every (batch, query head, key head)."""
        group = self.q.shape[2] // self.k.shape[2]
        return [(b, h, h // group) for b in range(self.q.shape[0]) for h in range(self.q.shape[2])]

    @property
    def keywords(self):
        """What the implementation is given beside q, k and v."""
        return self.options | {"sink": None if self.sink is None else inputs.tensor(self.sink, "float32")}

    def tensors(self, layout="contiguous"):
        return [inputs.tensor(x, self.dtype, layout) for x in (self.q, self.k, self.v)]

    def bounds(self, function, b, h, h_kv, *more, outputs, **keywords):
        """The spec's result for one head, with its bound; `more` are arrays beside q, k and v."""
        options = {"mask": self.mask, "softcap": self.options["softcap"]}
        options |= {"sink": None if self.sink is None else float(self.sink[h])}
        q, k, v = self.q[b, :, h], self.k[b, :, h_kv], self.v[b, :, h_kv]
        return bounded(function, q, k, v, *more, precision=Precision(self.dtype), outputs=outputs, **options, **keywords)


@st.composite
def problems(draw, dtypes=("float32", "bfloat16", "float16"), low=0, sink=None, softcap=None, regimes=inputs.regimes):
    """`sink` and `softcap` fix whether there is one; None leaves it open."""
    dtype, regime, seed = draw(st.sampled_from(dtypes)), draw(regimes), draw(inputs.seeds)
    (heads, kv_heads), (d, dv), b = draw(st.sampled_from(HEADS)), draw(st.sampled_from(WIDTHS)), draw(st.sampled_from([1, 1, 1, 2]))
    t_q, t_k = draw(inputs.sizes(16, low=low)), draw(inputs.sizes(16, 32, low=low))
    shapes = [(b, t_q, heads, d), (b, t_k, kv_heads, d), (b, t_k, kv_heads, dv), (b, t_q, heads, dv)]
    q, k, v, do = inputs.values(regime, shapes, seed, dtype)
    dlse, z = inputs.values("normal", [(b, heads, t_q), (heads,)], seed + 1, "float32")
    with_sink = draw(st.booleans()) if sink is None else sink
    capped = draw(st.booleans()) if softcap is None else softcap
    options = {"causal": draw(st.booleans()), "window": draw(st.sampled_from(WINDOWS)), "softcap": 2.5 if capped else None}
    return Problem(q, k, v, do, dlse, z if with_sink else None, dtype, options)
