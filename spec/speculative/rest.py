r"""REST: look the end of the context up in a large text, and draft the tree of its commonest continuations there.

Paper: He, Zhong, Cai, Lee, He, "REST: Retrieval-Based Speculative Decoding", 2023, arXiv:2311.08252, Sec. 3.

The text, a corpus of code or of conversations, is fixed. Its suffixes, sorted, are its *suffix array*: all places where a string stands are
one run of it, found by bisection, and so are all places where the string goes on in one way. Take the longest end of the context, of at
most $n_{\max}$ tokens, that the text goes on from,

$$S = \{\, c_{i+n\,:\,i+n+d} \mid c_{i:i+n} = \text{the last } n \text{ tokens of the context} \,\},$$

and count every prefix of the continuations in $S$. The prefixes of greatest count are the drafted tree. A prefix counts at least as much as
what it begins, so this is a connected tree, and the best one of its size.

| name | paper | shape | meaning |
|---|---|---|---|
| `tokens` | | `(T,)` | the texts one behind the other, -1 behind each |
| `store` | $D$ | | `tokens` and the places in it, sorted by the suffixes that start there |
| `context` | $s$ | `(L,)` | prompt and text so far |
| `n_max` | $n_{\max}$ | integer | the longest end of the context that is looked up |
| `depth` | $m$ | integer | the longest continuation |
| `nodes` | $c$ | integer | the most tokens that are drafted |

Deviations: a match at the end of a text, from which nothing goes on, is none, so that a shorter one may be found. Ties are ours: the
shallower prefix, then the lexicographically lower one. The released program looks at a part of the continuations where there are many, as
remembered; here all count.

Derives from: `suffix_decoding`, with one fixed text, the longest match alone, and nothing but counts.
"""

from bisect import bisect_left, bisect_right
from collections import Counter

__all__ = ["index", "draft"]


def index(tokens):
    """The store: the tokens, and their suffix array.

    >>> index([2, 1, 2, -1])                                             # -1, then 1 2 -1, then 2 -1, then 2 1 2 -1
    ((2, 1, 2, -1), (3, 1, 2, 0))
    """
    tokens = tuple(tokens)
    return tokens, tuple(sorted(range(len(tokens)), key=lambda place: tokens[place:]))


def draft(store, context, n_max, depth, nodes):
    """The tree: tokens and parents of its nodes, the root first with token -1, and how often each stands there.

    >>> store = index([1, 2, 3, -1, 1, 2, 4, -1, 9, 2, 4, 4, -1])
    >>> draft(store, [0, 1, 2], n_max=3, depth=2, nodes=3)               # "0 1 2" is new; "1 2" was followed by 3 and by 4
    ([-1, 3, 4], [-1, 0, 0], [2, 1, 1])
    >>> draft(store, [0, 2], n_max=3, depth=2, nodes=2)                  # "2" by 3, by 4, and by 4 4
    ([-1, 4, 3], [-1, 0, 0], [3, 2, 1])
    >>> draft(store, [0], n_max=3, depth=2, nodes=3)
    ([-1], [-1], [0])
    """
    for n in range(min(n_max, len(context)), 0, -1):
        counts = Counter(prefix for after in continuations(store, tuple(context[-n:]), depth) for prefix in prefixes(after))
        if counts:
            drafted = [(), *sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix), prefix))[:nodes]]
            counts[()] = sum(counts[prefix] for prefix in counts if len(prefix) == 1)
            tokens = [-1, *(prefix[-1] for prefix in drafted[1:])]
            parents = [-1, *(drafted.index(prefix[:-1]) for prefix in drafted[1:])]
            return tokens, parents, [counts[prefix] for prefix in drafted]
    return [-1], [-1], [0]


def continuations(store, match, depth):
    """What follows each occurrence of the match, at most `depth` tokens and up to the end of its text."""
    tokens, places = store
    n = len(match)
    start = lambda place: tokens[place : place + n]
    for place in places[bisect_left(places, match, key=start) : bisect_right(places, match, key=start)]:
        after = tokens[place + n : place + n + depth]
        yield after[: after.index(-1)] if -1 in after else after


def prefixes(after):
    return [after[:end] for end in range(1, len(after) + 1)]
