"""The reference pair as batched models, with and without a cache, and the rng of one request under the contract of counters."""

import numpy as np
import torch

from twofold.conformance.law import DRAFT, TARGET
from twofold.conformance.speculative.test_decoding import PARENTS
from twofold.fast import backend
from twofold.fast.kernels import philox
from twofold.spec.rng import Tape

__all__ = ["TABLES", "Counters", "branching", "model", "place", "reader"]

TABLES = {
    name: np.array([model(()), *(model((x,)) for x in range(3))], dtype=float) for name, model in (("target", TARGET), ("drafter", DRAFT))
}


def place(text):
    """Which row of the table follows a text: every token in it matters, and where it stands."""
    return int(sum((i + 1) * (int(token) + 1) for i, token in enumerate(text)) % 4)


def model(name):
    """A table as `fast` calls a model: rows after `tokens[b, : ends[b, i]]`."""
    table = torch.tensor(TABLES[name], dtype=torch.float32)

    def call(tokens, ends):
        worth = (torch.arange(tokens.shape[1]) + 1) * (tokens + 1)
        return table[(worth[:, None] * (torch.arange(tokens.shape[1]) < ends[:, :, None])).sum(2) % 4]

    return call


def reader(name, cache, log=None):
    """The same with a cache of tokens: what else stands in the cache or the tree would change the rows."""
    table = torch.tensor(TABLES[name], dtype=torch.float32)

    def read(caches, start, tokens, parents, nodes):
        (B, N), S = tokens.shape, cache.shape[1]
        for b in range(B):
            cache[b, start[b] : start[b] + nodes[b]] = tokens[b, : nodes[b]]
        if log is not None:
            log.append(nodes.tolist())
        rows = torch.full((B, N, table.shape[1]), torch.nan)
        for b in range(B):
            texts = []
            for n in range(int(nodes[b])):
                before = texts[parents[b, n]] if parents[b, n] >= 0 else cache[b, : start[b]].tolist()
                texts.append([*before, int(tokens[b, n])])
                rows[b, n] = table[place(texts[-1])]
        assert int((start + nodes).max()) <= S
        return rows

    return read


def branching(text, ends, room, *, seed, request):
    """The tree of the spec's tests, its nodes drawn by the counters of the draft role, in order."""
    uniform, tokens = philox.uniform(seed, philox.DRAFT, request, ends, len(PARENTS) - 1), torch.zeros(len(text), 1, dtype=torch.int64)
    rows, lines = [], [text]
    for n, parent in enumerate(PARENTS[1:], start=1):
        depth = lines[parent].shape[1] - text.shape[1]
        row = model("drafter")(shifted(lines[parent], text, ends), (ends + depth)[:, None])[:, 0]
        token = (uniform[:, n - 1, None] >= row.cumsum(1)).sum(1).clamp(max=2)
        tokens, lines = torch.cat([tokens, token[:, None]], 1), [*lines, torch.cat([lines[parent], token[:, None]], 1)]
    for line in lines:
        depth = line.shape[1] - text.shape[1]
        rows.append(model("drafter")(shifted(line, text, ends), (ends + depth)[:, None]))
    parents = torch.tensor(PARENTS).expand(len(text), -1)
    return tokens, parents, torch.full_like(ends, len(PARENTS)), torch.cat(rows, 1)


def shifted(line, text, ends):
    """The path's tokens moved from behind the buffer to behind each request's own end."""
    moved = line.clone()
    for b, end in enumerate(ends.tolist()):
        moved[b, end : end + line.shape[1] - text.shape[1]] = line[b, text.shape[1] :]
    return moved


class Counters(Tape):
    """The rng of one request: in every round the j-th draw of a role is the j-th number of that role, round and request."""

    def __init__(self, seed, request):
        self.seed, self.request, self.used = seed, request, set()

    def begin(self, position, role):
        self.position, self.role, self.coins, self.draws = position, role, 0, 0

    def number(self, role, ordinal):
        key = (role, self.position, ordinal)
        assert key not in self.used, "a number was used twice"
        self.used.add(key)
        with backend.use("torch"):  # one number at a time is a slow way to launch a kernel
            request, position = torch.tensor([self.request]), torch.tensor([self.position])
            return float(philox.uniform(self.seed, role, request, position, ordinal + 1)[0, ordinal])

    def bernoulli(self, probability):
        self.coins += 1
        return self.number(philox.ACCEPT, self.coins - 1) < probability

    def categorical(self, probabilities):
        self.draws += 1
        return Tape(token=[self.number(self.role, self.draws - 1)]).categorical(probabilities)
