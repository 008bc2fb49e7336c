"""The table of models: each is the core recurrence with letters of its own, proved on real tokens for every row of the table.

A row is two texts of one function: the chapter's own recurrence, and the core with the row's letters. In float64 they coincide within what
both may round. S4D and S5, whose states are complex, are rows in their own tests, since complex numbers have no rounding rules, and so are
MesaNet's two sums, which no output shows.
"""

import numpy as np
import pytest
from hypothesis import given

from twofold.conformance import inputs
from twofold.conformance.compare import coincide
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import (
    abc,
    affine,
    comba,
    delta,
    delta_product,
    gated_delta,
    gla,
    gsa,
    hgrn,
    hgrn2,
    kda,
    lightning,
    linear,
    log_linear,
    mlstm,
    retnet,
    rwkv4,
    rwkv6,
    rwkv7,
    simple_gla,
)
from twofold.spec.state_space import lru, mamba, mamba2, rg_lru
from twofold.spec.test_time_training import titans, ttt

T, K, V = 7, 4, 3


def tokens(seed):
    """What any row may take: rows of every kind, and constants."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    return {
        "q": draw(T, K), "k": draw(T, K), "v": draw(T, V), "g": -np.abs(draw(T, K)), "fade": -np.abs(draw(T)), "beta": rng.uniform(0, 2, T),
        "unit": unit(draw(T, K)), "iota": rng.uniform(0, 1, (T, K)), "gate": draw(T, K), "slots": np.abs(draw(T, K)), "u": np.abs(draw(K)),
        "steps": rng.uniform(0.1, 1, (T, V)), "rates": -np.abs(draw(V, K)), "two": unit(draw(T, 2, K)), "values": draw(T, 2, V),
        "strengths": rng.uniform(0, 2, (T, 2)), "small": rng.uniform(0.1, 0.5, T), "nu": draw(K), "theta": rng.uniform(0, np.pi, K),
        "into": draw(2, K, V), "out": draw(2, V, K),
    }  # fmt: skip


def core(q, k, v, g=None, a=None, b=None):
    """Outputs of the core; one log-decay per token, or none, spreads over the channels."""
    zero = 0 * k
    g = zero if g is None else zero + (g.reshape(-1, 1) if g.ndim == 1 else g)
    return affine.recurrent(q, k, v, g, zero if a is None else a, zero if b is None else b)[0]


def early(q, k, v, g, u):
    return affine.recurrent_pre(q, k, v, g, 0 * k, 0 * k, u)[0]


def column(x):
    return x.reshape(-1, 1)


def with_ones(v):
    return np.concatenate([v, 1 + 0 * v[:, :1]], axis=1)


def by_channel(v, k, g):
    """One number per channel: a core of one key for each."""
    return np.concatenate([core(1 + 0 * column(k[:, d]), column(k[:, d]), column(v[:, d]), g[:, d]) for d in range(v.shape[1])], axis=1)


def divided(x):
    return x[:, :-1] / x[:, -1:]


def weighted_mean(k, v, w, u):
    """One channel of RWKV-4: a value and a one, written under e^k, fading by w, read before the write with a bonus of e^u."""
    key = np.exp(column(k))
    return divided(early(1 + 0 * key, key, with_ones(column(v)), 0 * key - w, np.exp(u).reshape(1)))


def slots(q, k, v, s, g):
    """Two runs of the core, one for what the slots hold of keys and one for their values, with a softmax between."""
    held, weights = 0 * s[0][:, None] * k[0], []
    for t in range(T):
        _, held = affine.step(held, s[t], s[t], k[t], g[t], 0 * s[t], 0 * s[t])
        logits = np.exp(held @ q[t])
        weights.append(logits / np.sum(logits))
    return core(np.stack(weights), s, v, g)


def shares(x):
    return np.exp(-np.logaddexp(0.0, -x))


def kept(Lambda, gate_a):
    return -8 * np.logaddexp(0.0, Lambda) * shares(gate_a)


def turning(u, nu, theta, B, C, D):
    """States in a frame that turns along are real, and fade."""
    angle = np.arange(1.0, T + 1)[:, None] * theta
    real, imaginary = (lru.gamma(nu) * (u @ part.T) for part in B)
    g = 0 * real - np.exp(nu)
    still = [
        by_channel(x, 1 + 0 * x, g)
        for x in (np.cos(angle) * real + np.sin(angle) * imaginary, np.cos(angle) * imaginary - np.sin(angle) * real)
    ]
    real, imaginary = np.cos(angle) * still[0] - np.sin(angle) * still[1], np.sin(angle) * still[0] + np.cos(angle) * still[1]
    return real @ C[0].T - imaginary @ C[1].T + D * u


def two_for_one(first, second):
    return np.stack([first, second], axis=1).reshape(2 * len(first), -1)


def product(q, two, values, fade, strengths):
    """A token with two writes is two tokens: the first fades, the second is read."""
    log_decay = two_for_one(column(fade), 0 * column(fade))
    key, v = two.reshape(2 * T, K), values.reshape(2 * T, V)
    write = strengths.reshape(2 * T, 1) * key
    return core(two_for_one(0 * q, q), write, v, log_decay, np.exp(log_decay) * key, -write)[1::2]


# a row: the chapter's own recurrence, and the core with the row's letters
ROWS = {
    "linear attention": (
        lambda q, k, v, **_: linear.recurrent(np.exp(q), np.exp(k), v, 0.0)[0],
        lambda q, k, v, **_: divided(core(np.exp(q), np.exp(k), with_ones(v))),
    ),
    "retention": (
        lambda q, k, v, **_: retnet.recurrent(q, k, v, 0.875)[0],
        lambda q, k, v, **_: core(q, k, v, 0 * k + np.log(0.875)),
    ),
    "Lightning attention": (
        lambda q, k, v, **_: lightning.recurrent(q, k, v, 0.75)[0],
        lambda q, k, v, **_: core(q, k, v, 0 * k + np.log(0.75)),
    ),
    "simple GLA": (lambda q, k, v, fade, **_: simple_gla.recurrent(q, k, v, fade)[0], lambda q, k, v, fade, **_: core(q, k, v, fade)),
    "gated linear attention": (lambda q, k, v, g, **_: gla.recurrent(q, k, v, g)[0], lambda q, k, v, g, **_: core(q, k, v, g)),
    "HGRN2": (
        lambda q, gate, v, **_: hgrn2.recurrent(q, gate, v)[0],
        lambda q, gate, v, **_: core(q, shares(-gate), v, -np.logaddexp(0.0, -gate)),
    ),
    "RWKV-5": (
        lambda q, k, v, g, u, **_: rwkv6.recurrent(q, k, v, 0 * g + g[0], u)[0],
        lambda q, k, v, g, u, **_: early(q, k, v, 0 * g + g[0], u),
    ),
    "RWKV-6": (lambda q, k, v, g, u, **_: rwkv6.recurrent(q, k, v, g, u)[0], lambda q, k, v, g, u, **_: early(q, k, v, g, u)),
    "RWKV-4": (
        lambda k, v, u, **_: rwkv4.recurrent(k[:, :V], v, u[:V], u[1:])[0],
        lambda k, v, u, **_: np.concatenate([weighted_mean(k[:, d], v[:, d], u[d], u[d + 1]) for d in range(V)], axis=1),
    ),
    "HGRN": (lambda k, g, **_: hgrn.recurrent(k, g)[0], lambda k, g, **_: by_channel(k, 1 + 0 * k, g)),
    "RG-LRU": (
        lambda k, q, gate, u, **_: rg_lru.recurrent(k, q, gate, u)[0],
        lambda k, q, gate, u, **_: by_channel(np.sqrt(-np.expm1(2 * kept(u, gate))) * (shares(q) * k), 1 + 0 * k, kept(u, gate)),
    ),
    "Mamba": (
        lambda v, steps, rates, q, k, u, **_: mamba.recurrent(v, steps, rates, k, q, u[:V])[0],
        lambda v, steps, rates, q, k, u, **_: (
            np.concatenate([core(q, column(steps[:, d]) * k, column(v[:, d]), column(steps[:, d]) * rates[d]) for d in range(V)], axis=1)
            + u[:V] * v
        ),
    ),
    "Mamba-2": (
        lambda v, small, q, k, u, **_: mamba2.recurrent(v, small, -u[0], k, q, u[1])[0],
        lambda v, small, q, k, u, **_: core(q, column(small) * k, v, small * -u[0]) + u[1] * v,
    ),
    "LRU": (
        lambda v, nu, theta, into, out, **_: lru.recurrent(v, nu, theta, into, out, v[0])[0],
        lambda v, nu, theta, into, out, **_: turning(v, nu, theta, into, out, v[0]),
    ),
    "mLSTM": (
        lambda q, k, v, beta, fade, **_: mlstm.recurrent(q, k, v, beta, fade, 0.0)[0],
        lambda q, k, v, beta, fade, **_: _over_one(core(q, np.exp(column(beta)) * k, with_ones(v), -np.logaddexp(0.0, -fade))),
    ),
    "DeltaNet": (
        lambda q, unit, v, beta, **_: delta.recurrent(q, unit, v, beta)[0],
        lambda q, unit, v, beta, **_: core(q, column(beta) * unit, v, None, unit, -column(beta) * unit),
    ),
    "Gated DeltaNet": (
        lambda q, unit, v, fade, beta, **_: gated_delta.recurrent(q, unit, v, fade, beta)[0],
        lambda q, unit, v, fade, beta, **_: core(q, column(beta) * unit, v, fade, np.exp(column(fade)) * unit, -column(beta) * unit),
    ),
    "Kimi delta attention": (
        lambda q, unit, v, g, beta, **_: kda.recurrent(q, unit, v, g, beta)[0],
        lambda q, unit, v, g, beta, **_: core(q, column(beta) * unit, v, g, np.exp(g) * unit, -column(beta) * unit),
    ),
    "Comba": (
        lambda q, unit, v, fade, beta, k, **_: comba.recurrent(q, unit, v, fade, beta, 0.5 * unit, 0.25)[0],
        lambda q, unit, v, fade, beta, k, **_: core(
            q - 0.25 * (0.5 * unit), column(beta) * unit, v, fade, 0.5 * unit, -column(beta) * unit
        ),
    ),
    "DeltaProduct": (
        lambda q, two, values, fade, strengths, **_: delta_product.recurrent(q, two, values, fade, strengths)[0],
        lambda q, two, values, fade, strengths, **_: product(q, two, values, fade, strengths),
    ),
    "RWKV-7": (
        lambda q, g, k, v, unit, iota, **_: rwkv7.recurrent(q, g, k, v, unit, iota)[0],
        lambda q, g, k, v, unit, iota, **_: core(q, k, v, g, -unit, iota * unit),
    ),
    "gated slot attention": (
        lambda q, k, v, slots, g, **_: gsa.recurrent(q, k, v, slots, g)[0],
        lambda q, k, v, g, **given: slots(q, k, v, given["slots"], g),
    ),
    "bounded-memory control": (
        lambda q, k, v, gate, **_: abc.recurrent(q, k, v, gate)[0],
        lambda q, k, v, gate, **_: slots(q, k, v, *abc.gates(gate, np.full(K, -np.inf))[:2]),
    ),
    "log-linear attention, all weights 1": (
        lambda q, k, v, fade, **_: log_linear.recurrent(q, k, v, fade, np.ones((T, 4)))[0],
        lambda q, k, v, fade, **_: core(q, k, v, fade),
    ),
    "Titans, without momentum": (
        lambda q, unit, v, small, beta, **_: titans.recurrent(q, unit, v, small, 0 * small, beta)[0],
        lambda q, unit, v, small, beta, **_: core(q, column(beta) * unit, v, np.log(1 - small), unit, -column(beta) * unit),
    ),
    "TTT layers, batches of one token": (
        lambda q, unit, v, beta, **_: ttt.primal(q, unit, v, column(beta), np.zeros((K, V)), batch=1)[0],
        lambda q, unit, v, beta, **_: core(q, column(beta) * unit, v, None, unit, -column(beta) * unit),
    ),
}


def _over_one(x):
    return x[:, :-1] / np.maximum(np.abs(x[:, -1:]), 1.0)


@pytest.mark.parametrize("model", ROWS)
@few
@given(inputs.seeds)
def test_a_row_is_its_model(model, seed):
    drawn = tokens(seed)
    theirs, ours = (bounded(text, precision=Precision("float64", "float64"), **drawn) for text in ROWS[model])
    coincide(theirs, ours, model)
