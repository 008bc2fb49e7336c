"""A tape that knows which of its decisions rounding could turn: what a kernel is held to when it is fed the same uniforms.

Probabilities are the exact `Fraction`s of what the kernel is given, so the spec decides exactly. A kernel that sums n weights of one
sign in float32 has every cumulative sum within gamma_n = n u / (1 - n u) of its value, u = 2^-24, in whatever order it sums; each
weight carries up to two more roundings (lenience, difference), the goal one for the product and one total. Decisions within that margin
are marked unsure and are not compared.
"""

from fractions import Fraction

import numpy as np

from twofold.spec.rng import Tape

__all__ = ["Certified", "exact"]

UNIT = Fraction(1, 2**24)


def exact(rows) -> np.ndarray:
    """The same numbers as `Fraction`s, any shape."""
    rows = np.asarray(rows, dtype=float)
    return np.array([Fraction(x) for x in rows.ravel().tolist()] + [None], dtype=object)[:-1].reshape(rows.shape)


class Certified(Tape):
    """Replays uniforms exactly and records in `sure` whether a float32 kernel must have decided the same way.

    Rows are weights: they are divided by their exact sum, as the kernel divides the row that it draws from.
    """

    def __init__(self, accept=(), token=()):
        super().__init__([Fraction(float(u)) for u in accept], [Fraction(float(u)) for u in token])
        self.sure = True

    def bernoulli(self, probability):
        """u q(x) < p(x): at most three roundings of relative size u between the two sides."""
        uniform = next(self.accept)
        self.sure &= abs(uniform - probability) > 4 * UNIT * probability or not probability
        return uniform < probability

    def categorical(self, probabilities):
        weights = probabilities / probabilities.sum()
        uniform, total, passed = next(self.token), Fraction(0), None
        roundings = int(np.count_nonzero(weights)) + 4
        for outcome in np.flatnonzero(weights).tolist():
            total += weights[outcome]
            margin = 2 * (roundings + 2) * UNIT / (1 - roundings * UNIT) * max(total, uniform)
            self.sure &= total == 1 or abs(uniform - total) > margin
            if passed is None and uniform < total:
                passed = outcome
        return passed
