r"""Speculative sampling: the loop around a verifier. A cheap model drafts, the target scores the whole draft in one call.

Paper: Chen, Borgeaud, Irving, Lespiau, Sifre, Jumper, "Accelerating Large Language Model Decoding with Speculative Sampling", 2023,
arXiv:2302.01318, Alg. 2, Thm. 1.

One round draws $x_i \sim q(\cdot \mid c\,x_{<i})$ for $i < \gamma$, keeping the rows, asks the target for
$p(\cdot \mid c\,x_{<i})$, $i \le \gamma$ (a single forward pass), and verifies. It emits between one and $\gamma+1$ tokens, and their
joint law is the target's: $\Pr(\text{text}) = \prod_t p(\text{text}_t \mid \text{text}_{<t})$, exactly, over any number of rounds.

| name | paper | shape | meaning |
|---|---|---|---|
| `target`, `drafter` | $q$, $p$ (swapped!) | context -> `(V,)` | the next token's law after a context, warped as it is sampled |
| `context`, `prompt` | $x_0 \dots x_t$ | sequence of ids | what has been written so far |
| `gamma` | $K$ | integer | tokens drafted per round, 0 or more |
| `verify` | Alg. 2, line 9 | | any verifier with the signature of `chain.verify` |

Deviations: the last round drafts only as many tokens as can still be used. An end-of-text token cuts the round right after it,
wherever in the round it stands: what follows it was drawn but is not part of the text.
Cache contract, for models that keep one: after a round both caches must cover exactly the context and the kept draft tokens, not the
round's last token. When all gamma were kept the drafter has never read the last of them, so its next call reads two tokens.
Derives from: speculative.chain.
"""

from twofold.spec.speculative import chain

__all__ = ["step", "generate"]


def step(target, drafter, context, gamma, rng, verify=chain.verify):
    """One round: the list of emitted tokens, between one and gamma + 1 of them."""
    context, draft, q = list(context), [], []
    for _ in range(gamma):
        row = drafter(context + draft)                                # (V,)
        draft, q = draft + [rng.categorical(row)], q + [row]
    p = [target(context + draft[:i]) for i in range(gamma + 1)]       # one call of the target        (gamma + 1, V)
    kept, token = verify(p, q, draft, rng)
    return draft[:kept] + [token]


def generate(target, drafter, prompt, gamma, max_new, rng, eos=None, verify=chain.verify):
    """The loop: the new tokens (at most `max_new`, the prompt excluded) and the number of target calls.

    >>> import numpy as np
    >>> from twofold.spec.rng import Sampler
    >>> cycle = lambda context: np.eye(3)[(context[-1] + 1) % 3]             # a target that counts modulo 3, and its equal
    >>> generate(cycle, cycle, [0], gamma=2, max_new=7, rng=Sampler(np.random.default_rng(0)))
    ([1, 2, 0, 1, 2, 0, 1], 3)
    >>> generate(cycle, cycle, [0], gamma=2, max_new=7, rng=Sampler(np.random.default_rng(0)), eos=2)
    ([1, 2], 1)
    >>> generate(cycle, cycle, [0], gamma=2, max_new=0, rng=None)
    ([], 0)
    """
    new, calls = [], 0
    while len(new) < max_new and eos not in new:
        useful = min(gamma, max_new - len(new) - 1)  # the verifier adds one of its own
        emitted = step(target, drafter, list(prompt) + new, useful, rng, verify)
        new = new + (emitted[: emitted.index(eos) + 1] if eos in emitted else emitted)
        calls += 1
    return new, calls
