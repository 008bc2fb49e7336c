"""What the delta rules have in common: a model as a row of the core, tokens on which it is exact, and the texts that bound its kernels.

The core is $S_t = e^{g_t} S_{t-1} + w_t ⊗ (v_t - a_t^T S_{t-1})$, read with q_t: what was looked up under a is taken out where v goes in. A
model is how it makes q, w, g and a. The laws that hold for all of them stand in `erasing_laws.py`.

Integers stay integers under the delta rule where its transition I - beta k k^T is one: with k = ± e_i and beta = 0, 1, 2 (kept, replaced,
reflected) and with k = ± (e_i ± e_j) and beta = 0, 1 (kept, exchanged). None of these lets a state grow but by what is written;
`largest_sum` is the proof that float32 holds every sum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.linear_attention import battery
from twofold.conformance.linear_attention.battery import Tokens
from twofold.spec.linear_attention import affine
from twofold.spec.linear_attention.affine import decays, paired
from twofold.spec.linear_attention.delta import substitute
from twofold.spec.linear_attention.gla import after

__all__ = [
    "GATES", "LIMIT", "Model", "adjoint", "adjoint_by_token", "adjoint_in_chunks", "exact_keys", "exact_tokens", "gates", "in_chunks",
    "largest_sum", "operation_of", "operation_of_fast", "real_tokens", "spread",
]  # fmt: skip

LIMIT = 2.0**24  # float32 holds all integers up to here

GATES = {
    "none": lambda rng, shape: np.zeros(shape),
    "mild": lambda rng, shape: -np.abs(rng.standard_normal(shape)) / 8,
    "strong": lambda rng, shape: np.full(shape, -30.0),
    "mixed": lambda rng, shape: np.where(rng.random(shape) < 0.5, -1e-6, -20.0),
}
gates = st.sampled_from(sorted(GATES))


@dataclass(frozen=True)
class Model:
    """A delta rule: its chapter, its tokens by name, its row of the core, and the gradients of its tokens from those of the row."""

    spec: Any
    names: tuple[str, ...]
    row: Callable[[Tokens], tuple]  # tokens -> q, w, v, g, a, each (T, ·), g also (T,)
    chain: Callable[..., Tokens]  # tokens and dq, dw, dv, dg, da -> gradients by name
    exact: Callable[..., Tokens]  # of (rng, T, K, V, keys=None)
    real: Callable[..., Tokens]  # of (rng, gates, keys, T, K, V, dtype)
    constants: tuple = ()  # what spec takes after the tokens
    fast: Callable = lambda form: form  # a form of fast as a function of (tokens…, S0)
    steps: int = 1  # rows of the core per token, of which the last is read

    def arguments(self, tokens: Tokens) -> list:
        return [tokens[name] for name in self.names]

    def recurrent(self, tokens: Tokens, S0):
        return self.spec.recurrent(*self.arguments(tokens), *self.constants, S0)

    def read(self, outputs):
        return outputs[self.steps - 1 :: self.steps]


def operation_of(model: Model, **more: Callable) -> Callable[[], battery.Operation]:
    """The spec's forms as an operation; `more` are forms beside `chunked`, by name."""

    def operation() -> battery.Operation:
        run = lambda form, *options: lambda tokens, S0: form(*model.arguments(tokens), *model.constants, S0, *options)
        forms = {f"chunked in {chunk}": run(model.spec.chunked, chunk) for chunk in (1, 2, 3, 7, 16, 64)}
        forms |= {f"{name} in {chunk}": run(form, chunk) for name, form in more.items() for chunk in (3, 16)}
        step = lambda state, token: model.spec.step(state, *model.arguments(token), *model.constants)
        return battery.Operation(model.recurrent, forms, step, model.exact)

    return operation


def operation_of_fast(model: Model) -> Callable:
    def operation(fast) -> battery.Operation:
        on = lambda form, **options: battery.on_tensors(model.fast(form), model.names, **options)
        forms = {"chunked": on(fast.chunked, chunk=32)}
        if getattr(fast, "side", "torch") == "torch":
            forms |= {f"chunked in {chunk}": on(fast.chunked, chunk=chunk) for chunk in (16, 64)} | {"recurrent": on(fast.recurrent)}
        return battery.Operation(model.recurrent, forms, battery.one_token(model.fast(fast.step), model.names), model.exact)

    return operation


# Tokens


def exact_keys(rng: np.random.Generator, T: int, K: int) -> np.ndarray:
    """± e_i or ± (e_i ± e_j)."""
    i, j = rng.integers(0, K, (2, T))
    eye, signs = np.eye(K), rng.choice([-1.0, 1.0], (2, T, 1))
    two = ((rng.random(T) < 0.5) & (i != j))[:, None]
    return signs[0] * (eye[i] + two * signs[1] * eye[j])


def exact_strengths(rng: np.random.Generator, k: np.ndarray) -> np.ndarray:
    """0, 1 or 2, but never above 2 / |k|²."""
    return np.minimum(rng.integers(0, 3, k.shape[:-1]), 2 / np.sum(k * k, axis=-1))


def exact_tokens(rng: np.random.Generator, T: int, K: int, V: int, keys: np.ndarray | None = None) -> Tokens:
    """Queries, keys, values, one log-decay and one write strength per token."""
    k = exact_keys(rng, T, K) if keys is None else keys
    tokens = battery.exact_tokens(rng, T, K, V)
    return tokens | {"k": k, "g": np.where(rng.random(T) < 0.1, -np.inf, 0.0), "beta": exact_strengths(rng, k)}


def real_keys(rng: np.random.Generator, kind: str, T: int, K: int, dtype: str) -> np.ndarray:
    """Of length 1 but for their rounding: drawn one by one, or all the same, which is as far from orthogonal as keys can be."""
    k = rng.standard_normal((T, K)) if kind == "drawn" else np.broadcast_to(rng.standard_normal(K), (T, K))
    return inputs.rounded(k / np.linalg.norm(k, axis=1, keepdims=True), dtype)


def real_tokens(rng: np.random.Generator, gates: str, keys: str, T: int, K: int, V: int, dtype: str) -> Tokens:
    """One log-decay per token; write strengths over all of 0 … 2, both ends included."""
    beta = np.clip(rng.uniform(-0.5, 2.5, T), 0, 2)
    return {
        "q": inputs.rounded(rng.standard_normal((T, K)) / 4, dtype), "k": real_keys(rng, keys, T, K, dtype),
        "v": inputs.rounded(rng.standard_normal((T, V)) / 4, dtype), "g": inputs.rounded(GATES[gates](rng, T), "float32"),
        "beta": inputs.rounded(beta, "float32"),
    }  # fmt: skip


# The core


def spread(g: np.ndarray, K: int) -> np.ndarray:
    return np.broadcast_to(g[:, None], (len(g), K)) if g.ndim == 1 else g


def in_chunks(q, w, v, g, a, S0, chunk, sub=16, stored=lambda x: x):
    """The core chunk by chunk, rounded where its kernels round: one decay per token outside of the products, decays by channel inside.

    What tokens find missing is solved in two parts, one that waits for no state and one that multiplies it; `stored` rounds the rows that
    are kept for others to read.
    """
    state, outputs = S0, [v[:0]]
    for start in range(0, len(q), chunk):
        output, state = _one_chunk(*(x[start : start + chunk] for x in (q, w, v, g, a)), state, sub, stored)
        outputs.append(output)
    return np.concatenate(outputs), state


def _one_chunk(q, w, v, g, a, state, sub, stored):
    if g.ndim == 1:
        through = decays(g[:, None])[:, :, 0]
        lower, scores, g = a @ w.T * _just_before(through), q @ w.T * through, g[:, None]
    else:
        lower, scores = _scores(a, w, g, sub, _just_before), _scores(q, w, g, sub, lambda decay: decay)
    since = np.exp(np.cumsum(g, axis=0))                                  # from the start through i                 (C, 1 or K)
    until = np.concatenate([np.ones_like(since[:1]), since[:-1]])         # from the start to just before i
    values, keys = (stored(substitute(lower, right)) for right in (v, a * until))
    missing = stored(values - keys @ state)
    output = (q * since) @ state + scores @ missing
    return output, np.exp(np.sum(g, axis=0))[:, None] * state + (w * np.exp(after(g))).T @ missing


def _scores(x, y, g, sub, near):
    rows = []
    for start in range(0, len(x), sub):
        here = slice(start, start + sub)
        since = np.exp(np.cumsum(g[here], axis=0))
        since = since if near is not _just_before else np.concatenate([np.ones_like(since[:1]), since[:-1]])
        distant = (x[here] * since) @ (y[:start] * np.exp(after(g[:start]))).T
        own = paired(x[here], y[here], near(decays(g[here])))
        rows.append(np.concatenate([distant, own, np.zeros((len(own), len(x) - start - len(own)))], axis=1))
    return np.concatenate(rows)


def _just_before(decay):
    """Decays from j through i as decays from j to just before i."""
    return np.concatenate([np.zeros_like(decay[:1]), decay[:-1]])


def adjoint_by_token(q, w, v, g, a, do, dS, S0):
    """dq, dw, dv, dg, da, dS0, from the state of every token."""
    dq, dk, dv, dg, da, db, dS0 = affine.backward(q, w, v, spread(g, q.shape[1]), a, -w, do, dS, S0)
    return dq, dk - db, dv, dg, da, dS0


def adjoint(q, w, v, g, a, do, dS, S0):
    """The same, but for the gate's, which is the flow of the loss through it: a sum over all later tokens, as kernels compute it."""
    dq, dw, dv, _, da, dS0 = adjoint_by_token(q, w, v, g, a, do, dS, S0)
    state = affine.recurrent(q, w, v, spread(g, q.shape[1]), a, -w, S0)[1]
    return dq, dw, dv, _flow(q * dq - w * dw, a * da, state * dS), da, dS0


def _flow(kept, read, last):
    """What of the loss flows through each gate: it comes from before the gate and leaves behind it, or through the last state."""
    later = np.concatenate([read[1:], np.zeros(read[:1].shape)])
    return np.cumsum((kept + later)[::-1], axis=0)[::-1] + np.sum(last, axis=1)


def adjoint_in_chunks(q, w, v, g, a, do, dS, S0, chunk, stored=lambda x: x):
    """The same, one chunk after the other, last chunk first, each from the state at its start; rounded where kernels round."""
    pieces, states, rows = [slice(t, t + chunk) for t in range(0, len(q), chunk)], [S0], []
    for piece in pieces:
        states.append(_one_chunk(*(x[piece] for x in (q, w, v, g, a)), states[-1], chunk, stored)[1])
    for piece, state in zip(reversed(pieces), reversed(states[:-1]), strict=True):
        *gradients, dS = _adjoint_of_chunk(*(x[piece] for x in (q, w, v, g, a, do)), dS, state, stored)
        rows.append(gradients)
    return *(np.concatenate(x) for x in zip(*reversed(rows), strict=True)), dS


def _adjoint_of_chunk(q, w, v, g, a, do, dS, state, stored):
    alone, g = g.ndim == 1, g[:, None] if g.ndim == 1 else g              # one decay per token
    through, since, reach = decays(g), np.exp(np.cumsum(g, axis=0)), np.exp(after(g))
    before, until = _just_before(through), np.concatenate([np.ones_like(since[:1]), since[:-1]])
    pair = lambda x, y, decay: x @ y.T * decay[:, :, 0] if alone else paired(x, y, decay)
    decayed = lambda weight, decay: weight * decay[:, :, 0] if alone else weight[:, :, None] * decay
    early = lambda weight, y: weight @ y if alone else np.sum(weight * y[None, :, :], axis=1)
    late = lambda weight, x: weight.T @ x if alone else np.sum(weight * x[:, None, :], axis=0)

    lower = pair(a, w, before)
    values, keys = (stored(substitute(lower, right)) for right in (v, a * until))
    D = stored(values - keys @ state)                                     # what each token finds missing            (C, V)
    upwards = lambda right: substitute(lower.T[::-1, ::-1], right[::-1])[::-1]
    values, keys = (stored(upwards(right)) for right in (stored(pair(q, w, through).T @ do), w * reach))
    dD = stored(values + keys @ dS)
    reads, erases = decayed(np.tril(do @ D.T, -1), through), decayed(dD @ D.T, before)
    dq = since * (do @ state.T) + early(reads, w)
    da = -(until * (dD @ state.T)) - early(erases, w)
    dw = reach * (D @ dS.T) + late(reads, q) - late(erases, a)
    total = np.exp(np.sum(g, axis=0))[:, None]
    dg = _flow(q * dq - w * dw, a * da, (total * state + (w * reach).T @ D) * dS)
    own = np.sum(do * D, axis=1)[:, None]                                 # a token's own pair meets no gate         (C, 1)
    return dq + own * w, dw + own * q, dD, dg, da, total * dS + (q * since).T @ do - (a * until).T @ dD


def largest_sum(q, w, v, g, a, do, dS, S0, sub=16) -> float:
    """What no partial sum of a chunked form exceeds, nor of its adjoint: the same sums over absolute values, no decay below 1.

    A form may solve for what is missing, D, with the state at its chunk's start, or for the parts of D that do and do not depend on it;
    so may the adjoint with the gradient of the state at its chunk's end. Chunks start and end at multiples of `sub`.
    """
    g, K, V = spread(g, q.shape[1]), q.shape[1], v.shape[1]
    beside = lambda x, y: np.concatenate([x, y], axis=1)
    ends, sums = [*range(sub, len(q), sub), len(q)], []
    D, dD = _missing(q, w, v, g, a, S0), affine.backward(q, w, v, g, a, -w, do, dS, S0)[2]
    for start in (0, *ends[:-1]):
        values = beside(v, np.zeros((len(v), K)))[start:]
        parts = _missing(q[start:], w[start:], values, g[start:], a[start:], beside(np.zeros((K, V)), np.eye(K)))
        sums += [np.tril(np.abs(a @ w.T), -1)[start:, start:] @ np.abs(parts), np.abs(parts)]
    for end in ends:
        zero, upstream = np.zeros((end, V + K)), beside(do, np.zeros((len(do), K)))[:end]
        rows = q[:end], w[:end], zero, g[:end], a[:end], -w[:end]
        parts = affine.backward(*rows, upstream, beside(np.zeros((K, V)), np.eye(K)), np.zeros((K, V + K)))[2]
        sums += [np.triu(np.abs(w @ a.T), 1)[:end, :end] @ np.abs(parts), np.abs(parts)]
    states = np.abs(w).T @ np.abs(D) + np.abs(S0), np.abs(q).T @ np.abs(do) + np.abs(a).T @ np.abs(dD) + np.abs(dS)  # of S and of dS
    parts = np.max([np.max(x, initial=0) for x in sums])
    q, w, v, a, do, dS, D, dD = map(np.abs, (q, w, v, a, do, dS, D, dD))
    dq, dw, da = do @ (D.T @ w + states[0].T), D @ (do.T @ q + dD.T @ a + states[1].T), dD @ (D.T @ w + states[0].T)
    flow = np.sum(q * dq + w * dw + a * da, axis=0) + np.sum(states[0] * dS, axis=1)
    outputs, found = np.tril(q @ w.T) @ D + q @ states[0], np.triu(w @ q.T) @ do + w @ states[1]
    solved = [parts * (1 + np.sum(x, axis=0)) for x in states]
    return max(float(np.max(x)) for x in (outputs, found, dq, dw, da, flow, *states, *solved, v))


def _missing(q, w, v, g, a, state):
    """v_t - a_t S_{t-1} of every token: `(T, V)`."""
    rows = []
    for t in range(len(q)):
        rows.append(v[t] - a[t] @ state)
        state = affine.step(state, q[t], w[t], v[t], g[t], a[t], -w[t])[1]
    return np.stack(rows)
