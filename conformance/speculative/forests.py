"""Batches of drafted trees for the kernels that walk them, the spec's answer for each, and where rounding could have changed it.

`answers` runs a spec's `verify_tree` request by request in exact arithmetic. `certain` retells the float32 arithmetic of
`fast/kernels/walk_tree.py` with running error bounds: an operation adds half a unit in the last place of its result, a sum of n numbers
of one sign n of them, and errors are carried on to first order, twice over for the orders above. A decision closer to its edge than
that is not sure.
"""

import numpy as np

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, tensor
from twofold.conformance.law import DRAFT, TARGET
from twofold.conformance.tape import UNIT, exact
from twofold.spec.rng import Tape

__all__ = [
    "answers", "by_fast", "certain", "drafted", "emitted", "geometric", "likeliest", "on_the_pair", "parents_of", "pruned",
    "requests_do_not_meet", "rows_of", "unneeded",
]  # fmt: skip

U = float(UNIT)


def parents_of(rng, B, N):
    """Random trees `(B, N)`: chains, levels and what lies between."""
    parents = np.full((B, N), -1)
    for b in range(B):
        reach, inner = rng.choice([1, 2, N], 2)  # how far back a parent may lie; the nodes that may have children
        parents[b, 1:] = [min(rng.integers(max(0, n - reach), n), inner - 1) for n in range(1, N)]
    return parents


def drafted(rng, q, parents, distinct=False):
    """Tokens `(B, N)`: the children of each node drawn from its row of q; distinct ones without replacement, -1 where none is left."""
    tokens = np.full(parents.shape, -1)
    for b, n in np.ndindex(*parents.shape):
        if n:
            row = q[b, parents[b, n]]
            if distinct:
                row = np.where(np.isin(np.arange(len(row)), tokens[b, :n][parents[b, :n] == parents[b, n]]), 0, row)
            if row.sum() > 0:
                tokens[b, n] = rng.choice(len(row), p=row / row.sum())
    return tokens


def likeliest(q, parents):
    """Tokens `(B, N)`: the children of each node are the likeliest tokens of its row of q, in falling order; -1 where none is left."""
    tokens = np.full(parents.shape, -1)
    for b, n in np.ndindex(*parents.shape):
        if n:
            row, elder = q[b, parents[b, n]], (parents[b, 1:n] == parents[b, n]).sum()
            tokens[b, n] = np.argsort(-row, kind="stable")[elder] if elder < np.count_nonzero(row) else -1
    return tokens


def rows_of(model):
    """A model of three tokens that sees the last one only, as rows: row 1 + x is the law after x, row 0 that at the start."""
    return np.array([model(()), *(model((x,)) for x in range(3))], dtype=float)


def on_the_pair(B, shape, seed=11):
    """Trees of this shape drafted on the reference pair: p, q `(B, N, 3)`, tokens and parents `(B, N)`; siblings are independent."""
    rng, p, q, tokens = np.random.default_rng(seed), rows_of(TARGET), rows_of(DRAFT), np.full((B, len(shape)), -1)
    for n in range(1, len(shape)):
        tokens[:, n] = (rng.random(B)[:, None] > q[1 + tokens[:, shape[n]]].cumsum(1)).sum(1)
    return p[1 + tokens], q[1 + tokens], tokens, np.tile(shape, (B, 1))


def geometric(rng, *shape):
    """Rows 1/2, 1/4, 1/8, … in a random order: without the greatest ones what is left is a power of two, so dividing rounds nothing."""
    rows = np.zeros((int(np.prod(shape[:-1])), shape[-1]))
    for row in rows:
        places = rng.permutation(shape[-1])[:6]
        row[places] = [*(2.0**-i for i in range(1, len(places))), 2.0 ** -(len(places) - 1)]
    return rows.reshape(shape)


def pruned(tokens, parents):
    """The ids of the nodes that are in the tree: the root, and each that has a token and a parent in the tree."""
    inside = [0]
    for n in range(1, len(tokens)):
        if tokens[n] >= 0 and parents[n] in inside:
            inside.append(n)
    return inside


def answers(verify, p, q, tokens, parents, lengths, accept, token, tape=Tape):
    """Path `(B, N - 1)` and token `(B,)` of the spec in exact arithmetic, and whether the tape is sure of them `(B,)`.

    Only the tokens of positive probability take part, so a large vocabulary costs no more than a small one.
    """
    paths, drawn, sure = np.full((len(tokens), tokens.shape[1] - 1), -1), [], []
    for b, length in enumerate(lengths):
        names = pruned(tokens[b, :length], parents[b, :length])
        laws = [rows[b, names] for rows in (p, q) if rows is not None]
        ids = np.unique(np.concatenate([*(np.flatnonzero(rows.any(0)) for rows in laws), tokens[b, names[1:]]])).astype(int)
        x = [-1, *np.searchsorted(ids, tokens[b, names[1:]])]
        up = [-1, *(names.index(parents[b, n]) for n in names[1:])]
        coins = tape(exact(accept[b]), exact(np.atleast_1d(token[b])))
        path, last = verify(*(exact(rows[:, ids]) for rows in laws), x, up, coins)
        paths[b, : len(path)] = [names[n] for n in path]
        drawn.append(ids[last])
        sure.append(getattr(coins, "sure", True))
    return paths, np.array(drawn), np.array(sure)


def by_fast(verify, p, q, tokens, parents, dtype="float32", layout="contiguous", **keywords):
    """Path and token of the implementation under test, in NumPy; `keywords` may hold arrays."""
    rows = [tensor(x, dtype, layout) for x in (p, q) if x is not None]
    keywords = {
        name: tensor(x, None if x.dtype.kind == "i" else "float32") if isinstance(x, np.ndarray) else x for name, x in keywords.items()
    }
    return tuple(array(x) for x in verify(*rows, tensor(tokens), tensor(parents), **keywords))


def emitted(tokens, path, drawn):
    """The text of each request: the tokens on its path, and the one that follows."""
    return [(*row[nodes[nodes >= 0]].tolist(), int(last)) for row, nodes, last in zip(tokens, path, drawn, strict=True)]


def requests_do_not_meet(verify, p, q, tokens, parents, **keywords):
    """Three requests, of ids and places beyond 32 bits, answer alone and in another order as they do together."""
    keys = {"request": np.array([7, 2**40, 0]), "position": np.array([0, 2**33, 1])}
    rows = lambda b: [None if x is None else x[b] for x in (p, q, tokens, parents)]
    run = lambda b: by_fast(verify, *rows(b), **keywords, **{name: key[b] for name, key in keys.items()})
    together = run([0, 1, 2])
    for order in ([2, 1, 0], [0], [1], [2]):
        for some, all_ in zip(run(order), together, strict=True):
            exactly(some, all_[order], f"requests {order}")


def unneeded(p, q, tokens, parents, lengths, path):
    """p and q with NaN wherever a walk by recursive rejection along this path needs no number, and trees with nonsense past their ends."""
    p, q, tokens, parents = (x.copy() for x in (p, q, tokens, parents))
    for b, length in enumerate(lengths):
        names = pruned(tokens[b, :length], parents[b, :length])
        visited = [0, *path[b][path[b] >= 0]]
        for n in range(p.shape[1]):
            children = [child for child in names[1:] if parents[b, child] == n]
            if n not in visited:
                p[b, n] = q[b, n] = np.nan
            elif not children:
                q[b, n] = np.nan
            elif children[0] in visited:  # no refusal: one number of each row
                others = np.arange(p.shape[2]) != tokens[b, children[0]]
                p[b, n, others] = q[b, n, others] = np.nan
        tokens[b, length:], parents[b, length:] = 10**15, 0
        tokens[b, 0], parents[b, 0] = 10**15, -(10**15)
    return p, q, tokens, parents


def certain(p, q, tokens, parents, length, accept, token, without):
    """Whether a float32 walk by recursive rejection must decide as exact arithmetic does, for one request."""
    names, node, coins = pruned(tokens[:length], parents[:length]), 0, iter(accept)
    while node is not None:
        target, draft = p[node], q[node]
        terms = np.count_nonzero(target) + np.count_nonzero(draft) + 4
        S, W, Q, eS, eW, eQ = 0.0, 1.0, 1.0, 0.0, 0.0, 0.0  # and their errors
        tried, children, node = [], [n for n in names[1:] if parents[n] == node], None
        for child in children:
            x, u = tokens[child], next(coins)
            left = target[x] - S * draft[x]
            below, above = u * draft[x] * W, max(left, 0) * Q
            slack = u * draft[x] * eW + 2 * U * below  # of what is below
            slack += (draft[x] * eS + 2 * U * (target[x] + S * draft[x])) * Q + max(left, 0) * eQ + U * above
            if abs(below - above) <= 2 * slack:
                return False
            if below < above:
                node = child
                break
            tried.append(x)
            eS += eW / Q + W / Q * eQ / Q + 2 * U * (S + W / Q)
            S += W / Q
            W = np.maximum(target - S * draft, 0).sum()
            eW = eS * draft.sum() + 2 * U * (target + S * draft).sum() + terms * U * W
            if without:
                Q = np.delete(draft, tried).sum()
                eQ = terms * U * Q
    sums = np.cumsum(np.maximum(target - S * draft, 0))
    errors = np.cumsum(eS * draft + 2 * U * (target + S * draft)) if S else np.zeros(len(sums))
    goal, edges = token * sums[-1], np.diff(sums, prepend=0) > 0
    slack = errors + token * errors[-1] + 2 * terms * U * np.maximum(sums, goal)
    return bool(np.all((abs(sums - goal) > 2 * slack)[edges][:-1]))  # nobody can pass the last edge
