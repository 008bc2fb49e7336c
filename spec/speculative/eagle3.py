r"""EAGLE-3: drafting from three layers' states of the target, trained on its own mistakes, over a vocabulary of its own.

Paper: Li, Wei, Zhang, Zhang, "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time Test", 2025,
arXiv:2503.01840, Sec. 3.1 (inference), 3.2 (training).

The drafter need not predict the target's features, only its tokens. So it may read more of the target, a low, a middle and a high layer,

$$g_t = \mathrm{FC}_1\,[\,l_t;\, m_t;\, h_t\,], \qquad z_t = \mathrm{FC}_2\,[\,e(x_{t+1});\, g_t \text{ or } a_t\,], \qquad
a_{t+1} = \mathrm{Layer}(z_0 \dots z_t)_t, \qquad q = \mathrm{softmax}(\mathrm{Head}\,a_{t+1}),$$

and at drafted places, where the target has no states yet, it reads its own last state $a$. Nothing ties $a$ to $g$, so training must show
it the $a$ that drafting will: it unrolls `steps` steps from every place at once (training-time test). Step s of the draft that begins
at place n reads the true rows 0 … n and the draft's own s rows before it; `mask` says so, and one masked pass per step computes them all.

The head knows only the frequent tokens. Draft id i is the target's id $i + \mathrm{d2t}_i$; tokens and laws leave in the target's ids.

| name | paper | shape | meaning |
|---|---|---|---|
| `low`, `mid`, `high` | $l, m, h$ | `(T, D)` | the target's hidden states after three layers |
| `g` | $g$ | `(T, D)` | fused features of the text so far |
| `tokens` | $t$ | `(T + 1,)` | the text, one token longer; the first is not read |
| `fc` | FC | `(D, 3 D)` in `fuse`, else `(D, 2 D)` | embedding first, state second |
| `embed`, `head` | | `(V, D)`, `(n, D)` | the target's embedding; the drafter's own head, n = V without `d2t` |
| `layer` | | `(t, D)` -> `(t, D)` | causal; in `unroll` it takes (z, mask, position) |
| `d2t` | | `(n,)` | integers: target id less draft id; 0 everywhere is the identity |

Deviations: the layer is any causal function of `z`. The released one has no FC_2: its attention reads the normalized embedding and state
side by side, and the head a normalized state, while the state that is fed back is not normalized. `rng` None drafts the likeliest token.
That the attention reads both side by side is from memory.
Derives from: speculative.eagle.
"""

import numpy as np

from twofold.spec.speculative import eagle

__all__ = ["draft", "fuse", "scatter", "unroll", "mask"]


def draft(g, tokens, embed, fc, layer, head, gamma, d2t=None, rng=None):
    """The definition: drafted tokens `(gamma,)` and the laws they were drawn from `(gamma, V)`, in the target's ids.

    >>> eye = np.eye(2)                                   # a layer that passes on the token it was told; the head knows token 1 alone
    >>> draft(eye[:1], [0, 1], eye, np.hstack([eye, 0 * eye]), lambda z: z, eye[:1], gamma=2, d2t=[1])[0]
    [1, 1]
    """
    states, text, drafted, q = g, list(tokens), [], []
    for _ in range(gamma):
        state = eagle.predict(states, text + drafted, embed, fc, layer)[-1]             # (D,)
        row = eagle.softmax(head @ state)                                              # (n,)
        q.append(row if d2t is None else scatter(row, d2t, len(embed)))
        drafted.append(eagle.choose(q[-1], rng))
        states = np.concatenate([states, state[None]])                                 # its own, in place of the target's
    return drafted, np.stack(q) if q else np.zeros((0, len(embed)))


def fuse(low, mid, high, fc):
    """Three layers' states as one feature per place `(T, D)`."""
    return np.concatenate([low, mid, high], axis=-1) @ fc.T


def scatter(q, d2t, V):
    """A law on draft ids `(n,)` as a law on the target's ids `(V,)`; what the drafter does not know has probability 0.

    >>> scatter(np.array([0.75, 0.25]), [3, 0], 5).tolist()
    [0.0, 0.25, 0.0, 0.75, 0.0]
    """
    ids = np.arange(len(d2t)) + np.asarray(d2t)
    if len(set(ids.tolist())) < len(ids) or not np.all((ids >= 0) & (ids < V)):
        raise ValueError(f"d2t must send the draft ids to different ids below {V}, not to {ids.tolist()}")
    source = np.full(V, -1)
    source[ids] = np.arange(len(ids))                                                  # the draft id of each target id, or -1
    return np.where(source >= 0, q[..., source], 0)


def unroll(g, tokens, embed, fc, layer, steps):
    """Training-time test: the states of step s = 0 … steps - 1 for drafts from every place, each `(T - s, D)`.

    Row n of step s is what the draft that begins at place n, told the true tokens, computes then: it predicts token n + s + 2.
    """
    T, states, rows, found = len(g), g, g[:0], []
    sees, position = mask(T, steps)
    for s in range(steps):
        told = np.concatenate([embed[tokens[1 + s :]], states], axis=1)                 # (T - s, 2 D)
        rows = np.concatenate([rows, told @ fc.T])
        R = len(rows)
        found.append(layer(rows, sees[:R, :R], position[:R])[R - len(told) :])
        states = found[-1][:-1]                                                        # from the last place nothing is left to read
    return tuple(found)


def mask(T, steps):
    """Which rows see which, and where they stand: T rows of step 0, T - 1 of step 1 … `(R, R)`, `(R,)`.

    >>> mask(2, 2)[0].astype(int).tolist()        # the last row is step 1 from place 0: it sees (step 0, place 0) and itself
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    sizes = [max(T - s, 0) for s in range(steps)]
    step = np.repeat(np.arange(steps), sizes)
    start = np.concatenate([np.arange(size) for size in sizes]) if steps else step
    true = (step == 0) & (start <= start[:, None])
    own = (start == start[:, None]) & (step <= step[:, None])
    return true | own, start + step
