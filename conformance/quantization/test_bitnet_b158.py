"""Laws of BitNet b1.58: what the codes ignore, where they switch, and integer products that are exact."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.spec.quantization import bitnet_b158

shapes = st.sampled_from([(1, 3, 4), (3, 65, 32), (17, 5, 130), (33, 70, 300)])  # tokens, channels, columns


class Arrays:
    """The implementation under test, fed and read in float64 arrays, so that one statement of a law serves spec and fast."""

    def __init__(self, fast, dtype="float32"):
        self.fast, self.dtype = fast, dtype

    def linear(self, x, weight):
        return inputs.array(self.fast.linear(inputs.tensor(x, self.dtype), inputs.tensor(weight, self.dtype)))

    def ternarize(self, weight, *epsilon):
        codes, gamma = self.fast.ternarize(inputs.tensor(weight, self.dtype), *epsilon)
        return inputs.array(codes).astype(int), inputs.array(gamma)

    def quantize_activation(self, x):
        codes, scale = self.fast.quantize_activation(inputs.tensor(x, self.dtype))
        return inputs.array(codes).astype(int), inputs.array(scale)

    def matmul(self, x_codes, codes):
        return inputs.array(self.fast.matmul(inputs.tensor(x_codes, "int8"), inputs.tensor(codes, "int8")))

    def linear_backward(self, x, weight, dy):
        x, weight = (inputs.tensor(values, self.dtype).requires_grad_() for values in (x, weight))
        self.fast.linear(x, weight).backward(inputs.tensor(dy, self.dtype))
        return inputs.array(x.grad), inputs.array(weight.grad)


def sides(fast):
    return bitnet_b158, Arrays(fast)


def on_the_grid(shape, seed):
    """Tokens that their codes reproduce, and a weight of 0 and ±1, in halves if its size is even: the mean magnitude is then 1/2."""
    t, n, k = shape
    rng = np.random.default_rng(seed)
    x = rng.integers(-126, 127, (t, k)) * 1.0
    x[:, rng.integers(0, k)] = rng.choice([-127, 127], t)
    signs = rng.permutation(np.arange(n * k) % 2).reshape(n, k) * rng.choice([-1.0, 1.0], (n, k))
    return x * 2.0 ** (np.arange(t)[:, None] * 3 % 4), signs


@given(shapes, inputs.seeds)
@example((17, 5, 130), 0)
def test_numbers_on_the_grid_are_multiplied_exactly(fast, shape, seed):
    x, signs = on_the_grid(shape, seed)
    gamma = np.abs(signs).mean()
    for side in sides(fast):
        codes, found = side.ternarize(signs)
        exactly(codes, signs, "codes")
        exactly(np.float32(found), np.full((1, 1), np.float32(gamma)), "gamma")
        if gamma == 0.5:
            exactly(side.linear(x, signs), 0.5 * (x @ signs.T), "output")


@given(shapes, inputs.seeds)
def test_the_integer_product_is_exact(fast, shape, seed):
    rng = np.random.default_rng(seed)
    x_codes, codes = rng.integers(-127, 128, (shape[0], shape[2])), rng.integers(-1, 2, (shape[1], shape[2]))
    for side in sides(fast):
        exactly(side.matmul(x_codes, codes), np.array([[sum(int(a) * int(b) for a, b in zip(u, w)) for w in codes] for u in x_codes]))


def test_the_longest_sums_are_exact(fast):
    """131071 products of -128 by -1: 128 less than 2^24. One less of them differs by 128, and an odd code by 1."""
    x_codes, codes = np.full((2, 131071), -128), np.full((1, 131071), -1)
    x_codes[1, 5] = 1
    for side in sides(fast):
        exactly(side.matmul(x_codes, codes), np.array([[2**24 - 128], [2**24 - 257]]))


@given(inputs.regimes, inputs.seeds)
def test_codes_are_odd_in_the_weight(fast, regime, seed):
    weight = inputs.values(regime, [(5, 40)], seed, "float32")[0]
    for side in sides(fast):
        (codes, gamma), (negated, same) = side.ternarize(weight), side.ternarize(-weight)
        exactly(negated, -codes, "codes")
        exactly(same, gamma, "gamma")
        assert set(np.unique(codes)) <= {-1, 0, 1}


@given(inputs.seeds, st.integers(-40, 40))
def test_without_epsilon_powers_of_two_change_gamma_alone(fast, seed, exponent):
    weight = inputs.values("normal", [(5, 40)], seed, "float32")[0]
    for side in sides(fast):
        (codes, gamma), (scaled, larger) = side.ternarize(weight, 0.0), side.ternarize(weight * 2.0**exponent, 0.0)
        exactly(scaled, codes, "codes")
        exactly(larger, gamma * 2.0**exponent, "gamma")


def test_half_the_mean_is_a_tie_and_becomes_0(fast):
    half = 1.0  # of the mean 2 of these magnitudes
    weight = np.array([[half, 3, -half, -3], [1 + 2.0**-20, 3 - 2.0**-20, -1 - 2.0**-20, -3 + 2.0**-20]])
    for side in sides(fast):
        exactly(side.ternarize(weight, 0.0)[0], np.array([[0, 1, 0, -1], [1, 1, -1, -1]]))
        exactly(side.ternarize(weight, 2.0**-10)[0], np.array([[0, 1, 0, -1]] * 2), "epsilon moves the threshold up")


def test_a_normal_weight_has_31_percent_zeros(fast):
    """P(|z| < sqrt(2 / pi) / 2) = 0.3101; six standard deviations of a count of 2^16."""
    weight = inputs.rounded(np.random.default_rng(0).standard_normal((256, 256)), "float32")
    for side in sides(fast):
        assert abs(np.mean(side.ternarize(weight)[0] == 0) - 0.3101) < 6 * np.sqrt(0.31 * 0.69 / 2**16)


@given(inputs.regimes, inputs.seeds)
def test_tokens_are_coded_to_half_a_step_and_reach_127(fast, regime, seed):
    x = inputs.values(regime, [(7, 40)], seed, "float32")[0]
    x[2] = 0
    for side in sides(fast):
        codes, scale = side.quantize_activation(x)
        largest = np.abs(x).max(1)
        assert np.all(np.abs(codes * scale - x) <= scale / 2 * (1 + 2.0**-14))  # 127 codes, four roundings each
        exactly(np.abs(codes).max(1)[largest >= 1e-5], np.full(np.sum(largest >= 1e-5), 127), "the largest code")
        exactly(codes[2], np.zeros(40), "a zero token")
        assert np.all(np.abs(scale[2] * 127 / 1e-5 - 1) < 2.0**-22)


def test_tokens_below_epsilon_fade(fast):
    x = np.array([[1e-5, -5e-6, 0.0], [1e-7, 0.0, -1e-7], [1e-9, 0.0, 0.0]])
    for side in sides(fast):
        exactly(np.abs(side.quantize_activation(x)[0]).max(1), np.array([127, 1, 0]))


def test_released_code_floors_the_mean_instead_of_raising_it(fast):
    """The ledger: where the mean magnitude is near epsilon, the released threshold is half of the paper's."""
    weight = np.array([[0.9e-5, -0.9e-5, 0.9e-5, 0.9e-5]])
    exactly(bitnet_b158.ternarize_as_released(weight)[0], np.array([[1, -1, 1, 1]]), "released")
    for side in sides(fast):
        exactly(side.ternarize(weight)[0], np.zeros((1, 4)), "the paper")
    large = np.array([[1.0, 3.0, -0.25, 2.0]])
    exactly(bitnet_b158.ternarize_as_released(large)[0], bitnet_b158.ternarize(large)[0], "far from epsilon they agree")


@given(shapes, inputs.seeds)
def test_gradients_go_straight_through(fast, shape, seed):
    """On the grid the quantized operands are known, and so are both products: small integers times powers of two."""
    x, signs = on_the_grid(shape, seed)
    if shape[1] * shape[2] % 2 == 0:
        dy = np.random.default_rng(seed).integers(-3, 4, (shape[0], shape[1])) * 1.0
        for side in sides(fast):
            dx, dweight = side.linear_backward(x, signs, dy)
            exactly(dx, dy @ signs / 2, "dx")
            exactly(dweight, dy.T @ x, "dweight")


def test_only_the_gradient_that_is_asked_for(fast):
    x, weight = torch.ones(2, 4), torch.ones(3, 4, requires_grad=True)
    fast.linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad.shape == (3, 4)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_constant_weights(fast, value):
    """All zero: codes 0 and outputs 0. All alike: one code, for the mean is the magnitude, and epsilon is small beside it."""
    x = np.array([[127.0, -3, 5, 0]])
    for side in sides(fast):
        codes, gamma = side.ternarize(np.full((2, 4), value))
        exactly(codes, np.full((2, 4), np.sign(value)), "codes")
        exactly(gamma, np.full((1, 1), abs(value)), "gamma")
        exactly(side.linear(x, np.full((2, 4), value)), np.full((1, 2), 129 * value), "output")


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0)])
def test_empty_sizes(fast, shape):
    t, n, k = shape
    for side in sides(fast):
        exactly(side.linear(np.ones((t, k)), np.ones((n, k))), np.zeros((t, n)))
        exactly(side.matmul(np.ones((t, k), int), np.ones((n, k), int)), np.full((t, n), k))
        if not n * k:
            exactly(side.ternarize(np.ones((n, k)))[1], np.zeros((1, 1)), "gamma")


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_token(fast, lost):
    x, weight = inputs.values("normal", [(5, 40), (6, 40)], 3, "float32")
    side = Arrays(fast)
    expected, hurt = side.linear(x, weight), x.copy()
    hurt[2, 7], expected[2] = lost, np.nan
    exactly(side.linear(hurt, weight), expected, "an activation")
    exactly(side.quantize_activation(hurt)[0][2], np.zeros(40), "codes")
    hurt = weight.copy()
    hurt[2, 7] = lost
    assert np.isnan(side.linear(x, hurt)).all() and np.isnan(side.ternarize(hurt)[1]).all()
    for call, values in ((bitnet_b158.ternarize, hurt), (bitnet_b158.quantize_activation, hurt)):
        with pytest.raises(ValueError, match="finite"):
            call(values)
