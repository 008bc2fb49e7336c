r"""Staged speculation: speculate the drafter too. What a verifier emits for a model is a draft of that model's law.

Paper: Spector, Ré, "Accelerating LLM Inference with Staged Speculative Decoding", 2023, arXiv:2308.04623; Chen et al., "Cascade Speculative
Drafting for Even Faster LLM Inference", 2023, arXiv:2312.11462 (vertical cascade); Sun et al., "TriForce", 2024, arXiv:2404.11912.

Let a small model $q_1$ draft for a larger one, $q_2$, and verify with any lossless rule. However many tokens come out, each has the law
$q_2$ given those before it, exactly as if $q_2$ had drawn them one by one:

$$\Pr(x_i \mid x_{<i}) = q_2(x_i \mid x_{<i}).$$

So they are a draft for the target $p$, and they are verified with the rows of $q_2$. That $q_1$ guessed them is forgotten.

| name | paper | shape | meaning |
|---|---|---|---|
| `models` | $q_1, q_2, \dots$ | context -> `(V,)` each | the smallest first; the last one's law is the draft's |
| `lengths` | $k_1, k_2, \dots$ | integers, one per model | tokens that each stage hands to the next |
| `context` | | sequence of ids | what has been written so far |
| `verify` | | | any lossless verifier with the signature of `chain.verify` |

Deviations: one rule for every stage, where the papers mix trees, retrieval and sparse caches. A stage goes on, round after round, until it
has its number of tokens, and is cut there: by place, never by what the tokens are. The horizontal cascade of Chen et al. (a smaller model
the further ahead) needs no code: a drafter may be another model at every place, as long as each row is the one drawn from.
Derives from: speculative.chain, speculative.sampling.
"""

from twofold.spec.speculative import chain

__all__ = ["draft"]


def draft(models, context, lengths, rng, verify=chain.verify):
    """`lengths[-1]` tokens of the law of `models[-1]`, and its rows `(lengths[-1], V)` for the next verifier.

    The smallest model has nobody to draft for it: its rounds verify nothing and draw one token each.

    >>> import numpy as np
    >>> from twofold.spec.rng import Tape
    >>> fair, certain = (lambda context: np.array([0.5, 0.5])), (lambda context: np.array([0.0, 1.0]))
    >>> tokens, rows = draft([fair, certain], [], [1, 2], Tape(accept=[0.0, 0.0], token=[0.2, 0.9, 0.9, 0.9]))
    >>> tokens, [row.tolist() for row in rows]       # 0 was guessed and refused; then 1 was guessed, kept, and cut off behind
    ([1, 1], [[0.0, 1.0], [0.0, 1.0]])
    >>> draft([fair], [], [0], rng=None)
    ([], [])
    """
    *smaller, model = models
    tokens, rows = [], []
    while len(tokens) < lengths[-1]:
        text = [*context, *tokens]
        guess, q = draft(smaller, text, lengths[:-1], rng, verify) if smaller else ([], [])
        p = [model([*text, *guess[:i]]) for i in range(len(guess) + 1)]  # one call of the model
        kept, token = verify(p, q, guess, rng)
        tokens, rows = [*tokens, *guess[:kept], token], [*rows, *p[: kept + 1]]
    return tokens[: lengths[-1]], rows[: lengths[-1]]
