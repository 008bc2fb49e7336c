r"""Jacobi decoding: guess all tokens at once, correct all of them at once, and stop when nothing changes any more.

Paper: Santilli, Severino, Postolache, Maiorca, Mancusi, Marin, Rodolà, "Accelerating Transformer Inference for Translation via Parallel
Decoding", 2023, arXiv:2305.10427, Sec. 3 (parallel Jacobi decoding).

Greedy decoding of $n$ tokens is the solution of $n$ equations $y_i = \arg\max p(\cdot \mid c\,y_{<i})$, solved one after another.
Jacobi's method solves them together: from any guess $y^0$,

$$y^{t+1}_i = \arg\max p(\cdot \mid c\,y^t_{<i}) \qquad \text{for all } i < n, \text{ in one call of the target.}$$

An equation reads only earlier unknowns. So $y^1_0$ is right whatever the guess, then $y^2_1$, and after $t$ iterations the first $t$
tokens are final: at most $n$ iterations, fewer where a guess happens to be right in its place. The only fixed point is the greedy text.
A token that happens to be right *behind* a wrong one is not final: it will be computed from another prefix yet.

| name | paper | shape | meaning |
|---|---|---|---|
| `target` | $p_\theta$ | context -> `(V,)` | scores of the next token after a context, probabilities or logits |
| `prompt` | $x, y_{1:j}$ | sequence of ids | what has been written |
| `guess` | $y^t$ | `(n,)` | tokens that might follow the prompt |
| `n` | $m$ | integer | how many tokens to write |

Deviations: the first guess is all zeros (the paper: padding tokens). `decode` stops once nothing has changed that the last token reads,
one iteration before the whole block would repeat itself. With `eos` the last token is the block's first end-of-text token; one that
stands behind tokens still changing ends nothing. The section is from memory.
Derives from: speculative.greedy.
"""

from twofold.spec.speculative import greedy

__all__ = ["iterate", "decode"]


def iterate(target, prompt, guess):
    """The definition: one iteration, every token computed from the guesses before it `(n,)`.

    >>> import numpy as np
    >>> cycle = lambda context: np.eye(3)[(context[-1] + 1) % 3]             # a target that counts modulo 3
    >>> iterate(cycle, [0], [0, 0, 0]), iterate(cycle, [0], [1, 1, 1]), iterate(cycle, [0], [])
    ([1, 1, 1], [1, 2, 2], [])
    """
    return [greedy.likeliest(target([*prompt, *guess[:i]])) for i in range(len(guess))]


def decode(target, prompt, n, eos=None):
    """Iterate from zeros until nothing can change: the n tokens of greedy decoding, fewer if `eos` ends them, and the iterations it took.

    >>> import numpy as np
    >>> cycle = lambda context: np.eye(3)[(context[-1] + 1) % 3]
    >>> decode(cycle, [0], 4), decode(cycle, [0], 4, eos=2), decode(cycle, [0], 0)
    (([1, 2, 0, 1], 4), ([1, 2], 2), ([], 0))
    >>> decode(lambda context: np.array([1.0, 0.0]), [], 4)                  # the guess was right: one iteration shows it
    ([0, 0, 0, 0], 1)
    """
    tokens, iterations, end, settled = [0] * n, 0, n, n == 0
    while not settled:
        previous, tokens = tokens, iterate(target, prompt, tokens)
        iterations += 1
        end = tokens.index(eos) + 1 if eos in tokens else n
        settled = tokens[: end - 1] == previous[: end - 1]  # the last token reads no others
    return tokens[:end], iterations
