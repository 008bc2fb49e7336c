"""Sources of randomness for sampling specs: everything is drawn through `bernoulli(probability)` and `categorical(probabilities)`.

`Sampler` draws; `Tape` replays recorded uniforms, so that a kernel fed the same uniforms can be held to the same tokens. (A third one,
which enumerates every outcome with its exact rational weight, is `twofold.conformance.law.Exact`.)
"""

import numpy as np

__all__ = ["Sampler", "Tape"]


class Tape:
    """Replays uniforms in [0, 1): the i-th bernoulli reads `accept[i]`, the j-th categorical reads `token[j]`.

    >>> tape = Tape(accept=[0.3], token=[0.75])
    >>> tape.bernoulli(0.5), tape.categorical(np.array([0.5, 0.25, 0.25]))     # 0.3 < 0.5; 0.75 is past the first two
    (True, 2)
    """

    def __init__(self, accept=(), token=()):
        self.accept, self.token = iter(accept), iter(token)

    def bernoulli(self, probability):
        """True where the next uniform lies below `probability`; above 1 it always does. A NaN raises."""
        if probability != probability:
            raise ValueError("the probability is NaN")
        return bool(next(self.accept) < probability)

    def categorical(self, probabilities):
        """The smallest v with uniform < p[0] + … + p[v]; the last v of non-zero probability if rounding leaves none."""
        if not np.all(probabilities >= 0):
            raise ValueError(f"probabilities must be numbers of at least 0, not {probabilities}")
        uniform = next(self.token)
        total = 0
        for outcome, probability in enumerate(probabilities):
            total = total + probability
            if uniform < total and probability > 0:
                return outcome
        return int(np.flatnonzero(probabilities)[-1])


class Sampler(Tape):
    """Draws from a `numpy.random.Generator`: the readable text is the sampler."""

    def __init__(self, generator):
        uniforms = iter(generator.random, None)  # an endless stream; random() never returns None
        self.accept = self.token = uniforms
