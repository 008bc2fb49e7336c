r"""The suffix automaton of the text so far: the longest suffix that stood before, of any length, found token by token.

Paper: Hu et al., "SAM Decoding: Speculative Decoding via Suffix Automaton", 2024, arXiv:2411.10666;
the automaton: Blumer et al., "The smallest automaton recognizing the subwords of a text", 1985, TCS 40, Sec. 1.

Call two substrings of the text alike if they end in the same places. Of two that end in one common place, one is a suffix of the other;
so a class is a chain of suffixes of its longest member, down to where a still shorter one ends in more places: that one belongs to the
class which the *link* leads to. The suffixes of the whole text are therefore the classes on the way from its own class, which ends only at
$L$, along the links. The first link leads to the longest suffix that also ends elsewhere:

$$s^* = \text{longest suffix of } c_{:L} \text{ with an end } e < L, \qquad \text{draft} = c_{e\,:\,e+\gamma}.$$

Appending a token $a$ adds the class of the new text, and an edge $a$ to it from every suffix that $a$ never followed. At the first suffix
$u$ that it did follow, $ua$ ends here too. If $ua$ is not the longest of its class, the class is split: what is longer does not end here.

| name | paper | shape | meaning |
|---|---|---|---|
| `state` | | | the text and its classes; None is the empty text |
| `token` | $a$ | integer | what is appended |
| `gamma` | $\gamma$ | integer | the most tokens that are drafted |
| `last` | | bool | copy from the last earlier end in place of the first |

Deviations: the paper keeps the first end of each class; here a class carries all, so that the last can be had and everything be seen (the
paper's amortized constant time per token is what `fast` has). The paper's second automaton, of a fixed corpus, and its rule for choosing
between drafters by match length are left out.

Derives from: `prompt_lookup`, whose n-gram has a greatest length.
"""

from typing import NamedTuple

__all__ = ["extend", "draft"]


class Class(NamedTuple):
    longest: int  # the length of its longest substring
    ends: tuple  # where all its substrings end
    link: int  # the class of the longest suffix that ends in more places; -1 at the empty string, class 0
    edges: dict  # token to the class of the longest substring followed by it


class State(NamedTuple):
    text: tuple = ()
    classes: tuple = (Class(0, (), -1, {}),)
    whole: int = 0  # the class of the whole text


def extend(state, token):
    """The state after one more token; the old one stays as it was."""
    text, classes, whole = state or State()
    classes, new = list(classes), len(classes)
    classes.append(Class(len(text) + 1, (), 0, {}))

    def set_edge(at, to):
        classes[at] = classes[at]._replace(edges={**classes[at].edges, token: to})

    suffix = whole
    while suffix >= 0 and token not in classes[suffix].edges:
        set_edge(suffix, new)
        suffix = classes[suffix].link
    if suffix >= 0:
        target, length = classes[suffix].edges[token], classes[suffix].longest + 1
        if classes[target].longest > length:  # only its shorter substrings end here: they become a class of their own
            longer, target = target, len(classes)
            classes.append(classes[longer]._replace(longest=length))  # it ends where they did
            classes[longer] = classes[longer]._replace(link=target)
            while suffix >= 0 and classes[suffix].edges.get(token) == longer:
                set_edge(suffix, target)
                suffix = classes[suffix].link
        classes[new] = classes[new]._replace(link=target)
    suffix = new
    while suffix > 0:
        classes[suffix] = classes[suffix]._replace(ends=(*classes[suffix].ends, len(text) + 1))
        suffix = classes[suffix].link
    return State((*text, token), tuple(classes), new)


def draft(state, gamma, last=False):
    """At most gamma tokens that followed the longest suffix where it ended before; none if even the last token is new.

    >>> state = None
    >>> for token in [1, 2, 3, 1, 2, 4, 1, 2]:
    ...     state = extend(state, token)
    >>> draft(state, gamma=2), draft(state, gamma=2, last=True)          # "1 2" was followed by 3, later by 4
    ([3, 1], [4, 1])
    >>> draft(extend(state, 9), gamma=2), draft(None, gamma=2)
    ([], [])
    """
    text, classes, whole = state or State()
    repeated = classes[classes[whole].link] if text else classes[0]
    if not repeated.longest:
        return []
    end = repeated.ends[-2 if last else 0]  # the very last end is the text's own
    return list(text[end : end + gamma])
