r"""The decoding loop: whoever drafts, whoever verifies, and caches that hold exactly what was kept.

Paper: Chen et al., 2023, arXiv:2302.01318, Alg. 2 (the loop); Miao et al., 2023, arXiv:2305.09781, Sec. 4 (trees and their cache).

A round: `propose` grows a tree on the last written token (a chain is a tree without branches, a root alone is plain decoding). The target
reads it in one pass. `warp` makes each row the law to sample from, given *all* the text before it, so that penalties and grammars advance
along the draft. `verify` keeps a path and draws the token that follows. An end token ends the text, wherever in the round it stands.

The cache contract: **a cache holds every token written but the last.** The last one is the root of the next tree, so the next pass reads it
first. After a round the target keeps the entries of the root and of the accepted path, in this order: for a chain that is moving an end
mark, for a tree a gather. The token that ended the round was in no pass, hence in no cache. A drafter may have read tokens that were
refused, and never has read the last one that it drafted: it goes back to the longest prefix that its cache shares with the text, and
reads on from there, one token after a refusal, two where all was kept. For a recurrent model the entry of a token is the state after it.

| name | shape | meaning |
|---|---|---|
| `score`, `keep` | context, tokens, parents -> `(N, V)`; path | the target's pass over a tree; told afterwards which path was kept |
| `target`, `drafter` | context -> `(V,)` | a model without a cache: the row after a text |
| `read` | cache `(T, ...)`, tokens, parents -> `(N, V)`, `(N, ...)` | a model with a cache, None at first: rows and entries of the nodes |
| `propose` | context, room, rng -> tokens `(N,)`, parents `(N,)`, q | q `(N, V)`: what each node's children were drawn from, if drawn |
| `verify` | p, q, tokens, parents, rng -> path, token | any tree verifier; `on_chain` makes one of a chain verifier |
| `warp` | row, context -> `(V,)` | from the model's row to the law that is sampled; None takes the row as it is |

Deviations: the papers describe caches in words. `room` is how many drafted tokens can still be used; a deeper tree is cut, not refused.
Derives from: speculative.sampling, speculative.tree.
"""

import numpy as np

from twofold.spec.speculative import tree

__all__ = ["generate", "uncached", "cached", "draft_model", "remembering", "on_chain"]


def nothing(*_): ...


def generate(score, propose, verify, prompt, max_new, rng, eos=None, warp=lambda row, text: row, keep=nothing, report=nothing):
    """The definition: the new tokens, at most `max_new`, and the number of passes. `report` is told the new tokens after every pass.

    >>> from twofold.spec.speculative import greedy
    >>> cycle = lambda context: np.eye(3)[(context[-1] + 1) % 3]                         # counts modulo 3
    >>> guess = lambda context, room, rng: ([-1, 1, 2], [-1, 0, 1], None)                # after any token: 1 2
    >>> generate(uncached(cycle), guess, on_chain(lambda p, draft, rng: greedy.verify(p, draft)), [0], 7, rng=None)
    ([1, 2, 0, 1, 2, 0, 1], 3)
    """
    new, passes = [], 0
    while len(new) < max_new and eos not in new:
        context = [*prompt, *new]
        tokens, parents, q = propose(context, max_new - len(new) - 1, rng)          # the verifier adds a token of its own
        rows = score(context, tokens, parents)                                      # one pass                   (N, V)
        p = [warp(row, context + line) for row, line in zip(rows, _lines(tokens, parents))]
        path, token = verify(p, q, tokens, parents, rng)
        emitted = [tokens[node] for node in path] + [token]
        emitted = emitted[: emitted.index(eos) + 1] if eos in emitted else emitted
        new, passes = (new + emitted)[:max_new], passes + 1
        keep(path)
        report(new)
    return new, passes


def uncached(target):
    """The `score` of a model without a cache: it reads the whole text for every node."""
    return lambda context, tokens, parents: [target(context + line) for line in _lines(tokens, parents)]


def cached(read, prompt):
    """`score` and `keep` of a model with a cache, which reads the prompt, at least one token, but for its last token at once."""
    cache = read(None, prompt[:-1], range(-1, len(prompt) - 2))[1] if len(prompt) > 1 else None
    entries = None  # of the last pass
    def score(context, tokens, parents):
        nonlocal entries
        rows, entries = read(cache, [context[-1], *tokens[1:]], parents)
        return rows
    def keep(path):
        nonlocal cache
        cache = _joined(cache, tree.commit(entries, path))
    return score, keep


def draft_model(drafter, gamma):
    """A `propose` that draws a chain of at most gamma tokens from a model."""
    def propose(context, room, rng):
        draft, q = [], []
        for _ in range(min(gamma, room)):
            q.append(drafter(context + draft))
            draft.append(rng.categorical(q[-1]))
        return [-1, *draft], range(-1, len(draft)), [*q, None]                      # nobody drew a child of the last node
    return propose


def remembering(read):
    """A model with a cache as one without, context -> row: it goes back to what its cache and the text share, and reads on."""
    cache, seen = None, []  # the entries, and the tokens that they belong to
    def row(context):
        nonlocal cache, seen
        shared = int(np.argmin([*map(np.equal, seen, context[:-1]), False]))        # the last token is read anew: its row is wanted
        cache = cache[:shared] if shared else None
        rows, entries = read(cache, context[shared:], range(-1, len(context) - shared - 1))
        cache, seen = _joined(cache, entries), list(context)
        return rows[-1]
    return row


def on_chain(verify):
    """A chain verifier as a verifier of trees without branches; one without q, `(p, draft, rng)`, where there is no q."""
    def verify_tree(p, q, tokens, parents, rng):
        kept, token = verify(p, tokens[1:], rng) if q is None else verify(p, q[:-1], tokens[1:], rng)
        return list(range(1, kept + 1)), token
    return verify_tree


def _lines(tokens, parents):
    """The drafted tokens on the way to each node, the root's own left out."""
    return [[tokens[n] for n in np.flatnonzero(line)[1:]] for line in tree.mask(parents)]


def _joined(cache, entries):
    return entries if cache is None else np.concatenate([cache, entries])
