r"""SpecDec++: draft until a refusal has become likely, then verify.

Paper: Huang, Guo, Wang, "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths", 2024, arXiv:2405.19715, Sec. 4.

A head on the drafter estimates for each drafted token the chance $\hat a_i$ that it is kept if all before it are. After
token i the chance that something in the draft will be refused is $1 - \prod_{j \le i} \hat a_j$; drafting ends with the first token after
which it exceeds $h$:

$$\text{length} = \min \{\, i : 1 - \textstyle\prod_{j \le i} \hat a_j > h \,\}.$$

The token that raised the alarm stays in the draft. This is what keeps the text lossless: $\hat a_i$ has seen $x_i$, so it may decide
about what follows $x_i$ but not about $x_i$. Whether position i is verified must be a function of the tokens before it. How good the
estimate is does not matter to the text's law, only to its speed.

| name | paper | shape | meaning |
|---|---|---|---|
| `confidences` | $\hat a_1 \dots \hat a_n$ | `(n,)`, in [0, 1] | estimated chance that a token is kept where its predecessors are |
| `h` | $h$ | number in [0, 1] | greatest tolerated chance of a refusal; 0 drafts on certain tokens only, 1 never stops |

Deviations: the head and its training are not part of this module. The paper proves a threshold to be optimal in its decision process; the
tests prove it by value iteration where confidences are independent of one another. The section number is from memory.
"""

__all__ = ["stop"]


def stop(confidences, h):
    """How many of the drafted tokens are the draft. The last confidence is not read: to ask whether to draft one more, append anything.

    >>> stop([0.75, 0.5, 0.9], h=0.5)              # 1 - 0.75 * 0.5 > 0.5: the second token is the last
    2
    >>> stop([0.9, 0.75, 0.5], h=0.5), stop([1, 1, 0.5, 1], h=0), stop([0, 0, 0], h=1), stop([], h=0)
    (3, 3, 3, 0)
    """
    all_kept = 1  # the chance that every token so far is kept
    for position, confidence in enumerate(confidences[:-1]):
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidences must lie in [0, 1], not {confidence} at {position}")
        all_kept = all_kept * confidence
        if 1 - all_kept > h:
            return position + 1
    return len(confidences)
