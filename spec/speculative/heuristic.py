r"""The heuristic schedule of draft lengths: two more after a full success, one fewer after anything else.

Paper: Gante, "Assisted Generation: a new direction toward low-latency text generation", 2023, Hugging Face; the schedule of the assistant
in their `transformers` library.

$$\gamma \leftarrow \begin{cases} \gamma + 2 & \text{all } \gamma \text{ drafted tokens were kept} \\
\max(1, \gamma - 1) & \text{otherwise.} \end{cases}$$

It needs no model of acceptance and no cost. Where it settles, going up and going down balance: two steps for every full success, one for
every other round, so about one round in three is a full success. The next length is a function of rounds that are over, which is always
safe: no token of a draft decides about that draft.

| name | symbol | meaning |
|---|---|---|
| `gamma` | $\gamma$ | tokens that were drafted in the round that is over, 1 or more |
| `kept` | $\tau$ | how many of them were kept |

Deviations: a last round that was cut short by the end of the text is not told apart; nothing follows it. The source is from memory.
"""

__all__ = ["update"]


def update(gamma, kept):
    """The length of the next draft.

    >>> update(5, 5), update(5, 4), update(5, 0), update(1, 0)
    (7, 4, 4, 1)
    """
    return gamma + 2 if kept == gamma else max(1, gamma - 1)
