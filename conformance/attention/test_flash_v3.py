"""FlashAttention-3: the pipelined order is the same function; the 8-bit form rounds where it says, and by no more."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.conformance.attention.problems import problems
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, flash, flash_v3

sizes = st.integers(0, 7)
FINITE = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
FINITE = np.sort(FINITE[np.isfinite(FINITE)])


@given(inputs.seeds, sizes, sizes, st.integers(1, 8), st.integers(1, 8), st.sampled_from(["none", "causal", "random"]), st.booleans())
@example(0, 5, 3, 2, 1, "causal", True)
def test_the_pipeline_reorders_a_rational_function(seed, n_q, n_k, block_q, block_k, mask, sink):
    """Without rounding, for every mask, bias, sink and tiling."""
    q, k, v = field.problem(seed, n_q, n_k, 2)
    rng = np.random.default_rng(seed + 1)
    masks = {"none": None, "causal": np.tri(n_q, n_k, n_k - n_q, dtype=bool), "random": rng.random((n_q, n_k)) < 0.4}
    options = {"mask": masks[mask], "bias": field.logits(rng, n_q, n_k), "sink": field.logits(rng) if sink else None, "scale": 1}
    expected = dense.attention(q, k, v, **options)
    field.exactly(flash_v3.pipelined(q, k, v, block_q=block_q, block_k=block_k, **options), expected)


@given(problems(), st.sampled_from([1, 5, 16]), st.sampled_from([1, 7, 16]))
def test_maximum_and_sum_are_those_of_flash_after_every_tile(problem, block_q, block_k):
    """Bit for bit: the first n tiles of keys are a problem of their own, whose log-sum-exp is m + log l at that point."""
    q, k, v = problem.q[0, :, 0], problem.k[0, :, 0], problem.v[0, :, 0]
    for n in range(0, len(k) + block_k, block_k):
        options = {"block_q": block_q, "block_k": block_k, "mask": problem.mask[:, :n], "softcap": problem.options["softcap"]}
        one, other = flash_v3.pipelined(q, k[:n], v[:n], **options), flash.forward(q, k[:n], v[:n], **options)
        exactly(one[1], other[1], f"log-sum-exp of {n} keys")
        agree(one[0], bounded(flash.forward, q, k[:n], v[:n], precision=Precision("float64", "float64"), **options)[0], "output")


def test_every_number_of_e4m3_its_neighborhood_and_every_tie():
    """All 253 finite numbers stay; a middle goes to the even mantissa and its two neighbors to the near side; beyond 448 is 448."""
    exactly(flash_v3.e4m3(FINITE), FINITE, "numbers of the format")
    positive = np.unique(np.abs(FINITE))
    low, high, middle = positive[:-1], positive[1:], (positive[:-1] + positive[1:]) / 2
    even = np.where(np.arange(len(low)) % 2 == 0, low, high)  # codes count upward from 0, so every second number is even
    for sign in (1, -1):
        exactly(flash_v3.e4m3(sign * middle), sign * even, "middles")
        exactly(flash_v3.e4m3(sign * np.nextafter(middle, 0)), sign * low, "below a middle")
        exactly(flash_v3.e4m3(sign * np.nextafter(middle, 500)), sign * high, "above a middle")
        exactly(flash_v3.e4m3(sign * np.array([448.1, 464, 1e300, np.inf])), np.full(4, sign * 448.0), "beyond")
    assert np.isnan(flash_v3.e4m3(np.array([np.nan])))[0]


@given(inputs.seeds, inputs.regimes)
def test_e4m3_is_torchs(seed, regime):
    (x,) = inputs.values(regime, [(4, 256)], seed, "float32")
    x = np.clip(x * 2.0 ** np.arange(-12, -12 + 4)[:, None], -448, 448)
    exactly(flash_v3.e4m3(x), torch.from_numpy(x).float().to(torch.float8_e4m3fn).double().numpy())


@given(inputs.seeds, st.sampled_from([1, 33, 70]), st.sampled_from([8, 33]), st.integers(0, 8), st.booleans())
def test_error_stays_within_the_roundings(seed, t, block, offset, causal):
    """Scores by half a step of each code: 1/16 of it, or 2^-10 of the scale. Weights likewise, while the sum takes them unrounded."""
    q, k, v = inputs.values("normal", [(t, 24), (t, 24), (t, 5)], seed)
    mask = np.tri(t, dtype=bool) if causal else np.ones((t, t), bool)
    o, lse = flash_v3.forward_fp8(q, k, v, block_q=block, block_k=block, offset=offset, mask=mask)
    steps, codes = {}, {}
    for name, x in (("q", q), ("k", k), ("v", v)):
        group = np.arange(t) // block
        scale = np.array([np.max(np.abs(x[group == g])) for g in range(group[-1] + 1)])[group][:, None] / 448
        codes[name] = scale * flash_v3.e4m3(x / scale)
        steps[name] = np.maximum(np.abs(x) / 16, scale * 2.0**-10) * (1 + 2.0**-40)
        assert np.all(np.abs(codes[name] - x) <= steps[name])
    epsilon = 24**-0.5 * (steps["q"] @ np.abs(codes["k"]).T + np.abs(q) @ steps["k"].T)
    epsilon = np.max(np.where(mask, epsilon, 0), 1) + 2.0**-40
    real = dense.attention(q, k, v, mask=mask)
    assert np.all(np.abs(lse - real[1]) <= epsilon)
    middle = dense.attention(codes["q"], codes["k"], codes["v"], mask=mask)
    weights = dense.weights(codes["q"], codes["k"], mask=mask)
    s = dense.logits(codes["q"], codes["k"], mask=mask)
    least = 2.0 ** (-10 - offset) * np.exp(np.max(s, 1) - middle[1])[:, None]  # half the smallest number, as a share of the row
    assert np.all(np.abs(o - middle[0]) <= np.maximum(weights / 16, least * mask) @ np.abs(codes["v"]) * (1 + 2.0**-40) + 2.0**-40)
    spread = np.ptp(v, axis=0)
    moved = np.tanh(epsilon / 2)[:, None] * spread + dense.weights(codes["q"], codes["k"], mask=mask) @ steps["v"]
    assert np.all(np.abs(middle[0] - real[0]) <= moved + 2.0**-40)


@given(inputs.seeds, st.sampled_from([1, 2, 16, 33, 40, 96]))
def test_incoherent_changes_no_product(seed, d):
    q, k = inputs.values("normal", [(5, d), (7, d)], seed)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], d)
    turned = flash_v3.incoherent(q, k, signs)
    error = bounded(lambda a, b: a @ b.T, np.abs(q) * d**0.5, np.abs(k) * d**0.5, precision=Precision("float64", "float64")).error
    assert np.all(np.abs(turned[0] @ turned[1].T - q @ k.T) <= 2 * error)
    m = flash_v3.incoherent(np.eye(d), k, np.ones(d))[0]
    assert np.all(np.abs(m @ m.T - np.eye(d)) <= 2.0**-45)


def test_incoherent_spreads_an_outlier():
    """One channel of 64 holds everything; afterwards all hold the same."""
    q = np.zeros((1, 64))
    q[0, 17] = 32.0
    turned, _ = flash_v3.incoherent(q, q, np.ones(64))
    exactly(np.abs(turned), np.full((1, 64), 4.0))


def test_an_early_sink_flushes_no_weight_of_other_blocks_as_the_last_keys_come_first():
    """A first key 14 above the rest. Met first, it pushes every other weight below half of 2^-9; met last, it comes too late."""
    q, k, v = np.ones((4, 1)), np.zeros((256, 1)), np.full((256, 1), 448.0)
    k[0], v[:64] = 14.0, 0
    run = lambda k, v: flash_v3.forward_fp8(q, k, v, scale=1.0)[0]
    agree(run(k, v), bounded(dense.attention, q, k, v, scale=1.0, precision=Precision("float64", "float64"))[0])
    exactly(run(k[::-1], v[::-1]), np.zeros((4, 1)), "every weight but the sink's is lost")
