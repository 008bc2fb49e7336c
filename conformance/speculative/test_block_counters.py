"""Which draw may use which random number again? The exact law of several rounds whose uniforms are named by counters.

A uniform that is asked twice answers consistently: what the first question told of it (u < 1/3, say) conditions the second. So a counter
is the interval in which its number is known to lie, and every question halves it. Where each draw has a counter of its own, intervals
are always [0, 1) and the text has the target's law.
"""

from fractions import Fraction

import numpy as np
from hypothesis import given

from twofold.conformance.law import autoregressive, completed, law, models
from twofold.spec.speculative import block, chain

F = Fraction


class Uniforms:
    """Uniform numbers by name, under an enumerating rng."""

    def __init__(self, rng):
        self.rng, self.known = rng, {}

    def draw(self, name, probabilities):
        """The outcome into whose share of [0, 1) the number of this name falls."""
        low, high = self.known.get(name, (F(0), F(1)))
        edges = [sum(probabilities[:v], F(0)) for v in range(len(probabilities) + 1)]
        shares = [(max(low, edges[v]), min(high, edges[v + 1])) for v in range(len(probabilities))]
        outcome = self.rng.categorical([max(end - start, F(0)) / (high - low) for start, end in shares])
        self.known[name] = shares[outcome]
        return outcome


class Round:
    """The verifier's rng in the round that begins at a position: each role numbers its draws."""

    def __init__(self, uniforms, names, begin):
        self.uniforms, self.names, self.begin, self.count = uniforms, names, begin, {"accept": 0, "token": 0}

    def draw(self, role, probabilities):
        ordinal = self.count[role]
        self.count[role] += 1
        return self.uniforms.draw(self.names(role, self.begin, ordinal), probabilities)

    def bernoulli(self, probability):
        probability = max(min(probability, F(1)), F(0))
        return self.draw("accept", [probability, 1 - probability]) == 0

    def categorical(self, probabilities):
        return self.draw("token", list(probabilities))


def texts(target, drafter, gamma, length, verify, names):
    """A program that writes rounds until there are `length` tokens; `names(role, begin, ordinal)` is the counter of a draw."""

    def program(rng):
        uniforms, text = Uniforms(rng), ()
        while len(text) < length:
            draft, begin = (), len(text)
            for i in range(gamma):
                draft += (uniforms.draw(names("draft", begin, i), list(drafter(text + draft))),)
            p, q = [target(text + draft[:i]) for i in range(gamma + 1)], [drafter(text + draft[:i]) for i in range(gamma)]
            kept, token = verify(p, q, draft, Round(uniforms, names, begin))
            text += (*draft[:kept], token)
        return text

    return program


def of_the_round(role, begin, ordinal):
    """The contract of `fast/kernels/philox.py`."""
    return role, begin, ordinal


def of_the_token(*roles):
    """The position of the drafted token itself, for some roles: what the round refused comes up again in the next one."""
    return lambda role, begin, ordinal: (role, begin + ordinal) if role in roles else (role, begin, ordinal)


def row(*weights):
    return np.array([F(weight, sum(weights)) for weight in weights], dtype=object)


TARGET = lambda context: row(1, 2)
DRAFT = lambda context: row(3, 1)
LENGTH = 3


def exact(target, drafter, verify, names):
    written = completed(law(texts(target, drafter, 2, LENGTH, verify, names)), target, LENGTH)
    return written == autoregressive(target, LENGTH)


@given(models(2, LENGTH + 2, greatest=3), models(2, LENGTH + 2, greatest=3))
def test_counters_of_the_round_keep_the_law_over_several_rounds(target, drafter):
    assert exact(target, drafter, block.verify, of_the_round)


def test_coins_named_by_their_token_bias_the_next_round():
    assert exact(TARGET, DRAFT, block.verify, of_the_round)
    assert not exact(TARGET, DRAFT, block.verify, of_the_token("accept"))


def test_draft_tokens_drawn_again_bias_the_next_round():
    assert not exact(TARGET, DRAFT, block.verify, of_the_token("draft"))
    assert not exact(TARGET, DRAFT, block.verify, of_the_token("draft", "accept"))


def test_the_token_rule_would_not_notice():
    """It looks at nothing beyond the first refusal, so what lies there may come up again: another reason to test the block rule itself."""
    for roles in (["accept"], ["draft"], ["draft", "accept"]):
        assert exact(TARGET, DRAFT, chain.verify, of_the_token(*roles))
