r"""Chunked prefill: a prompt enters the model in pieces, so that requests which are already writing never wait for a long one.

Paper: Agrawal et al., "SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills", 2023, arXiv:2308.16369, Sec. 4;
the token budget of a batch: "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", 2024, arXiv:2403.02310, Alg. 3.

A token attends itself and what stands before it, never what follows. So the rows of a prompt may be computed in any pieces that come in
order: with a cache of earlier tokens, the rows $cC, \dots, (c+1)C - 1$ of $N_q$ need the keys up to their own last position and no others,

$$o_{cC:(c+1)C} = \text{attention}\big(q_{cC:(c+1)C},\; k_{:e},\; v_{:e}\big), \qquad e = \min\big((c+1)C, N_q\big) + N_k - N_q,$$

causal and aligned to the end of those keys. Chunks of one row are decoding.

Each batch has a budget of tokens, which bounds how long it takes. Requests that decode come first, one token each, the one that has waited
longest at the front. What is left of the budget goes to prompts in order of arrival, to each as much as it still lacks.

| name | symbol | shape | meaning |
|---|---|---|---|
| `q`, `k`, `v` | $Q, K, V$ | `(Nq, D)`, `(Nk, D)`, `(Nk, Dv)` | the new tokens' queries; keys and values of cached and new tokens |
| `chunk` | C | | rows per piece; the last may be shorter |
| `scale` | | | as in `attention.dense` |
| `requests` | | | those that wait for a batch, as `Request` or such tuples |
| `budget` | | | the most tokens of a batch |
| `arrival`, `left`, `last` | | | when it came, prompt tokens it still lacks (0: it decodes), when it was last given a token |

Deviations: SARATHI's batches hold one chunk and fill up with decodes; several prompts may share a batch here, as in Sarathi-Serve, where
prompts that are already begun precede new ones: in order of arrival they do. What to do when decodes alone exceed the budget is ours.
The number of Sarathi-Serve's algorithm is from memory.
Derives from: attention.dense
"""

from typing import NamedTuple

import numpy as np

from twofold.spec.attention import dense

__all__ = ["prefill", "schedule", "Request"]


def prefill(q, k, v, *, chunk, scale=None):
    """Returns the output `(Nq, Dv)` and the log-sum-exp `(Nq,)`: causal `dense.attention` for every size of chunk.

    >>> q = k = v = np.array([[0.0], [1.0], [2.0]])
    >>> o, lse = prefill(q, k, v, chunk=2)                                        # two rows, then one
    >>> float(o[0, 0]), float(lse[0])                                             # the first token sees only itself
    (0.0, 0.0)
    >>> prefill(q[2:], k, v, chunk=2)[0].tolist() == o[2:].tolist()               # two tokens were cached
    True
    >>> [x.shape for x in prefill(q[:0], k, v, chunk=4)]
    [(0, 1), (0,)]
    """
    outputs, sums = [np.zeros((0, v.shape[1]))], [np.zeros(0)]
    for start in range(0, len(q), chunk):
        rows = q[start : start + chunk]
        end = max(start + len(rows) + len(k) - len(q), 0)  # keys up to the chunk's own last position
        mask = np.tri(len(rows), end, end - len(rows), dtype=bool)
        o, lse = dense.attention(rows, k[:end], v[:end], mask=mask, scale=scale)
        outputs.append(o)
        sums.append(lse)
    return np.concatenate(outputs), np.concatenate(sums)


class Request(NamedTuple):
    arrival: int
    left: int = 0
    last: int = 0


def schedule(requests, budget):
    """How many tokens each request gets in the next batch; of equal ones the first is first.

    >>> schedule([Request(arrival=0, last=7), Request(arrival=2, left=9), Request(arrival=1, left=5)], budget=8)
    [1, 2, 5]
    >>> schedule([Request(0, last=7), Request(1, last=6), Request(2, left=9)], budget=1)        # decodes alone exceed the budget
    [0, 1, 0]
    >>> schedule([], budget=8)
    []
    """
    requests = [Request(*each) for each in requests]
    decodes = sorted((i for i, each in enumerate(requests) if not each.left), key=lambda i: requests[i].last)
    prompts = sorted((i for i, each in enumerate(requests) if each.left), key=lambda i: requests[i].arrival)
    tokens = [0] * len(requests)
    for i in decodes + prompts:
        tokens[i] = min(requests[i].left or 1, budget)
        budget = budget - tokens[i]
    return tokens
