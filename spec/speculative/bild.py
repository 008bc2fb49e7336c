r"""Big Little Decoder: a small model writes until it is unsure, a large one reads it over, and takes back what it finds too unlikely.

Paper: Kim, Mangalam, Moon, Malik, Mahoney, Gholami, Keutzer, "Speculative Decoding with Big Little Decoder", 2023, arXiv:2302.07863.

Two thresholds, both models greedy. *Fallback*: the small model hands over at the first place where $\max q < $ `fallback`. *Rollback*: one
call of the large model scores what was written since; at the first token with

$$-\ln p_i(x_i) > \text{rollback}$$

the text is cut and continued by $\arg\max p_i$. If there is none, the large model writes the token that the small one was unsure of.
So every token is the large model's first choice, or one that it gives $e^{-\text{rollback}}$ at least. With rollback 0 the
text is the large model's own.

| name | paper | shape | meaning |
|---|---|---|---|
| `small`, `large` | $p_S, p_L$ | context -> `(V,)` | the next token's law after a context |
| `fallback` | $\alpha_{FB}$ | number | least confidence with which the small model goes on; 0: always, above 1: never |
| `rollback` | $\alpha_{RB}$ | number, at least 0 | greatest surprise that the large model lets pass; infinite: any |
| `n` | | integer | new tokens |

Deviations: the large model also reads the end of the text, which the paper's loop leaves to whoever stops it; without that the last tokens
would be the small model's at any threshold. Ties go to the lowest id. The paper also trains the small model on the large one's text.
"""

import numpy as np

__all__ = ["generate"]


def generate(small, large, prompt, fallback, rollback, n):
    """The new tokens, and the number of calls of the large model.

    >>> unsure, certain = (lambda context: np.array([0.6, 0.4])), (lambda context: np.array([0.1, 0.9]))
    >>> generate(unsure, certain, [], fallback=0.5, rollback=1, n=4)              # 0.1 < 1/e: each is taken back, each costs a call
    ([1, 1, 1, 1], 4)
    >>> generate(unsure, certain, [], fallback=0.5, rollback=3, n=4), generate(unsure, certain, [], fallback=0.7, rollback=3, n=4)
    (([0, 0, 0, 0], 1), ([1, 1, 1, 1], 4))
    """
    new, read, calls = [], 0, 0  # read: how much of the text the large model stands by
    while read < n:
        while len(new) < n and (q := small([*prompt, *new])).max() >= fallback:
            new = [*new, int(np.argmax(q))]
        p = [large([*prompt, *new[:i]]) for i in range(read, len(new) + 1)]  # one call
        surprising = [not row[x] >= np.exp(-rollback) for row, x in zip(p, new[read:])]
        first = [*surprising, True].index(True)
        if np.any(p[first] != p[first]):
            raise ValueError(f"large gave {p[first]} after token {read + first}: probabilities must be numbers")
        new, calls = [*new[: read + first], int(np.argmax(p[first]))], calls + 1
        read = len(new)
    return new[:n], calls
