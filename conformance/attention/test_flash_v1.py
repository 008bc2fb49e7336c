"""FlashAttention: every tiling is dense attention, its traffic is what a run moves, and block-sparse attention reads its tiles only."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, poison
from twofold.conformance.attention import field
from twofold.conformance.attention.problems import problems, visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, flash, flash_v1

exact64 = Precision("float64", "float64")
blocks = st.integers(1, 8)


def tiles(n_q, n_k, block_q, block_k, seed, density=0.5):
    """A random block mask, and the mask of pairs that it stands for."""
    shape = -(-n_q // block_q), -(-n_k // block_k)
    block_mask = np.random.default_rng(seed).random(shape) < density
    return block_mask, np.repeat(np.repeat(block_mask, block_q, 0), block_k, 1)[:n_q, :n_k]


# The spec


@given(inputs.seeds, st.integers(0, 7), st.integers(0, 7), blocks, blocks, st.sampled_from(["none", "causal", "random", "late"]))
@example(0, 3, 6, 8, 1, "late")
@example(0, 5, 2, 2, 1, "causal")
@example(1, 7, 7, 3, 2, "random")
def test_every_tiling_is_dense_attention(seed, n_q, n_k, block_q, block_k, kind):
    """In the field, so without rounding: sizes that do not divide, tiles larger than the matrix, rows whose first tiles are masked."""
    q, k, v = field.problem(seed, n_q, n_k, 2)
    random, late = np.random.default_rng(seed).random((n_q, n_k)) < 0.4, np.tile(np.arange(n_k) >= n_k // 2, (n_q, 1))
    masks = {"none": None, "causal": visible(n_q, n_k, causal=True), "random": random, "late": late}
    options = {"block_q": block_q, "block_k": block_k, "mask": masks[kind], "scale": 1}
    result = flash_v1.forward(q, k, v, **options)
    field.exactly(result, dense.attention(q, k, v, mask=masks[kind], scale=1))
    field.exactly(result, flash.forward(q, k, v, **options), "beside FlashAttention-2")


@given(inputs.seeds, st.integers(0, 7), st.integers(0, 7), blocks, blocks, st.sampled_from([0.0, 0.3, 0.7]))
@example(0, 7, 7, 2, 2, 0.5)
@example(1, 7, 6, 1, 3, 0.3)
def test_block_sparse_is_dense_attention_with_the_mask_spelled_out(seed, n_q, n_k, block_q, block_k, density):
    q, k, v = field.problem(seed, n_q, n_k, 2)
    block_mask, mask = tiles(n_q, n_k, block_q, block_k, seed, density)
    mask_inside = np.random.default_rng(seed + 1).random((n_q, n_k)) < 0.7
    result = flash_v1.block_sparse(q, k, v, block_mask, block_q=block_q, block_k=block_k, mask=mask_inside, scale=1)
    field.exactly(result, dense.attention(q, k, v, mask=mask & mask_inside, scale=1))


@given(problems(sink=False, softcap=False), blocks, blocks, st.booleans())
def test_backward_is_the_gradient_of_dense_attention(problem, block_q, block_k, with_dlse):
    q, k, v, do = problem.q[0, :, 0], problem.k[0, :, 0], problem.v[0, :, 0], problem.do[0, :, 0]
    dlse = problem.dlse[0, 0] if with_dlse else None
    o, lse = flash_v1.forward(q, k, v, mask=problem.mask)
    gradients = flash_v1.backward(q, k, v, o, lse, do, block_q=block_q, block_k=block_k, dlse=dlse, mask=problem.mask)
    expected = bounded(dense.backward, q, k, v, do, dlse=dlse, mask=problem.mask, precision=exact64)
    for name, actual, bound in zip(("dq", "dk", "dv"), gradients, expected):
        agree(actual, bound, name)


class Counted(np.ndarray):
    """An array in slow memory: what is sliced out of it is loaded, and counted."""

    def __getitem__(self, index):
        part = np.asarray(self)[index]
        self.moved.append(part.size)
        return part


class CountedList(list):
    """Blocks in slow memory: loading and storing one is counted."""

    def __getitem__(self, i):
        self.moved.append(sum(part.size for part in list.__getitem__(self, i)))
        return list.__getitem__(self, i)

    def __setitem__(self, i, block):
        self.moved.append(sum(part.size for part in block))
        list.__setitem__(self, i, block)


def moved_by(function, *arrays, **options):
    """How many elements a run of the spec's own text moves between slow and fast memory."""
    moved = []

    def slow(blocks):
        memory = CountedList(blocks)
        memory.moved = moved
        return memory

    arrays = [x.view(Counted) for x in arrays]
    for x in arrays:
        x.moved = moved
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash_v1, "_slow", slow)
        function(*arrays, **options)
    return sum(moved)


sizes = st.integers(1, 40)


@given(sizes, sizes, st.integers(1, 5), st.integers(1, 5), st.integers(1, 50), st.integers(1, 50))
def test_traffic_is_what_a_run_moves(nq, nk, d, dv, block_q, block_k):
    q, k, v = inputs.values("normal", [(nq, d), (nk, d), (nk, dv)], 0)
    moved = moved_by(flash_v1.forward, q, k, v, block_q=block_q, block_k=block_k)
    assert moved == flash_v1.traffic(nq, nk, d, dv, block_q, block_k)


@given(st.integers(1, 6), st.integers(1, 6), inputs.seeds)
def test_block_sparse_moves_only_its_tiles(n_q, n_k, seed):
    """Proposition 4: beside the keys of the blocks that anybody attends, the rows' traffic shrinks by the density of the block mask."""
    q, k, v = inputs.values("normal", [(4 * n_q, 3), (8 * n_k, 3), (8 * n_k, 2)], 0)
    block_mask, _ = tiles(4 * n_q, 8 * n_k, 4, 8, seed)
    moved = moved_by(lambda q, k, v: flash_v1.block_sparse(q, k, v, block_mask, block_q=4, block_k=8), q, k, v)
    rows_alone = flash_v1.traffic(4, 8, 3, 2, 4, 8) - 8 * (3 + 2)  # one block of rows under one block of keys
    assert moved == block_mask.any(0).sum() * 8 * (3 + 2) + block_mask.sum() * rows_alone


@given(st.integers(4, 8), st.integers(2, 5), st.integers(6, 9))
def test_traffic_falls_with_the_size_of_fast_memory(log_n, log_d, log_memory):
    """Theorem 2: twelve times N²d²/M, and what is of lower order; the paper's blocks, where they divide."""
    n, d, memory = 2**log_n, 2**log_d, 2 ** (log_memory + log_d)
    block_k, block_q = memory // (4 * d), min(memory // (4 * d), d)
    n = max(n, block_k)
    unit = Fraction(n * n * d * d, memory)
    assert flash_v1.traffic(n, n, d, d, block_q, block_k) == 12 * unit + 16 * unit / d + 2 * n * d


# The implementation


@given(problems(sink=False, softcap=False))
def test_forward_agrees_with_the_definition(fast, problem):
    o, lse = fast.forward(*problem.tensors(), causal=problem.options["causal"], window=problem.options["window"])
    for b, h, h_kv in problem.heads:
        arrays = problem.q[b, :, h], problem.k[b, :, h_kv], problem.v[b, :, h_kv]
        expected = bounded(
            dense.attention, *arrays, mask=problem.mask, precision=Precision(problem.dtype), outputs=(problem.dtype, "float32")
        )
        agree(o[b, :, h], expected[0], "output")
        agree(lse[b, h], expected[1], "log-sum-exp")


@given(inputs.seeds, st.sampled_from([(5, 9), (17, 33), (33, 17)]))
def test_gradients_agree_with_those_of_the_definition(fast, seed, shape):
    """Held to the spec's backward on the same stored output and log-sum-exp, with a gradient of the latter."""
    (t_q, t_k), d = shape, 16
    q, k, v, do = inputs.values("normal", [(t_q, d), (t_k, d), (t_k, d), (t_q, d)], seed, "float32")
    given_ = [inputs.tensor(x[None, :, None], "float32") for x in (q, k, v, do)]
    o, lse = fast.forward(*given_[:3], causal=True)
    dlse = np.random.default_rng(seed).integers(-3, 4, t_q).astype(float)
    gradients = fast.backward(*given_[:3], o, lse, given_[3], dlse=inputs.tensor(dlse[None, None], "float32"), causal=True)
    stored = inputs.array(o)[0, :, 0], inputs.array(lse)[0, 0]
    mask = visible(t_q, t_k, causal=True)
    expected = bounded(flash_v1.backward, q, k, v, *stored, do, dlse=dlse, mask=mask, precision=Precision("float32"))
    for name, actual, bound in zip(("dq", "dk", "dv"), gradients, expected, strict=True):
        agree(actual[0, :, 0], bound, name)


@given(inputs.seeds, st.integers(0, 20), st.integers(0, 20), st.sampled_from([1, 3, 8]), st.sampled_from([1, 5, 16]), st.booleans())
@example(1, 17, 20, 8, 5, True)
def test_block_sparse_reads_exactly_its_tiles(fast, seed, t_q, t_k, block_q, block_k, causal):
    """Tomography: q = 0 and one-hot values return the mask, one for every head, and the log-sum-exp counts it."""
    given_, seen = zip(*(tiles(t_q, t_k, block_q, block_k, seed + h) for h in range(4)))
    seen = np.stack(seen) & visible(t_q, t_k, causal)
    q, k = torch.zeros(1, t_q, 4, 8), torch.ones(1, t_k, 2, 8)
    v = torch.eye(t_k)[None, :, None].repeat(1, 1, 2, 1)
    q, k, v = (x.to(inputs.target.device()) for x in (q, k, v))
    block_mask = inputs.tensor(np.stack(given_)[None])
    o, lse = fast.block_sparse(q, k, v, block_mask, block_q=block_q, block_k=block_k, causal=causal)
    count = seen.sum(2)  # (H, Tq)
    exactly(np.rint(inputs.array(o)[0] * count.T[..., None]), seen.transpose(1, 0, 2).astype(float), "keys read")
    exactly(np.rint(np.exp(inputs.array(lse)[0])), count.astype(float), "number of keys")


@given(problems(sink=False, softcap=False, low=1), inputs.layouts, st.booleans(), inputs.seeds)
def test_block_sparse_agrees_with_the_definition(fast, problem, layout, causal, seed):
    """Forward, and by autograd backward; what lies in no tile may be NaN."""
    t_q, t_k = problem.q.shape[1], problem.k.shape[1]
    block_mask, mask = tiles(t_q, t_k, 8, 16, seed)
    mask = mask & visible(t_q, t_k, causal)
    unread = ~np.repeat(block_mask.any(0), 16)[:t_k]
    given_ = [x.requires_grad_() for x in problem.tensors(layout)]
    read = inputs.tensor(np.broadcast_to(~unread, (len(problem.k), t_k)).copy())
    poisoned = [given_[0], *(poison.nan_outside(x.detach(), read).requires_grad_() for x in given_[1:])]
    o, lse = fast.block_sparse(*poisoned, inputs.tensor(block_mask[None, None]), block_q=8, block_k=16, causal=causal)
    do, dlse = inputs.tensor(problem.do, problem.dtype), inputs.tensor(problem.dlse, "float32")
    gradients = torch.autograd.grad([o, lse], poisoned, [do, dlse])
    precision = Precision(problem.dtype, operand="float32")
    sums = {}
    for b, h, h_kv in problem.heads:
        arrays = problem.q[b, :, h], problem.k[b, :, h_kv], problem.v[b, :, h_kv]
        expected = bounded(dense.attention, *arrays, mask=mask, precision=precision, outputs=(problem.dtype, "float32"))
        agree(o[b, :, h], expected[0], "output of tiles")
        agree(lse[b, h], expected[1], "log-sum-exp of tiles")
        slopes = bounded(
            dense.backward, *arrays, problem.do[b, :, h], dlse=problem.dlse[b, h], mask=mask, precision=precision, outputs="float32"
        )
        agree(gradients[0][b, :, h], slopes[0].rounded_to(problem.dtype), "dq of tiles")
        sums[b, h_kv] = [x + y for x, y in zip(sums[b, h_kv], slopes[1:3])] if (b, h_kv) in sums else slopes[1:3]
    for (b, h_kv), pair in sums.items():
        for name, actual, bound in zip(("dk of tiles", "dv of tiles"), gradients[1:], pair, strict=True):
            agree(actual[b, :, h_kv], bound.rounded_to(problem.dtype), name)


def test_traffic_is_the_same_closed_form(fast):
    for nq, nk, d, dv, block_q, block_k in np.ndindex(3, 4, 2, 3, 2, 5):
        arguments = nq + 1, nk, d + 1, dv + 1, block_q + 1, block_k + 1
        assert fast.traffic(*arguments) == flash_v1.traffic(*arguments)


def test_block_sparse_without_rows_or_keys(fast):
    x, nothing = torch.ones(1, 3, 2, 4, device=inputs.target.device()), torch.ones(1, 1, 1, 0, dtype=torch.bool)
    nothing = nothing.to(x.device)
    o, lse = fast.block_sparse(x, x[:, :0], x[:, :0], nothing)
    exactly(o, np.zeros((1, 3, 2, 4)))
    exactly(lse, np.full((1, 2, 3), -np.inf))
    o, lse = fast.block_sparse(x[:, :0], x, x, nothing.mT)
    assert o.shape == (1, 0, 2, 4) and lse.shape == (1, 2, 0)
    o, lse = fast.block_sparse(x[:0], x[:0], x[:0], nothing.new_ones(1, 1, 1, 1))
    assert o.shape == (0, 3, 2, 4) and lse.shape == (0, 2, 3)


def test_block_sparse_names_wrong_arguments(fast):
    q = torch.ones(1, 5, 2, 4, device=inputs.target.device())
    block_mask = torch.ones(1, 1, 2, 2, dtype=torch.bool, device=q.device)
    right = {"block_q": 3, "block_k": 4}
    for arguments, options, error, name in (
        ((q[0], q, q, block_mask), right, ValueError, "q"),
        ((q, q, q[:, :3], block_mask), right, ValueError, "v"),
        ((q, q, q, block_mask.float()), right, TypeError, "block_mask"),
        ((q, q, q, block_mask), {"block_q": 2, "block_k": 4}, ValueError, "block_mask"),
        ((q, q, q, block_mask[0]), right, ValueError, "block_mask"),
        ((q[:, :, :1], q, q, block_mask), right, ValueError, "q"),
        ((q, q, q, block_mask), {"block_q": 0, "block_k": 4}, ValueError, "block_q"),
        ((q, q, q, block_mask), right | {"scale": -1.0}, ValueError, "scale"),
    ):
        with pytest.raises(error, match=f"^{name} must"):
            fast.block_sparse(*arguments, **options)
