r"""Prompt lookup: draft what followed the last time the context ended in these words.

Paper: Saxena, "Prompt Lookup Decoding", 2023, a repository and no paper; the same idea as a decoder in
Yang et al., "Inference with Reference", 2023, arXiv:2304.04487.

Summaries, edits and code repeat what stands in the prompt. So take the last $n$ tokens of the context, find them further left, and draft
the tokens behind that occurrence. A long n-gram is better evidence than a short one, so try $n = n_{\max}, \dots, n_{\min}$ and stop at the
first that occurs:

$$j^* = \min\{\, j < L-n \mid c_{j:j+n} = c_{L-n:L} \,\}, \qquad \text{draft} = c_{j^*+n\,:\,j^*+n+\gamma}.$$

No model runs and no law $q$ exists: the draft is certain, so `chain.verify_onehot` verifies it and the text keeps the target's law.

| name | paper | shape | meaning |
|---|---|---|---|
| `context` | $c$ | `(L,)` | prompt and text so far |
| `n_max`, `n_min` | $n_{\max}, n_{\min}$ | integers, at least 1 | the longest and the shortest n-gram that is looked for |
| `gamma` | $\gamma$ | integer | the most tokens that are drafted |
| `last` | | bool | take the last occurrence (largest $j$) in place of the first |

Deviations: released programs differ in which of several occurrences they take; the first is the default here. Text that overlaps the
suffix counts (in "abab" the suffix "ab" occurs at 0, in "aaa" the suffix "aa" does), the suffix itself never does.
"""

__all__ = ["draft"]


def draft(context, n_max, n_min, gamma, last=False):
    """The definition: at most gamma drafted tokens, fewer where the context ends, none where no n-gram occurs twice.

    >>> draft([7, 1, 2, 3, 4, 1, 2], n_max=3, n_min=1, gamma=2)          # "2 1 2" is new, "1 2" was followed by "3 4"
    [3, 4]
    >>> draft([1, 2, 3], n_max=3, n_min=1, gamma=2)                      # even "3" is new
    []
    >>> draft([5, 5, 5, 5], n_max=2, n_min=1, gamma=4), draft([5, 5, 5, 5], n_max=2, n_min=1, gamma=4, last=True)
    ([5, 5], [5])
    >>> draft([1, 1], n_max=9, n_min=1, gamma=3)                         # an n-gram longer than the context occurs nowhere
    [1]
    """
    context, length = list(context), len(context)
    for n in range(n_max, n_min - 1, -1):
        starts = [start for start in range(length - n) if context[start : start + n] == context[length - n :]]
        if starts:
            end = (starts[-1] if last else starts[0]) + n
            return context[end : end + gamma]
    return []
