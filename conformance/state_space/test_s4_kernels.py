"""S4's kernels: by powers, by fractions at the roots of 1, in HiPPO's basis, and beside S4D's; their gradients.

A complex system of N numbers is a real one of 2N: bounds run through real text on that, and on pairs of real numbers.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import agree
from twofold.conformance.rounding import Precision, Rounded, bounded
from twofold.conformance.state_space.test_s4 import one, tensor
from twofold.conformance.state_space.test_s4d import back, complex_tensor
from twofold.conformance.state_space.test_s4d_agreement import product
from twofold.spec.state_space import hippo, s4, s4d

FLOAT64 = Precision("float64", "float64")
lengths, formats = st.sampled_from([1, 2, 7, 16, 35, 64]), st.sampled_from(["float32", "float64"])


def pairs_of(x, dtype="float32"):
    return inputs.rounded(x.real, dtype) + 1j * inputs.rounded(x.imag, dtype)


def low_rank(seed, N=6, scale=1.0):
    """Lam, p, B, C, dt: HiPPO's, with other reads; numbers of float32."""
    rng = np.random.default_rng(seed)
    Lam, p, B, V = hippo.legs_low_rank(N)
    C = rng.standard_normal(N) + 1j * rng.standard_normal(N)
    return *map(pairs_of, (Lam, scale * p, B, C)), float(inputs.rounded(np.exp2(rng.uniform(-6, -2, 1)), "float32")[0])


def dense(Lam, p):
    return np.diag(Lam) - np.outer(p, p.conj())


def doubled(move, write):
    """A complex system as a real one: real parts, then imaginary ones."""
    return np.block([[move.real, -move.imag], [move.imag, move.real]]), np.concatenate([write.real, write.imag])


def reads(C):
    return np.concatenate([C.real, -C.imag])


def solved(A, B, dt):
    """The bilinear system in steps, and how far another solver in float64 may be (Higham 2002, Theorem 9.4; pivots hardly grow)."""
    move, write = doubled(*s4.bilinear(A, B, dt))
    N = len(move)
    M, _ = doubled(np.eye(len(A)) - dt / 2 * A, B)
    slack = 2 * 8 * N * 2.0**-53 * np.linalg.norm(np.linalg.inv(M), 2) * np.linalg.norm(M)
    return (Rounded(x, slack * np.linalg.norm(x), precision=FLOAT64) for x in (move, write))


def doubling(move, write, read, L):
    rows = write[:, None]
    while rows.shape[1] < L:
        rows, move = np.concatenate([rows, move @ rows], axis=1), move @ move
    return read @ rows[:, :L]


def transform(n, unit):
    """Relative error in the 2-norm of a Fourier transform: a factor r of n is n / r sums of r products with rounded roots of 1."""
    factors, r = [], 2
    while n > 1:
        while n % r == 0:
            factors, n = [*factors, r], n // r
        r += 1
    return sum(np.sqrt(r) * (r + 4) * 1.1 * unit for r in factors)


@given(inputs.seeds, lengths, formats)
def test_kernels_by_powers_agree(fast, seed, L, dtype):
    Lam, p, B, C, dt = low_rank(seed)
    A = pairs_of(dense(Lam, p))
    K = fast.kernel_powers(*(complex_tensor(x[None], "complex64" if dtype == "float32" else "complex128") for x in (A, B, C)),
                           inputs.tensor(np.array([dt]), dtype), L)  # fmt: skip
    bound = doubling(*solved(A, B, dt), reads(C), L).rounded_to(dtype)
    bound.value = s4.kernel_powers(A, B, C, dt, L)
    agree(K[0], bound, f"kernel in {dtype}")


def fractions(Lam, p, B, folded, dt, root):
    """The transform of the kernel at the roots in pairs of real numbers: four sums of fractions; `folded` a pair of Rounded."""
    rounded = lambda x: tuple(Rounded(np.ascontiguousarray(y), precision=FLOAT64) for y in (x.real, x.imag))
    stored = lambda x: tuple(y * (1 + 2.0**-52) for y in rounded(x))  # sine and cosine: one rounding more
    (Lam, p, B, root), conj = (rounded(Lam), rounded(p), rounded(B), stored(root)), lambda x: (x[0], -x[1])
    over = lambda a, b: [x / (b[0] * b[0] + b[1] * b[1]) for x in product(a, conj(b))]
    half = [(1 + root[0]) * (dt / 2), root[1] * (dt / 2)]
    turned = product([x[:, None] for x in half], Lam)
    below = (1 - root[0])[:, None] - turned[0], -root[1][:, None] - turned[1]
    total = lambda a, b: [np.sum(x, axis=1) for x in over(product(a, b), below)]
    direct, out, into, within = total(folded, B), total(folded, p), total(conj(p), B), total(conj(p), p)
    inner = product(half, within)
    lost = over(product(product(out, half), into), (1 + inner[0], inner[1]))
    return [(a - b) * dt for a, b in zip(direct, lost)]


@given(inputs.seeds, lengths, formats, st.sampled_from([1.0, 0.0]))
def test_kernels_by_fractions_are_kernels_by_powers(fast, seed, L, dtype, scale):
    """For even L a root is -1; with p = 0 nothing but a diagonal is left."""
    Lam, p, B, C, dt = low_rank(seed, scale=scale)
    move, _ = solved(dense(Lam, p), B, dt)
    power, N = Rounded(np.eye(2 * len(Lam)), precision=FLOAT64), len(Lam)
    for digit in f"{L:b}":
        power = power @ power @ (move if digit == "1" else np.eye(2 * N))
    folded = reads(C) - reads(C) @ power
    found = fractions(Lam, p, B, (folded[:N], -folded[N:]), dt, np.exp(-2j * np.pi * np.arange(L) / L))
    size = np.hypot(found[0].value, found[1].value)
    off = np.mean(found[0].error + found[1].error) + transform(L, 2.0**-53) * np.linalg.norm(size) / np.sqrt(L)
    expected = Rounded(s4.kernel_powers(dense(Lam, p), B, C, dt, L), off, precision=FLOAT64)
    agree(s4.kernel_cauchy(Lam, p, B, C, dt, L), expected, "kernel of the spec")
    dtypes = ("complex64", "float32") if dtype == "float32" else ("complex128", "float64")
    K = fast.kernel_cauchy(*(complex_tensor(x[None], dtypes[0]) for x in (Lam, p, B, C)), inputs.tensor(np.array([dt]), dtypes[1]), L)
    agree(K[0], expected.rounded_to(dtype), f"kernel in {dtype}")
    if L % 2 == 0:  # at the root -1 the paper's formula is 0 times infinity; the limit is what C (I - move^L) reads of B dt / 2
        sums = np.sum(expected * np.where(np.arange(L) % 2, -1.0, 1.0))
        limit = dt / 2 * (folded @ np.concatenate([B.real, B.imag]))
        agree(limit.value, Rounded(sums.value, sums.error + limit.error, precision=FLOAT64), "sum of alternating signs")


def test_hippo_in_its_basis_is_hippo():
    """C V for C: the same real system. Eigensolvers are right to some roundoffs of the norm; the kernel moves by L times that."""
    (A, B), (Lam, p, b, V), L, dt = hippo.legs(8), hippo.legs_low_rank(8), 64, 2.0**-5
    C = np.random.default_rng(0).standard_normal(8)
    slack = L * 64 * 2.0**-53 * dt * np.linalg.norm(A) * np.linalg.norm(C) * np.linalg.norm(dt * B)
    assert np.max(np.abs(s4.kernel_cauchy(Lam, p, b, C @ V, dt, L) - s4.kernel_powers(A, B, C, dt, L))) <= slack


@given(inputs.seeds, st.sampled_from([1, 16, 35]))
def test_without_the_low_rank_and_with_a_held_input_it_is_s4d(seed, T):
    """Of S4D's halves of pairs, the conjugates written out: 2 Re of one is the sum of both."""
    rng = np.random.default_rng(seed)
    Lam, u, dt = s4d.lambdas(6, "lin"), rng.standard_normal(T), 0.1
    C, S0 = rng.standard_normal((2, 3)) + 1j * rng.standard_normal((2, 3))
    y, state = s4d.recurrent(u, Lam, C, 0.5, dt, S0)
    both = lambda x: np.concatenate([x, x.conj()])
    system = bounded(s4.zero_order_hold, *doubled(np.diag(both(Lam)), np.ones(6) + 0j), dt, precision=FLOAT64)
    bound, end = along(u, *system, reads(both(C)), 0.5, np.concatenate([both(S0).real, both(S0).imag]))
    bound.value, end = y, end[:3]
    end.value = state.real
    found = s4.recurrent(u, np.diag(both(Lam)), np.ones(6), both(C), 0.5, dt, both(S0), s4.zero_order_hold)
    agree(found[0], bound, "outputs")
    agree(found[1][:3].real, end, "real parts of the state")


def along(u, move, write, read, D, state):
    outputs = [u[:0]]
    for x in u:
        state = move @ state + write * x
        outputs.append((read @ state + D * x)[None])
    return np.concatenate(outputs), state


@pytest.mark.parametrize("name", ["kernel_powers", "zero_order_hold", "kernel_cauchy"])
def test_gradients_of_systems_are_what_differences_approach(fast, name):
    """Central differences of the definition come closer four times with half the distance: the gradient is their limit."""
    Lam, p, B, C, dt = low_rank(0)
    rng, L = np.random.default_rng(0), 16
    system = (Lam, p, B, C) if name == "kernel_cauchy" else (dense(Lam, p), B, C)
    ours, theirs = fast.kernel_cauchy if name == "kernel_cauchy" else fast.kernel_powers, s4.kernel_powers
    rules = (fast.zero_order_hold, s4.zero_order_hold) if name == "zero_order_hold" else (fast.bilinear, s4.bilinear)
    others = [rng.standard_normal(x.shape) + 1j * rng.standard_normal(x.shape) for x in system]
    dK, ddt = rng.standard_normal(L), 0.01
    leaves = [tensor(x).requires_grad_() for x in system] + [one(dt).requires_grad_()]
    K = ours(*leaves, L) if name == "kernel_cauchy" else ours(*leaves, L, rules[0])
    *gradients, of_dt = torch.autograd.grad(K, leaves, inputs.tensor(dK[None], "float64"))
    slope = sum(np.real(np.sum(np.conj(back(g)[0]) * x)) for g, x in zip(gradients, others, strict=True)) + float(of_dt[0]) * ddt

    def value(h):
        moved = [x + h * y for x, y in zip(system, others, strict=True)]
        if name == "kernel_cauchy":
            moved = [dense(*moved[:2]), *moved[2:]]
        return dK @ theirs(*moved, dt + h * ddt, L, rules[1])

    errors = [abs((value(h) - value(-h)) / (2 * h) - slope) for h in (2.0**-6, 2.0**-7, 2.0**-8)]
    assert all(3.5 < a / b < 4.5 for a, b in zip(errors, errors[1:])), errors
