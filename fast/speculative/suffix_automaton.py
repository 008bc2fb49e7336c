"""The suffix automaton on the host, in amortized constant time per token: flat lists of lengths and links, one dict of edges per state.

It is an algorithm of pointers, one text at a time, and runs beside the device: a request's automaton is extended on the host, and its
draft joins the batch. At most two states per token are kept; a state that is split has its edges copied, all else is constant.

The first end of a state is known when the state is made. The last end before the text's own is not: every token ends all suffixes on the
way along the links, a handful in ordinary text but as many as there are tokens in one that repeats a single token. So ends are entered only
when one asks for the last, newest first, each only up to where a newer one has passed.
"""

from numbers import Integral
from typing import NamedTuple

import torch

__all__ = ["extend", "draft"]


class Automaton:
    """States are numbers, 0 the empty string. The same text may be written again, and several texts may share one automaton."""

    def __init__(self) -> None:
        self.lengths = [0]  # of the longest substring of each state
        self.links = [-1]  # to the longest suffix that ends in more places
        self.edges: list[dict[int, int]] = [{}]
        self.at = 0  # the state of the text that is being written

    def append(self, token: int) -> list[int]:
        """Write one token. Returns, for each state that this made, the older state of which it is a copy, or -1."""
        lengths, links, edges, before = self.lengths, self.links, self.edges, self.at
        if token in edges[before]:  # another text went on like this
            self.at = edges[before][token]
            return [] if lengths[self.at] == lengths[before] + 1 else self._split(before, token)
        new = self.at = len(lengths)
        lengths.append(lengths[before] + 1)
        links.append(0)
        edges.append({})
        while before >= 0 and token not in edges[before]:
            edges[before][token] = new
            before = links[before]
        if before < 0:
            return [-1]
        links[new] = edges[before][token]
        if lengths[links[new]] == lengths[before] + 1:
            return [-1]
        copied = self._split(before, token)
        links[new], self.at = self.at, new
        return [-1, *copied]

    def _split(self, before: int, token: int) -> list[int]:
        """Give a state of its own to what `before` followed by `token` is, since longer substrings do not end here; go there."""
        longer, short = self.edges[before][token], len(self.lengths)
        self.lengths.append(self.lengths[before] + 1)
        self.links.append(self.links[longer])
        self.edges.append(self.edges[longer].copy())
        self.links[longer] = self.at = short
        while before >= 0 and self.edges[before].get(token) == longer:
            self.edges[before][token] = short
            before = self.links[before]
        return [longer]


class Text:
    """A text, its automaton, and where the substrings of each state end."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.automaton = Automaton()
        self.prefixes = [0]  # the state of each prefix of the text
        self.first, self.latest = [0], [0]  # per state; `latest` knows the ends up to `entered`
        self.entered = 0

    def append(self, token: int) -> None:
        self.tokens.append(token)
        for copied in self.automaton.append(token):
            self.first.append(len(self.tokens) if copied < 0 else self.first[copied])
            self.latest.append(0 if copied < 0 else self.latest[copied])
        self.prefixes.append(self.automaton.at)

    def last_end(self, state: int) -> int:
        """The last end of a state before the text's own."""
        links, latest = self.automaton.links, self.latest
        for end in range(len(self.tokens) - 1, self.entered, -1):
            suffix = self.prefixes[end]
            while suffix > 0 and latest[suffix] < end:
                latest[suffix] = end
                suffix = links[suffix]
        self.entered = len(self.tokens) - 1
        return latest[state]


class State(NamedTuple):
    """A text as it was when it had this length. Only the longest state of a text is alive: extending changes it in place."""

    text: Text
    length: int


def extend(state, token):
    """The state after one more token, an id, or after several, a list or a tensor `(n,)`. The old state is no longer of use."""
    text = _alive(state) if state is not None else Text()
    if isinstance(token, torch.Tensor):
        if token.ndim > 1 or token.is_floating_point() or token.is_complex():
            raise TypeError(f"token must be an id, or ids of shape (n,), not {tuple(token.shape)} of {token.dtype}")
        token = token.tolist()
    for each in [token] if isinstance(token, Integral) else token:
        text.append(each)
    return State(text, len(text.tokens))


def draft(state, gamma, last=False):
    """A list of at most gamma tokens that followed the longest suffix where it first (or last) ended before."""
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    if state is None or not state.length:
        return []
    text = _alive(state)
    repeated = text.automaton.links[text.automaton.at]
    if not repeated:
        return []
    end = text.last_end(repeated) if last else text.first[repeated]
    return text.tokens[end : end + gamma]


def _alive(state: State) -> Text:
    if len(state.text.tokens) != state.length:
        raise ValueError(f"state has {state.length} tokens and was extended to {len(state.text.tokens)}: go on from the newer one")
    return state.text
