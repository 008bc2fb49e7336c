r"""Is a kernel's own randomness right? An e-value for samples against an exact law.

A p-value is only valid for a sample size fixed in advance. An e-value may be looked at after every sample and stopped at will: under
the law its mean never exceeds 1, so it ever exceeds $1/\alpha$ with probability at most $\alpha$ (Ville's inequality). This one bets with
every alternative law at once, weighted by a Dirichlet prior (Jeffreys, 1/2 per outcome): with counts $n_v$ of $n$ samples, $k$ outcomes,

$$E = \frac{\int \prod_v \theta_v^{n_v}\, \mathrm{Dir}(\mathrm d\theta)}{\prod_v p_v^{n_v}}
= \frac{\Gamma(k/2)}{\Gamma(n + k/2)} \prod_v \frac{\Gamma(n_v + 1/2)}{\Gamma(1/2)\,p_v^{n_v}}.$$

It grows like $e^{n\,\mathrm{KL}}$ where the samples follow another law, less a price of about $\tfrac{k-1}{2}\ln n$ in the exponent.
An outcome of probability 0 makes it infinite.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from math import inf, lgamma, log

__all__ = ["ALPHA", "COMPARISONS", "LIMIT", "consistent", "log_evalue"]

ALPHA = 1e-6  # the chance that a run of the whole suite flags a correct sampler
COMPARISONS = 1000  # the comparisons it is shared among, more than the suite makes
LIMIT = log(COMPARISONS / ALPHA)


def log_evalue(samples: Iterable[Hashable] | Mapping[Hashable, int], law: Mapping[Hashable, object]) -> float:
    """The logarithm of the e-value of samples (or their counts) against a law, probabilities by outcome.

    >>> log_evalue([], {"heads": 0.5, "tails": 0.5})
    0.0
    >>> log_evalue(["edge"], {"heads": 0.5, "tails": 0.5})
    inf
    """
    counts = Counter(samples)
    support = {outcome: float(probability) for outcome, probability in law.items() if probability}  # type: ignore[arg-type]
    if any(outcome not in support for outcome, count in counts.items() if count):
        return inf
    total, prior = sum(counts.values()), 0.5
    result = lgamma(prior * len(support)) - lgamma(total + prior * len(support))
    for outcome, probability in support.items():
        result += lgamma(counts[outcome] + prior) - lgamma(prior) - counts[outcome] * log(probability)
    return result


def consistent(samples: Iterable[Hashable] | Mapping[Hashable, int], law: Mapping[Hashable, object], what: str = "samples") -> None:
    """Fail where the evidence against the law passes this comparison's share of `ALPHA`."""
    found = log_evalue(samples, law)
    assert found < LIMIT, f"{what} do not follow the law: log e-value {found:.1f}, limit {LIMIT:.1f}"
