"""Tiny models for the drafters that read hidden states: weights, and causal layers told twice, in NumPy and in PyTorch.

A layer has three faces. `spec(z)` is causal, `(t, D)` to `(t, D)`. `fast(z)` is the same on a batch `(B, t, D)`. `cached(z, mask,
position, state)` takes the next rows only: `mask (B, n, m + n)` says which of all rows so far each of them sees, `position (B, n)` where it
stands; it returns the hidden rows and the new state, and changes nothing in place. `masked(z, mask, position)` is `cached` in NumPy,
all rows at once.

`attention` is an attention layer with learned places. `counting` adds up integers modulo 5: it mixes all places, is as far
from linear as a layer can be, and rounds nothing, so that two ways of computing it must agree to the bit.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from twofold.conformance.inputs import rounded, tensor

__all__ = ["Layer", "Weights", "attention", "counting", "weights"]


class Layer(NamedTuple):
    spec: Any
    fast: Any
    cached: Any
    masked: Any


class Weights(NamedTuple):
    """Of a drafter on V tokens and D channels, and the features of T places `(T, D)` with the T + 1 tokens around them."""

    features: np.ndarray
    tokens: np.ndarray
    embed: np.ndarray  # (V, D)
    fc: np.ndarray  # (D, 2 D)
    head: np.ndarray  # (V, D)

    def tensors(self, B=1):
        """Features and tokens as a batch of equal rows, and the weights, in float32."""
        features, tokens = (tensor(np.repeat(x[None], B, 0)) for x in (self.features, self.tokens))
        return features.float(), tokens, *(tensor(x, "float32") for x in self[2:])


def weights(seed: int, V: int, D: int, T: int, exact: bool = False) -> Weights:
    """Normal weights that float32 holds, scaled so that a layer neither blows up values nor errors; or small integers."""
    rng = np.random.default_rng(seed)
    shapes = (T, D), (V, D), (D, 2 * D), (V, D)
    draws = (rng.integers(-1, 2, shape).astype(float) if exact else rng.standard_normal(shape) for shape in shapes)
    scales = (1, 1, 1, 1) if exact else (1, 1, 1 / np.sqrt(2 * D), 1 / np.sqrt(D))
    features, embed, fc, head = (rounded(x * scale, "float32") for x, scale in zip(draws, scales))
    return Weights(features, rng.integers(0, V, T + 1), embed, fc, head)


def attention(seed: int, D: int, places: int = 32) -> Layer:
    """Residual attention, one head, with a learned vector for each place."""
    rng = np.random.default_rng(seed)
    wq, wk, wv = (rounded(rng.standard_normal((D, D)) / np.sqrt(4 * D), "float32") for _ in range(3))
    table = rounded(rng.standard_normal((places, D)) / 2, "float32")

    def masked(z, mask, position):
        x = z + table[position]
        scores = np.where(mask, (x @ wq) @ (x @ wk).T, -np.inf)  # (t, t)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return z + (shares / shares.sum(axis=-1, keepdims=True)) @ (x @ wv)

    tq, tk, tv, tt = (tensor(x, "float32") for x in (wq, wk, wv, table))

    def cached(z, mask, position, state):
        x = z + tt[position]
        k, v = (new if state is None else torch.cat([old, new], 1) for old, new in zip(state or (None, None), (x @ tk, x @ tv)))
        scores = ((x @ tq) @ k.transpose(1, 2)).masked_fill(~mask, -torch.inf)
        return z + scores.softmax(-1) @ v, (k, v)

    return _faces(masked, cached)


def counting(seed: int, D: int) -> Layer:
    """Row t is the sum over the places j that it sees of (j + 1) z_j W, modulo 5, less 2: small integers from small integers."""
    w = np.random.default_rng(seed).integers(-2, 3, (D, D)).astype(float)

    def masked(z, mask, position):
        return np.mod((mask * (position + 1)) @ (z @ w), 5) - 2

    tw = tensor(w, "float32")

    def cached(z, mask, position, state):
        new = (position[:, :, None] + 1) * (z @ tw)
        rows = new if state is None else torch.cat([state, new], 1)
        return torch.remainder(mask.to(z.dtype) @ rows, 5) - 2, rows

    return _faces(masked, cached)


def _faces(masked, cached) -> Layer:
    def spec(z):
        return masked(z, np.tri(len(z), dtype=bool), np.arange(len(z)))

    def fast(z):
        B, t, _ = z.shape
        mask = torch.ones(t, t, dtype=torch.bool, device=z.device).tril().expand(B, -1, -1)
        return cached(z, mask, torch.arange(t, device=z.device).expand(B, -1), None)[0]

    return Layer(spec, fast, cached, masked)
