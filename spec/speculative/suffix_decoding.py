r"""Suffix decoding: count what followed every suffix in earlier outputs, and draft the tree that is likeliest to be accepted.

Paper: Oliaro, Jia, Campos, Qiao, "SuffixDecoding: Extreme Speculative Decoding for Emerging AI Applications", 2024,
arXiv:2411.04975.

A trie holds every substring $s$ of the texts that were written into it, with the number of times it occurs. Let the last $m$ tokens of the
context stand in it. Then what follows them there is a guess at what follows now, and each node below, $s$, is worth the part of the
occurrences that go on like this:

$$D(s) = 1 \text{ at the match}, \qquad D(sa) = D(s)\,\frac{\mathrm{count}(sa)}{\mathrm{count}(s)}.$$

From the match a tree grows by the best child of its frontier until it has $\lfloor\alpha m\rfloor$ nodes: a long match is good evidence
and earns a large draft. $D$ never increases along a path, so this is the best connected tree of that size. Its score $\sum D$ estimates how
many of its tokens will be accepted. Over all $m$ and all tries, the tree of largest score is drafted.

| name | paper | shape | meaning |
|---|---|---|---|
| `trie` | | | what followed each substring, how often, and the text being written; None is empty |
| `tokens` | | `(n,)` | what the text goes on with; -1 ends it, and another one begins |
| `tries` | | | the request's own, then that of past outputs |
| `context` | | `(L,)` | prompt and text so far |
| `alpha` | $\alpha$ | number | drafted tokens per matched token |
| `max_match` | | integer | the longest match that is looked for |

Deviations: the fraction in $D$ is that of the released code. The paper's, as remembered, divides by the sum over the siblings in place of
the parent's count; they differ where a text ends, which counts here as going on with nothing. Ties are ours: in a tree the shallower node,
the older parent, the lower id; among trees the longer match, then the earlier trie. The code's offset to $\alpha m$ and its least
probability are left out.
"""

from collections import Counter
from fractions import Fraction
from math import floor
from typing import NamedTuple

__all__ = ["extend", "draft"]


class Trie(NamedTuple):
    followed: dict  # substring to a Counter of the tokens that follow it
    text: tuple = ()  # the text that is being written

    def count(self, substring):
        return self.followed.get(substring[:-1], Counter())[substring[-1]]


def extend(trie, tokens):
    """The trie after these tokens; the old one stays as it was.

    >>> trie = extend(None, [1, 2, 1, -1, 2, 1])
    >>> trie.count((1,)), trie.count((2, 1)), trie.count((1, 2)), trie.count((1, 2, 1, 2))       # nothing crosses the -1
    (3, 2, 1, 0)
    """
    followed, text = trie or Trie({})
    followed = {substring: counts.copy() for substring, counts in followed.items()}
    for token in tokens:
        if token >= 0:
            for start in range(len(text) + 1):  # all suffixes of the text, down to the empty one, are followed by the token
                followed.setdefault(text[start:], Counter())[token] += 1
        text = (*text, token) if token >= 0 else ()
    return Trie(followed, text)


def draft(tries, context, alpha, max_match):
    """The tree: tokens and parents of its nodes, the root first with token -1, and D of each. A root alone is no draft.

    >>> own = extend(None, [1, 2, 3, 1, 2, 4, 1, 2])
    >>> draft([own], [1, 2, 3, 1, 2, 4, 1, 2], alpha=1, max_match=8)      # "1 2" was followed by 3 and by 4, and is now by nothing
    ([-1, 3, 4], [-1, 0, 0], [Fraction(1, 1), Fraction(1, 3), Fraction(1, 3)])
    >>> draft([None, own], [9], alpha=1, max_match=8)
    ([-1], [-1], [Fraction(1, 1)])
    """
    context, best = tuple(context), ([-1], [-1], [Fraction(1)])
    for m in range(min(max_match, len(context)), 0, -1):
        for trie in tries:
            if trie and trie.count(context[-m:]):
                tree = grow(trie, context[-m:], floor(alpha * m))
                best = max(best, tree, key=lambda each: sum(each[2]))  # of equals the first
    return best


def grow(trie, match, nodes):
    """The best connected tree of at most this many nodes below the match."""
    tokens, parents, scores, substrings = [-1], [-1], [Fraction(1)], [match]
    for _ in range(nodes):
        frontier = [
            (-scores[parent] * Fraction(count, trie.count(substring)), len(substring), parent, token)
            for parent, substring in enumerate(substrings)
            for token, count in trie.followed.get(substring, {}).items()
            if (*substring, token) not in substrings
        ]
        if not frontier:
            break
        score, _, parent, token = min(frontier)
        tokens, parents = [*tokens, token], [*parents, parent]
        scores, substrings = [*scores, -score], [*substrings, (*substrings[parent], token)]
    return tokens, parents, scores
