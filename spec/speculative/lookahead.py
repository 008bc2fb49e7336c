r"""Lookahead decoding: a window of Jacobi iterates collects n-grams, and those that begin with the last token are verified as drafts.

Paper: Fu, Bailis, Stoica, Zhang, "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding", 2024, arXiv:2402.02057,
Alg. 2 (the step), 3 (greedy verification), 4 (sampling verification).

A window of $N - 1$ rows and $W$ columns holds guesses: row $j$ is a Jacobi iterate, older than row $j + 1$, and $a_{ji}$ stands $i + j$
places behind the current token $a_{00}$. It sees the text, $a_{00} \dots a_{0i}$, and its own column down to itself. One pass computes

$$b_i = \arg\max p(\cdot \mid \text{text}, a_{00} \dots a_{0i}, a_{1i} \dots a_{N-2,i}),$$

the newest iterate, and each column with its $b_i$ is an n-gram that the target itself has written, if in a doubtful context. It goes into a
pool under its first token. In the same pass the n-grams of the pool that begin with the current token are scored as drafts. Then the rows
move up, $b$ is the last one, and the window moves on by the tokens that were emitted.

| name | paper | shape | meaning |
|---|---|---|---|
| `W`, `N`, `G` | $W, N, G$ | integers, N at least 2 | columns of the window, length of an n-gram, n-grams kept per first token |
| `window` | $w$ | `(N - 1, W)` | guesses; `window[0, 0]` is the last token of the context |
| `pool` | $C$ | token -> list | the N - 1 tokens that followed it, each once, the latest last |
| `target` | $P_M$ | context -> `(V,)` | law of the next token after a context |

Deviations: the window starts with zeros (the paper: random tokens), and columns whose place was emitted come in again on the right; neither
choice changes the text. When a pool is full the n-gram that has not come up for the longest time is dropped: from memory, like the
algorithms' numbers. With an `rng` drafts are verified by `match.sequential`, the window stays greedy, as in the paper.
Derives from: speculative.jacobi, speculative.match.
"""

import numpy as np

from twofold.spec.speculative import greedy, match

__all__ = ["mask", "step", "decode"]


def mask(W, N, G):
    """Who sees whom in the one pass over window and candidates: row s is True at what token s sees, the committed text left out.

    The window row by row, then G candidates of N - 1 tokens: those see the current token, index 0, and their own n-gram up to themselves.

    >>> mask(2, 3, 1).astype(int).tolist()                          # a00 a01 / a10 a11 / c0 c1
    [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]]
    """
    row, column = np.divmod(np.arange((N - 1) * W), W)
    first_row = (row == 0) & (column <= column[:, None])                             # (S, S): S asks, S is seen
    own_column = (column == column[:, None]) & (row <= row[:, None])
    candidate, place = np.divmod(np.arange(G * (N - 1)), N - 1)
    own_ngram = (candidate == candidate[:, None]) & (place <= place[:, None])
    current = np.tile(np.arange((N - 1) * W) == 0, (len(place), 1))
    return np.block([[first_row | own_column, np.zeros_like(current.T)], [current, own_ngram]])


def step(target, context, window, pool, G, rng=None):
    """One pass: the emitted tokens, between 1 and N of them, and the window and pool of the next. Without `rng` everything is greedy."""
    if window[0, 0] != context[-1]:
        raise ValueError(f"window[0, 0] must be the last token of the context, {context[-1]}, not {window[0, 0]}")
    text, W = list(context[:-1]), window.shape[1]
    newest = [greedy.likeliest(target([*text, *window[0, : i + 1], *window[1:, i]])) for i in range(W)]
    emitted = _verify(target, context, pool.get(context[-1], []), rng)
    moved = np.roll(np.vstack([window[1:], newest]), 1 - len(emitted), axis=1)       # (N - 1, W)
    current = np.arange(moved.size).reshape(moved.shape) == 0
    return emitted, np.where(current, emitted[-1], moved), _collected(pool, np.vstack([window, newest]).T.tolist(), G)


def decode(target, prompt, W, N, G, n, rng=None):
    """The loop: n tokens after a prompt of at least one, and the number of target calls. Without `rng` the text is the greedy one.

    >>> cycle = lambda context: np.eye(3)[(context[-1] + 1) % 3]     # a target that counts modulo 3
    >>> decode(cycle, [0], W=3, N=3, G=2, n=8)
    ([1, 2, 0, 1, 2, 0, 1, 2], 5)
    >>> decode(cycle, [0], W=3, N=3, G=0, n=8)                       # nothing is ever drafted
    ([1, 2, 0, 1, 2, 0, 1, 2], 8)
    """
    if W < 1 or N < 2 or len(prompt) == 0:
        raise ValueError(f"W must be at least 1, N at least 2 and the prompt a token long, not {W}, {N} and {len(prompt)}")
    text, pool, calls = list(prompt), {}, 0
    window = np.where(np.arange((N - 1) * W).reshape(N - 1, W) == 0, prompt[-1], 0)
    while len(text) < len(prompt) + n:
        emitted, window, pool = step(target, text, window, pool, G, rng)
        text, calls = text + emitted, calls + 1
    return text[len(prompt) : len(prompt) + n], calls


def _verify(target, context, candidates, rng):
    """Follow the candidates that agree with the target, one place after the other; the token that none of them has ends the round."""
    emitted = []
    while True:
        p = target([*context, *emitted])
        drafts = list(dict.fromkeys(candidate[0] for candidate in candidates if candidate))   # distinct, in the pool's order
        token = greedy.likeliest(p) if rng is None else match.sequential(p, drafts, rng)[0]
        emitted = [*emitted, token]
        if token not in drafts:
            return emitted
        candidates = [candidate[1:] for candidate in candidates if candidate[0] == token]


def _collected(pool, ngrams, G):
    """The pool with these n-grams as the latest under their first tokens, and at most G under each."""
    for first, *rest in ngrams:
        known = [*(each for each in pool.get(first, []) if each != rest), rest]
        pool = pool | {first: known[max(0, len(known) - G) :]}
    return pool
