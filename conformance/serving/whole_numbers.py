"""A model whose rows are whole numbers, with two faces: NumPy for the spec, PyTorch for `fast`.

Each head of a layer attends the first token, the last one or all of them evenly, as the row itself says, and a mean over n tokens times
n is rounded to the whole number that it is: two ways of computing a token agree, or one of them is wrong.
"""

import numpy as np
import torch

from twofold.spec.attention import dense

__all__ = ["exact", "packed", "written_alone"]

VOCABULARY = 97


def _embedded(tokens, position):
    return (tokens * 7 + position) % VOCABULARY, (tokens + 3 * position) % VOCABULARY


def _asked(z, position, weight):
    """Queries of two heads (n, 2), keys of one (n, 1), which grow with the position, and values (n, 2)."""
    return 64 * (z % 3 - 1), position[:, None] + 0 * z[:, :1], weight * z % VOCABULARY


def _mixed(z, first, second, position):
    whole = (first + 5 * second) * (position + 1)[:, None]
    return (z + (whole + 0.5) // 1) % VOCABULARY


def exact(layers):
    """(embed, layers, head) for the spec: the cache of a layer is its keys and values."""

    def embed(tokens, position):
        return np.stack(_embedded(np.array(tokens, dtype=float), position + np.arange(len(tokens))), -1)

    def layer(weight):
        def forward(z, cache):
            start = 0 if cache is None else len(cache[0])
            position = start + np.arange(len(z))
            q, *new = _asked(z, position, weight)
            keys, values = new if cache is None else (np.concatenate(pair) for pair in zip(cache, new))
            mask = np.arange(len(keys)) <= position[:, None]
            heads = [dense.attention(q[:, h : h + 1], keys, values, mask=mask, scale=1)[0] for h in range(2)]
            return _mixed(z, *heads, position), (keys, values)

        return forward

    return embed, [layer(number + 2) for number in range(layers)], lambda row: int(row.sum()) % VOCABULARY


def written_alone(model, prompt, output):
    """The tokens without any cache: the whole text is read again for each."""
    embed, layers, head = model
    text = list(prompt)
    for _ in range(output):
        z = embed(text, 0)
        for layer in layers:
            z, _ = layer(z, None)
        text.append(head(z[-1]))
    return text[len(prompt) :]


def packed(layers):
    """The same for `fast`: rows are of any requests, and `attend` knows whose keys they see."""

    def layer(weight):
        def forward(z, position, attend):
            q, k, v = _asked(z, position, weight)
            o = attend(q[:, :, None], k[:, :, None], v[:, None], scale=1.0)  # (n, 2, 2)
            return _mixed(z, o[:, 0], o[:, 1], position)

        return forward

    embed = lambda tokens, position: torch.stack(_embedded(tokens.float(), position), -1)
    return embed, [layer(number + 2) for number in range(layers)], lambda z: z.sum(-1).long() % VOCABULARY
