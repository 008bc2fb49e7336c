"""Dense attention: the definition itself, against an independent derivation, and its PyTorch form against the definition."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense

exact64 = Precision("float64", "float64")
sizes = st.sampled_from([1, 2, 3, 5, 8])


@st.composite
def arguments(draw, dtype="float64"):
    """Arrays q, k, v, do, dlse of one head and every option, present or not."""
    n_q, n_k, d, dv = (draw(sizes) for _ in range(4))
    seed = draw(inputs.seeds)
    shapes = [(n_q, d), (n_k, d), (n_k, dv), (n_q, dv), (n_q,), (n_q, n_k), (n_q, n_k), (1,)]
    q, k, v, do, dlse, bias, coin, sink = inputs.values(draw(inputs.regimes), shapes[:4], seed, dtype) + inputs.values(
        "normal", shapes[4:], seed + 1, "float32"
    )
    bias = np.where(coin > 1, -np.inf, bias)  # a bias of -inf masks too
    options = {
        "mask": coin < 0.5 if draw(st.booleans()) else None,
        "scale": draw(st.sampled_from([None, 0.5])),
        "softcap": draw(st.sampled_from([None, 1.5])),
        "bias": bias if draw(st.booleans()) else None,
        "sink": float(sink[0]) if draw(st.booleans()) else None,
    }
    return q, k, v, do, dlse, options


def derived(q, k, v, mask, scale, softcap, bias, sink):
    """Attention in torch's float64 in another way: the sink as one more column of the softmax, rows without keys by hand."""
    s = (q.shape[1] ** -0.5 if scale is None else scale) * torch.einsum("qd,kd->qk", q, k)
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    s = s if bias is None else s + bias
    s = s if mask is None else s.masked_fill(~mask, -torch.inf)
    some = (s > -torch.inf).any(1)
    column = s.new_full((len(s), 1), -torch.inf) if sink is None else sink.expand(len(s), 1)
    p = torch.softmax(torch.cat([s[some], column[some]], 1), 1)[:, :-1]
    o = q.new_zeros(len(q), v.shape[1]).index_put((some.nonzero()[:, 0],), p @ v)
    return o, torch.logsumexp(s[some], 1), some


@given(arguments())
def test_the_definition_and_its_gradients_by_an_independent_derivation(case):
    q, k, v, do, dlse, options = case
    given_ = [q, k, v, options["bias"], None if options["sink"] is None else np.array([options["sink"]])]
    leaves = [None if x is None else torch.from_numpy(x).requires_grad_() for x in given_]
    mask = None if options["mask"] is None else torch.from_numpy(options["mask"])
    o, lse, some = derived(*leaves[:3], mask, options["scale"], options["softcap"], *leaves[3:])
    expected = bounded(dense.attention, q, k, v, precision=exact64, **options)
    agree(o, expected[0], "output")
    agree(lse, expected[1][some.numpy()], "log-sum-exp")
    assert np.all(np.isneginf(expected[1].value[~some.numpy()]))

    loss = (o * torch.from_numpy(do)).sum() + (lse * torch.from_numpy(dlse)[some]).sum()
    gradients = torch.autograd.grad(loss, [x for x in leaves if x is not None], allow_unused=True, materialize_grads=True)
    bounds = [x for x in bounded(dense.backward, q, k, v, do, dlse=dlse, precision=exact64, **options) if x is not None]
    for i, (actual, bound) in enumerate(zip(gradients, bounds, strict=True)):
        agree(actual.numpy(), bound.reshape(1) if bound.ndim == 0 else bound, f"gradient {i}")


@given(arguments())
def test_gradients_are_slopes(case):
    """Central differences at two steps: their error falls with the square of the step, so that the extrapolated slope is the gradient."""
    q, k, v, do, dlse, options = case
    q, k, v = (np.clip(x, -2, 2) for x in (q, k, v))
    direction = [np.random.default_rng(1).choice([-1.0, 1.0], x.shape) for x in (q, k, v)]

    def loss(step):
        o, lse = dense.attention(*(x + step * y for x, y in zip((q, k, v), direction)), **options)
        return np.sum(o * do) + np.sum(np.where(lse == -np.inf, 0, lse) * dlse)

    slope = lambda h: (loss(h) - loss(-h)) / (2 * h)
    h = 2.0**-9
    extrapolated, coarse = (4 * slope(h / 2) - slope(h)) / 3, slope(h)
    gradients = dense.backward(q, k, v, do, dlse=dlse, **options)[:3]
    predicted = sum(np.sum(x * y) for x, y in zip(gradients, direction))
    size = sum(np.sum(np.abs(x)) for x in gradients) + np.sum(np.abs(do)) + np.sum(np.abs(dlse))
    assert abs(extrapolated - predicted) <= abs(coarse - extrapolated) + 2.0**-30 * size


@given(arguments(), st.floats(-8, 8, width=16), st.floats(-8, 8, width=16))
def test_shifting_keys_or_values_shifts_log_sum_exp_or_output(case, c, d):
    """K + c moves every logit of a row alike; V + c moves the output by what the keys hold of it."""
    q, k, v, _, _, options = case
    options |= {"softcap": None, "sink": None, "bias": None}
    scale = q.shape[1] ** -0.5 if options["scale"] is None else options["scale"]
    o, lse = dense.attention(q, k, v, **options)
    some = lse > -np.inf
    bound = bounded(dense.attention, q, k + c, v + d, precision=exact64, **options)
    agree((o + d)[some], bound[0][some], "output")
    agree((lse + scale * c * q.sum(1))[some], bound[1][some], "log-sum-exp")


def test_limits_of_sink_and_cap():
    q, k, v = inputs.values("normal", [(4, 8), (6, 8), (6, 3)], 0)
    plain = dense.attention(q, k, v)
    for z, o in ((-np.inf, plain[0]), (np.inf, 0 * plain[0])):
        exactly(dense.attention(q, k, v, sink=z)[0], o)
        exactly(dense.attention(q, k, v, sink=z)[1], plain[1])
    exactly(dense.backward(q, k, v, v[:4], sink=-np.inf)[4], 0.0)
    agree(dense.attention(q, k, v, softcap=2.0**40)[0], bounded(dense.attention, q, k, v, precision=exact64)[0], "no cap")


@given(arguments(dtype="bfloat16"), st.sampled_from(["float32", "bfloat16"]), st.sampled_from([(1, 1), (2, 1), (4, 2)]))
def test_fast_agrees_with_the_definition(fast, case, dtype, heads):
    """Two batches of these heads; the contract is float32 from the inputs to the last rounding."""
    q, k, v, do, dlse, options = case
    h, h_kv = heads
    spread = lambda x, n: np.stack([x * 0.5**i for i in range(n)], 1)[None].repeat(2, 0)  # (2, T, n, D): heads differ
    q, k, v, do = spread(q, h), spread(k, h_kv), spread(v, h_kv), spread(do, h)
    given_ = [inputs.tensor(x, dtype).requires_grad_() for x in (q, k, v)]
    keywords = options | {
        "mask": None if options["mask"] is None else inputs.tensor(options["mask"][None, None]),
        "bias": None if options["bias"] is None else inputs.tensor(options["bias"][None, None], "float32"),
        "sink": None if options["sink"] is None else inputs.tensor(np.full(h, options["sink"]), "float32"),
    }
    do_, dlse_ = inputs.tensor(do, dtype), inputs.tensor(np.broadcast_to(dlse, (2, h, len(dlse))).copy(), "float32")
    o, lse = fast.attention(*given_, **keywords)
    p = fast.weights(*given_[:2], **keywords)
    gradients = fast.backward(*given_, do_, dlse=dlse_, **keywords)
    by_autograd = torch.autograd.grad([o, lse], given_, [do_, dlse_])
    precision = Precision(dtype, operand="float32")
    sums = {}
    for i in range(h):
        j = i // (h // h_kv)
        arrays = q[1, :, i], k[1, :, j], v[1, :, j]
        expected = bounded(dense.attention, *arrays, precision=precision, outputs=(dtype, "float32"), **options)
        agree(o[1, :, i], expected[0], "output")
        agree(lse[1, i], expected[1], "log-sum-exp")
        agree(p[1, i], bounded(dense.weights, *arrays[:2], precision=precision, outputs="float32", **options), "weights")
        bounds = bounded(dense.backward, *arrays, do[1, :, i], dlse=dlse, precision=precision, outputs="float32", **options)
        sums[j] = [x + y for x, y in zip(sums[j], bounds[1:3])] if j in sums else bounds[1:3]
        for dq in (gradients[0], by_autograd[0]):
            agree(dq[1, :, i], bounds[0].rounded_to(dtype), "dq")
    for j, pair in sums.items():
        for name, index, bound in zip(("dk", "dv"), (1, 2), pair):
            for result in (gradients, by_autograd):
                agree(result[index][1, :, j], bound.rounded_to(dtype), name)
    assert (gradients[3] is None) == (options["bias"] is None) and (gradients[4] is None) == (options["sink"] is None)


def test_fast_without_keys_and_without_rows(fast):
    x = torch.ones(1, 3, 2, 4, device=inputs.target.device())
    o, lse = fast.attention(x, x[:, :0], x[:, :0])
    exactly(o, np.zeros((1, 3, 2, 4)))
    exactly(lse, np.full((1, 2, 3), -np.inf))
    o, lse = fast.attention(x[:, :0], x, x)
    assert o.shape == (1, 0, 2, 4) and lse.shape == (1, 2, 0)
