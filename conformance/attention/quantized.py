"""Attention from codes: how a rounding to codes passes errors on, and the codes of inputs whose quotients float32 gets right."""

from unittest.mock import patch

import numpy as np

from twofold.conformance.rounding import Rounded, bounded

__all__ = ["bounded_with", "single"]


def bounded_with(module, name, function, *args, **keywords):
    """`bounded`, where `name` of the spec's module rounds to codes: being monotone, it moves no further than its values at both ends do."""
    rounding = getattr(module, name)

    def monotone(x):
        if not isinstance(x, Rounded):
            return rounding(x)
        value = rounding(x.value)
        error = np.maximum(rounding(x.value + x.error) - value, value - rounding(x.value - x.error))
        return Rounded(value, error, error**2, precision=x.precision)

    with patch.object(module, name, monotone):
        return bounded(function, *args, **keywords)


def single(scale):
    """Scales as an implementation stores them, in float32."""
    return scale.astype(np.float32).astype(float)
