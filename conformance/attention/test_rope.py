"""Rotary positions: a pair is a complex number times a unit; products know differences of positions and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.spec.attention import rope

exact64 = Precision("float64", "float64")
layouts = st.booleans()


def rows(seed, T, d, dtype="float64"):
    (x,) = inputs.values("normal", [(T, d)], seed, dtype)
    return x


@given(inputs.seeds, st.sampled_from([0, 2, 6, 16]), layouts, st.sampled_from([0, 1, 5000]), st.sampled_from([1e4, 5e5]))
def test_a_pair_is_a_complex_number_times_a_unit(seed, d, interleaved, first, base):
    """An independent form: (a + ib) e^(i n theta), with theta by a power of the base. It also tells the direction."""
    x, pos = rows(seed, 5, d), np.arange(5) + first
    a, b = (x[:, ::2], x[:, 1::2]) if interleaved else np.split(x, 2, axis=1)
    theta = np.array([base ** (-2 * i / d) for i in range(d // 2)])
    units = np.exp(1j * np.outer(pos, theta))
    turned = (a + 1j * b) * units.reshape(a.shape)
    expected = np.empty_like(x)
    where = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, d // 2), slice(d // 2, None))
    expected[:, where[0]], expected[:, where[1]] = turned.real, turned.imag
    powers = Rounded(theta, 4 * 2.0**-53 * theta, precision=exact64)  # two units in the last place, as of any elementary function
    error = bounded(rope.rotate, x, pos.astype(float), precision=exact64, theta=powers, interleaved=interleaved).error
    own = rope.rotate(x, pos, base=base, interleaved=interleaved)
    agree(own, Rounded(expected, 2 * error, precision=exact64), "turned, where both round")


@given(inputs.seeds, layouts, st.integers(0, 40), st.integers(0, 40))
def test_turns_add_up_and_keep_lengths(seed, interleaved, m, n):
    """By a quarter and its multiples, where sines and cosines are whole but for a rounding, which is rounded off: exactly."""
    x = np.random.default_rng(seed).integers(-9, 10, (3, 8)).astype(float)
    theta = np.array([0.0, 1.0, 2.0, 3.0]) * np.pi / 2
    turn = lambda x, by: np.rint(rope.rotate(x, np.full(3, by), theta=theta, interleaved=interleaved))
    exactly(turn(turn(x, m), n), turn(x, m + n), "one turn after the other")
    exactly(turn(turn(x, m), -m), x, "there and back")
    exactly((turn(x, m) ** 2).sum(1), (x**2).sum(1), "lengths")
    products = turn(x, m) @ turn(x[::-1], n).T
    exactly(turn(x, m + 3) @ turn(x[::-1], n + 3).T, products, "later by the same")
    exactly(turn(x, m - n) @ x[::-1].T, products, "the difference of positions")


@given(inputs.seeds, st.integers(0, 6))
def test_layouts_are_one_another_in_another_order(fast, seed, T):
    """To the bit, on both sides."""
    x, pos = rows(seed, T, 12, "float32"), np.arange(T) + 3
    exactly(rope.rotate(rope.interleave(x), pos, interleaved=True), rope.interleave(rope.rotate(x, pos)), "spec")
    tensor, places = inputs.tensor(x[None], "float32"), inputs.tensor(pos)
    exactly(fast.interleave(tensor)[0], rope.interleave(x), "channels")
    exactly(fast.rotate(fast.interleave(tensor), places, interleaved=True), fast.interleave(fast.rotate(tensor, places)), "fast")


@given(inputs.seeds, st.sampled_from([0, 2, 6, 16]), layouts, st.sampled_from([0, 1, 5000]), inputs.dtypes(), st.booleans())
@example(0, 6, True, 5000, "float32", True)
@example(0, 6, False, 5000, "float32", False)
def test_rotations_agree_with_the_definition(fast, seed, d, interleaved, first, dtype, by_row):
    """Two sequences of three heads; positions for all, or for each sequence its own; every axis after the second is turned alike."""
    (x,) = inputs.values("normal", [(2, 5, 3, d)], seed, dtype)
    pos = np.stack([np.arange(5) + first, np.arange(5)[::-1]]) if by_row else np.arange(5) + first
    turned = fast.rotate(inputs.tensor(x, dtype), inputs.tensor(pos), interleaved=interleaved)
    flat = fast.rotate(inputs.tensor(x[:, :, 0], dtype), inputs.tensor(pos), interleaved=interleaved)
    exactly(flat, turned[:, :, 0], "without a head axis")
    for b, h in np.ndindex(2, 3):
        options = {"precision": Precision(dtype), "outputs": dtype, "interleaved": interleaved}
        agree(turned[b, :, h], bounded(rope.rotate, x[b, :, h], pos[b] if by_row else pos, **options), f"sequence {b}, head {h}")


def test_gradients_turn_back(fast):
    """The transposed rotation is the one by the opposite angle; on quarter turns of integers it is exact."""
    x = inputs.tensor(np.arange(24.0).reshape(1, 3, 8), "float32").requires_grad_()
    pos, theta = inputs.tensor(np.arange(3)), inputs.tensor(np.arange(4) * np.pi / 2, "float64")
    do = inputs.tensor(np.arange(24.0)[::-1].reshape(1, 3, 8).copy(), "float32")
    (gradient,) = torch.autograd.grad(fast.rotate(x, pos, theta=theta), x, do)
    back = rope.rotate(inputs.array(do)[0], -np.arange(3), theta=np.arange(4) * np.pi / 2)
    exactly(torch.round(gradient[0]), np.rint(back), "gradient")


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda fast, x: fast.rotate(x[..., :3], torch.arange(5)), ValueError, "x must"),
        (lambda fast, x: fast.rotate(x, torch.arange(4)), ValueError, "pos must"),
        (lambda fast, x: fast.rotate(x, torch.arange(5.0)), TypeError, "pos must"),
        (lambda fast, x: fast.rotate(x, torch.arange(5), theta=torch.ones(3)), ValueError, "theta must"),
        (lambda fast, x: fast.interleave(x[0, 0]), ValueError, "x must"),
    ],
)
def test_wrong_arguments_are_named(fast, call, error, message):
    with pytest.raises(error, match=message):
        call(fast, torch.zeros(2, 5, 1, 4))
