"""Suffix decoding on the host: a suffix automaton with counts in place of a trie, and one candidate tree per state that matches.

Substrings that end in the same places have the same count and the same continuations, so the automaton's states stand for all nodes of
the trie: two states per token, whatever the depth, where a trie keeps a node per substring. Writing a token raises the counts of all
suffixes, one step per state along the links: a handful in ordinary text, as many as there are tokens in one that repeats a single token.

The ratios telescope: D is the node's count over the match's, so a tree grows by comparing integers, and its score is one fraction. Of the
matches that share a state the longest has the same continuations and the most nodes to spend. A match of m can score no more than
alpha m, so the search ends where that is not more than the best score.
"""

import heapq
from math import floor
from typing import NamedTuple

import torch

from twofold.fast.speculative.suffix_automaton import Automaton

__all__ = ["extend", "draft"]


class Texts:
    """The automaton of all texts written so far, and how often the substrings of each state occur."""

    def __init__(self) -> None:
        self.automaton = Automaton()
        self.counts = [0]
        self.written = 0

    def append(self, token: int) -> None:
        self.written += 1
        if token < 0:
            self.automaton.at = 0
            return
        for copied in self.automaton.append(token):
            self.counts.append(0 if copied < 0 else self.counts[copied])
        counts, links, suffix = self.counts, self.automaton.links, self.automaton.at
        while suffix > 0:
            counts[suffix] += 1
            suffix = links[suffix]

    def matches(self, context: list[int]) -> list[tuple[int, int]]:
        """The longest suffix of the context in each state that holds one, longest first: (its length, the state)."""
        lengths, links, edges = self.automaton.lengths, self.automaton.links, self.automaton.edges
        at = length = 0
        for token in context:
            while at and token not in edges[at]:
                at = links[at]
                length = lengths[at]
            if token in edges[at]:
                at = edges[at][token]
                length += 1
        found = []
        while at:
            found.append((length, at))
            at = links[at]
            length = lengths[at]
        return found

    def grow(self, match: int, nodes: int) -> tuple[list[int], list[int], list[int]]:
        """Tokens, parents and counts of the best tree below a state; the root is the state itself."""
        edges, counts = self.automaton.edges, self.counts
        tokens, parents, worth = [-1], [-1], [counts[match]]
        frontier = [(-counts[to], 1, 0, token, to) for token, to in edges[match].items()] if nodes > 0 else []
        heapq.heapify(frontier)
        while frontier and len(tokens) <= nodes:
            count, depth, parent, token, state = heapq.heappop(frontier)
            node = len(tokens)
            tokens.append(token)
            parents.append(parent)
            worth.append(-count)
            for following, to in edges[state].items():
                heapq.heappush(frontier, (-counts[to], depth + 1, node, following, to))
        return tokens, parents, worth


class State(NamedTuple):
    """A trie as it was when so many tokens had been written. Only the longest is alive: extending changes it in place."""

    texts: Texts
    written: int


def extend(trie, tokens):
    """The trie after these tokens, a list or a tensor `(n,)`; -1 ends a text. The old trie is no longer of use."""
    texts = _alive(trie) if trie is not None else Texts()
    for token in _ids(tokens, "tokens"):
        texts.append(token)
    return State(texts, texts.written)


def draft(tries, context, alpha, max_match):
    """Lists of tokens, parents and D of the best tree's nodes, the root first with token -1; a root alone is no draft."""
    if not (alpha >= 0 and max_match >= 0):
        raise ValueError(f"alpha and max_match must be at least 0, not {alpha} and {max_match}")
    context = _ids(context, "context")
    context = context[max(0, len(context) - max_match) :]
    alive = [_alive(trie) for trie in tries if trie is not None]
    matches = [(m, -order, state) for order, texts in enumerate(alive) for m, state in texts.matches(context)]
    best, total, count = ([-1], [-1], [1]), 0, 1  # the score of the best tree is total / count
    for m, order, match in sorted(matches, reverse=True):
        if floor(alpha * m) * count <= total:
            break
        tree = alive[-order].grow(match, floor(alpha * m))
        counts = tree[2]
        score = sum(counts) - counts[0]
        if score * count > total * counts[0]:
            best, total, count = tree, score, counts[0]
    tokens, parents, counts = best
    return tokens, parents, [each / count for each in counts]


def _ids(tokens, name: str) -> list[int]:
    if isinstance(tokens, torch.Tensor):
        if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex():
            raise TypeError(f"{name} must be a list of ids, or ids of shape (n,), not {tuple(tokens.shape)} of {tokens.dtype}")
        return tokens.tolist()
    return [int(token) for token in tokens]


def _alive(trie: State) -> Texts:
    if trie.texts.written != trie.written:
        raise ValueError(f"the trie has {trie.written} tokens and was extended to {trie.texts.written}: go on from the newer one")
    return trie.texts
