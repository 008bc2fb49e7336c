"""A byte-level transformer that reads chains and trees, with a cache: small enough to train in minutes, real enough to speculate with.

Its layers are `layer(z, mask, position, state) -> (hidden, state)`, as the drafters of `twofold.fast.speculative` want them; the model's
`read(cache, start, tokens, parents, nodes)` is what `decoding.cached` wants. Beside keys and values the cache holds the features that
feature drafters read: the states after the first, a middle and the last layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.fast.speculative import tree

__all__ = ["BYTES", "Layer", "Transformer"]

BYTES = 256


class Layer(nn.Module):
    """Attention with rotary positions, then a gated feed-forward network, each behind a norm and around a residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 6 * width, bias=False), nn.Linear(3 * width, width, bias=False)

    def forward(self, z: Tensor, mask: Tensor | None, position: Tensor, state: tuple[Tensor, Tensor] | None = None):
        """Rows z `(B, n, D)` at `position (B, n)` see the rows of `mask (B, n, m + n)`, m of them in `state`; None: causal, no state."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.qkv(self.before(z)).chunk(3, -1))  # (B, H, n, d)
        q, k = _turned(q, position), _turned(k, position)
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        seen = None if mask is None else mask[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=mask is None)
        z = z + self.out(attended.transpose(1, 2).flatten(2))
        gate, value = self.up(self.between(z)).chunk(2, -1)
        return z + self.down(F.silu(gate) * value), (k, v)

    def plain(self, z: Tensor) -> Tensor:
        """Causal, on whole texts `(B, t, D)`."""
        return self(z, None, torch.arange(z.shape[1], device=z.device).expand(len(z), -1))[0]


class Transformer(nn.Module):
    """Bytes in, logits out; the head is not tied to the embedding."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__()
        self.embed, self.norm = nn.Embedding(BYTES, width), nn.RMSNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, BYTES, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def states(self, tokens: Tensor) -> list[Tensor]:
        """The hidden states after every layer `(B, t, D)` of whole texts `(B, t)`, the last one normed: the head's input."""
        z, found = self.embed(tokens), []
        for layer in self.layers:
            z = layer.plain(z)
            found.append(z)
        return [*found[:-1], self.norm(z)]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `(B, t, 256)`."""
        return self.head(self.states(tokens)[-1])

    def cache(self, batch: int, rows: int) -> list[Tensor]:
        """Keys and values of every layer `(B, rows, H, d)`, then the states after the first, a middle and the last layer `(B, rows, D)`."""
        width, heads, device = self.embed.embedding_dim, self.layers[0].heads, self.embed.weight.device
        keys = [torch.zeros(batch, rows, heads, width // heads, device=device) for _ in range(2 * len(self.layers))]
        return keys + [torch.zeros(batch, rows, width, device=device) for _ in range(3)]

    @torch.no_grad()
    def read(self, cache: list[Tensor], start: Tensor, tokens: Tensor, parents: Tensor, nodes: Tensor) -> Tensor:
        """Logits `(B, N, 256)` after each node of a tree behind the first `start[b]` rows; the nodes' entries go behind these rows."""
        B, N, rows = *tokens.shape, int(start.max())
        before = (torch.arange(rows, device=tokens.device) < start[:, None])[:, None].expand(B, N, rows)
        itself = torch.eye(N, dtype=torch.bool, device=tokens.device)  # no row sees nothing, not even where there is no node
        mask = torch.cat([before, tree.mask(parents, lengths=nodes) | itself], 2)
        position = start[:, None] + tree.depth(parents, lengths=nodes).clamp(min=0)
        here, at = torch.arange(B, device=tokens.device)[:, None], start[:, None] + torch.arange(N, device=tokens.device)
        z, states = self.embed(tokens.clamp(0, BYTES - 1)), []
        for i, layer in enumerate(self.layers):
            k, v = cache[2 * i], cache[2 * i + 1]
            z, (keys, values) = layer(z, mask, position, (k[:, :rows].transpose(1, 2), v[:, :rows].transpose(1, 2)))
            k[here, at], v[here, at] = keys[:, :, rows:].transpose(1, 2), values[:, :, rows:].transpose(1, 2)
            states.append(z)
        last = self.norm(z)
        for entries, state in zip(cache[-3:], (states[0], states[len(states) // 2], last), strict=True):
            entries[here, at] = state
        return self.head(last)


def _turned(x: Tensor, position: Tensor) -> Tensor:
    """Rotary embedding: pairs of channels turn with the position."""
    half = x.shape[-1] // 2
    speed = 10000 ** (-torch.arange(half, device=x.device) / half)
    angle = position[:, None, :, None] * speed  # (B, 1, n, half)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
