r"""Medusa: extra heads on the target's own last hidden state guess the tokens after next, and a small tree combines their guesses.

Paper: Cai, Li, Geng, Peng, Lee, Chen, Dao, "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads", 2024,
arXiv:2401.10774, Sec. 2.1 (heads, tree), 2.2.1 (loss), 2.3.3 (choice of the tree).

Every head is one residual block and an output matrix, and reads the same $h$, the state after the last committed token:

$$\mathrm{logits}_k = W_2^{(k)}\left(\mathrm{SiLU}(W_1^{(k)} h + b_1^{(k)}) + h\right), \qquad \mathrm{SiLU}(x) = \frac{x}{1+e^{-x}}.$$

The target's LM head guesses the next token, head $k$ the one $k+1$ places after it. No head sees what another guessed: given $h$ the draft
law is a product. So every combination of guesses is a candidate, and a tree of the most promising ones is verified in one pass. If
$a_{k,r}$ is the chance that the guess of rank $r$ of head $k$ is right, the node $(r_0 \dots r_{d-1})$ is expected to be worth
$\prod_k a_{k,r_k}$ tokens; a node is never worth more than its parent, so taking the best node again and again gives the best tree.

| name | paper | shape | meaning |
|---|---|---|---|
| `h` | $h_t$ | `(D,)` | last hidden state, before the LM head |
| `w1`, `b1` | $W_1^{(k)}$, – | `(K, D, D)`, `(K, D)` | each head's block; 0 at first |
| `w2` | $W_2^{(k)}$ | `(K, V, D)` | each head's output matrix; the LM head at first |
| `topk` | $s_k$ likeliest | `(K, R)` | each head's likeliest tokens, the likeliest first |
| `accuracy` | $a_k^{(i)}$ | `(K, R)` | how often the guess of each rank is right, measured on some text |
| `choices` | | tuples of ranks | the tree: a node's tuple names the ranks on the path to it; the root () is left out |
| `decay` | $\lambda_k = 0.8^k$ | number | head k (from 0) weighs `decay`^(k + 1) in the loss |

Deviations: heads are counted from 0; the bias is the released code's. Ties between nodes go to the shallower, then to the lower ranks.
`topk` counts the heads only: the root is the target's own next token, already chosen, and its children are guesses of head 0.
The weight 0.8^k and the section numbers are from memory.
"""

import numpy as np

__all__ = ["heads", "candidates", "choices", "loss"]


def heads(h, w1, b1, w2):
    """The definition: one row of logits per head `(K, V)`."""
    return np.stack([out @ (silu(w @ h + b) + h) for w, b, out in zip(w1, b1, w2)])


def silu(x):
    return x / (1 + np.exp(-x))


def candidates(topk, choices):
    """The tree as (tokens, parents): node 0 is the last committed token, for the caller to fill in; then by depth, then by ranks.

    >>> candidates([[7, 8], [5, 6]], [(0,), (1,), (0, 1)])
    ([-1, 7, 8, 6], [-1, 0, 0, 1])
    >>> candidates([[7, 8]], [])
    ([-1], [-1])
    """
    nodes = [(), *sorted(set(choices), key=lambda node: (len(node), node))]
    place = {node: n for n, node in enumerate(nodes)}
    tokens, parents = [-1], [-1]
    for node in nodes[1:]:
        if len(node) > len(topk) or node[-1] not in range(len(topk[0])):
            raise ValueError(f"choices holds {node}, but topk has {len(topk)} heads of {len(topk[0])} ranks")
        if node[:-1] not in place:
            raise ValueError(f"choices holds {node} but not its parent {node[:-1]}")
        tokens.append(topk[len(node) - 1][node[-1]])
        parents.append(place[node[:-1]])
    return tokens, parents


def choices(accuracy, nodes):
    """The tree of `nodes` nodes, or all there are, that is expected to keep the most tokens; by depth, then by ranks.

    >>> choices([[0.6, 0.2], [0.5, 0.3]], 3)          # worth 0.6, then 0.6 * 0.5, then 0.2, which beats 0.6 * 0.3
    [(0,), (1,), (0, 0)]
    """
    worth, chosen = {(): 1}, []
    frontier = [(rank,) for rank in range(len(accuracy[0]))] if len(accuracy) else []
    while frontier and len(chosen) < nodes:
        for node in frontier:
            worth[node] = worth[node[:-1]] * accuracy[len(node) - 1][node[-1]]
        best = min(frontier, key=lambda node: (-worth[node], len(node), node))
        chosen.append(best)
        frontier.remove(best)
        if len(best) < len(accuracy):
            frontier += [(*best, rank) for rank in range(len(accuracy[len(best)]))]
    return sorted(chosen, key=lambda node: (len(node), node))


def loss(logits, tokens, decay=0.8):
    """Medusa-1: each head's mean cross-entropy, weighted; logits `(T, K, V)` are the heads' at tokens `(T,)`.

    Head k at place t is right about token t + k + 2; a head for which no such token is left adds nothing.
    """
    total = 0
    for k in range(logits.shape[1]):
        labels = tokens[k + 2 :]
        if len(labels):
            rows = logits[: len(labels), k]                                       # (T - k - 2, V)
            right = rows[np.arange(len(labels)), labels]
            total = total + decay ** (k + 1) * (log_sum_exp(rows) - right).mean()
    return total


def log_sum_exp(rows):
    greatest = rows.max(axis=-1)
    return greatest + np.log(np.exp(rows - greatest[:, None]).sum(axis=-1))
