"""The monoid of partial attention: its laws hold without rounding in a prime field, and the PyTorch form stays within derived bounds."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention import field
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, online_softmax

NOWHERE = -np.inf
FLOAT = Precision("float32")


def states(seed, rows, counts):
    """States over disjoint sets of random keys, one per count, in the field."""
    rng = np.random.default_rng(seed)
    return [online_softmax.update(online_softmax.identity(2), field.logits(rng, rows, n), field.numbers(rng, n, 2)) for n in counts]


def pair(seed, dtype="float32", t=3, heads=2, dv=5, regime="normal", empty=()):
    """An output (1, T, H, Dv) already rounded to dtype and a log-sum-exp (1, H, T), without keys in the rows `empty`."""
    (o,), (lse,) = inputs.values(regime, [(1, t, heads, dv)], seed, dtype), inputs.values("large", [(1, heads, t)], seed + 1, "float32")
    o[:, list(empty)], lse[..., list(empty)] = 0, NOWHERE
    return o, lse


def tensors(o, lse, dtype="float32", layout="contiguous"):
    return inputs.tensor(o, dtype, layout), inputs.tensor(lse, "float32", layout)


def merged(o1, lse1, o2, lse2):
    return online_softmax.merge((o1, lse1), (o2, lse2))


# The monoid, exact


@given(inputs.seeds, st.lists(st.integers(0, 4), min_size=0, max_size=9), st.booleans(), st.data())
@example(0, [3, 0, 1, 3, 0], True, None)
@example(1, [], False, None)
def test_every_partition_of_the_keys_merges_to_dense_attention(seed, part_of_key, as_pairs, data):
    """Contiguous or not, some parts empty, in any order and any tree of merges: the elements of the field are those of the definition."""
    q, k, v = field.problem(seed, 3, len(part_of_key), 2)
    mask = np.random.default_rng(seed).random((3, len(part_of_key))) < 0.7
    parts = []
    for part in range(5):
        mine = np.array(part_of_key, int) == part
        if as_pairs:
            parts.append(dense.attention(q, k[mine], v[mine], mask=mask[:, mine], scale=1))
        else:
            s = dense.logits(q, k[mine], mask=mask[:, mine], scale=1)
            parts.append(online_softmax.update(online_softmax.identity(2), s, v[mine]))
    while len(parts) > 1:  # two that are anywhere in the list, until one is left
        first, second = (0, 1) if data is None else data.draw(st.permutations(range(len(parts))))[:2]
        together = online_softmax.merge(parts[first], parts[second])
        parts = [each for i, each in enumerate(parts) if i not in (first, second)] + [together]
    result = parts[0] if as_pairs else online_softmax.finish(parts[0])
    field.exactly(result, dense.attention(q, k, v, mask=mask, scale=1))


@given(inputs.seeds, st.tuples(*[st.integers(0, 3)] * 3))
@example(0, (0, 0, 0))
def test_states_are_a_commutative_monoid(seed, counts):
    a, b, c = states(seed, 2, counts)
    merge = online_softmax.merge
    field.exactly(merge(a, b), merge(b, a), "exchanged")
    field.exactly(merge(merge(a, b), c), merge(a, merge(b, c)), "regrouped")
    field.exactly(merge(a, online_softmax.identity(2)), a, "nothing added")
    field.exactly(merge(online_softmax.identity(2), a), a, "added to nothing")


@given(inputs.seeds, st.integers(1, 4))
def test_the_reference_is_arbitrary(seed, n):
    """l and a measured against another reference, m + c, are the same element: both finish alike, and what is merged with them."""
    (m, l, a), other = states(seed, 3, (n, 2))
    c = field.logits(np.random.default_rng(seed), 3)
    moved = m + c, l * np.exp(-c), a * np.exp(-c)[:, None]
    field.exactly(online_softmax.finish(moved), online_softmax.finish((m, l, a)))
    field.exactly(*(online_softmax.finish(online_softmax.merge(x, other)) for x in (moved, (m, l, a))))


@given(inputs.seeds, st.permutations(range(6)), st.integers(1, 3))
def test_one_key_at_a_time_is_attention(seed, order, size):
    """Logits in any order, so that the maximum comes first, last or in between; in float64, within its own rounding."""
    s, v = inputs.values("large", [(2, 6), (6, 3)], seed)
    s = np.sort(s)[:, list(order)]
    s[1, :2] = NOWHERE  # and a row whose first keys are masked

    def walk(s, v):
        state = online_softmax.identity(3)
        for start in range(0, 6, size):
            state = online_softmax.update(state, s[:, start : start + size], v[start : start + size])
        return online_softmax.finish(state)

    exact64 = Precision("float64", "float64")
    expected = bounded(dense.attention, np.zeros((2, 1)), np.zeros((6, 1)), v, bias=s, precision=exact64)
    for actual, bound, what in zip(walk(s, v), expected, ("output", "log-sum-exp"), strict=True):
        agree(actual, bound, what)


# The implementation, exact


def test_parts_without_keys_leave_no_trace(fast):
    """First, in the middle, last, or all of them: never NaN, and what is merged with nothing comes back bit for bit."""
    something, nothing = tensors(*pair(0)), tensors(*pair(1, empty=range(3)))
    for order in itertools.permutations([something, nothing, nothing]):
        o, lse = fast.merge(fast.merge(*order[:2]), order[2])
        exactly(o, something[0])
        exactly(lse, something[1], "log-sum-exp")
    o, lse = fast.merge(nothing, nothing)
    exactly(o, np.zeros((1, 3, 2, 5)))
    exactly(lse, np.full((1, 2, 3), NOWHERE), "log-sum-exp")
    state = fast.update(fast.identity(4, device=o.device), o.new_full((2, 3, 6), NOWHERE), o.new_ones(6, 4))
    exactly(state[0], np.full((2, 3), NOWHERE), "reference of rows whose keys are all masked")
    o, lse = fast.finish(fast.merge(state, fast.identity(4, shape=(2, 3), device=o.device)))
    exactly(o, np.zeros((3, 2, 4)))
    exactly(lse, np.full((2, 3), NOWHERE), "log-sum-exp")
    exactly(fast.finish(fast.update(state, o.new_zeros(2, 3, 0), o.new_zeros(0, 4)))[1], lse, "log-sum-exp after no more keys")


@given(inputs.seeds, inputs.dtypes(), st.sampled_from([200.0, 2000.0, 1e30]))
def test_parts_too_far_apart_to_see_each_other(fast, seed, dtype, distance):
    """e^200 overflows float32, e^2000 any format: the larger part comes back as it is, on whichever side it stands."""
    (o, _), (o2, _) = pair(seed, dtype), pair(seed + 2, dtype)
    large, small = tensors(o, np.zeros((1, 2, 3)), dtype), tensors(o2, np.full((1, 2, 3), -distance), dtype)
    for a, b in ((large, small), (small, large)):
        exactly(fast.merge(a, b)[0], o)
        exactly(fast.merge(a, b)[1], np.zeros((1, 2, 3)), "log-sum-exp")


@given(inputs.seeds, inputs.dtypes(), st.sets(st.integers(0, 2)), st.sets(st.integers(0, 2)))
def test_merging_commutes_bit_for_bit(fast, seed, dtype, empty, empty_too):
    a, b = tensors(*pair(seed, dtype, empty=empty), dtype), tensors(*pair(seed + 2, dtype, empty=empty_too), dtype)
    for one, other in zip(fast.merge(a, b), fast.merge(b, a), strict=True):
        exactly(one, other, "exchanged")
    for given_, again in zip(a, tensors(*pair(seed, dtype, empty=empty), dtype), strict=True):
        exactly(given_, again, "input")


def test_equal_masses_give_the_mean_of_integers(fast):
    """Exact in every format: weights of one half; and the log-sum-exp of a thousand keys at logit 0, taken in two portions."""
    o1, o2 = np.arange(30.0).reshape(1, 3, 2, 5), np.full((1, 3, 2, 5), 8.0)
    lse = np.full((1, 2, 3), -3.5)
    for dtype in ("float32", "bfloat16", "float16"):
        exactly(fast.merge(tensors(o1, lse, dtype), tensors(o2, lse, dtype))[0], (o1 + o2) / 2)
    v = torch.ones(2, 1000, 4, device=inputs.target.device())
    state = fast.identity(4, device=v.device)
    for portion in (slice(0, 300), slice(300, 1000)):
        state = fast.update(state, v.new_zeros(2, 3, 1000)[..., portion], v[:, portion])
    exactly(state[1], np.full((2, 3), 1000.0), "sum")
    exactly(fast.finish(state)[0], np.ones((3, 2, 4)))


# The implementation, bounded


@given(inputs.regimes, inputs.seeds, inputs.dtypes(), inputs.layouts, st.sets(st.integers(0, 2)), st.booleans())
def test_merged_pairs_agree_with_the_definition(fast, regime, seed, dtype, layout, empty, widened):
    """Any layout; an accumulator in float32 stays one whatever it is merged with."""
    a, b = pair(seed, dtype, regime=regime), pair(seed + 2, dtype, regime=regime, empty=empty)
    other = "float32" if widened else dtype
    o, lse = fast.merge(tensors(*a, other, layout), tensors(*b, dtype, layout))
    assert o.dtype == getattr(torch, other) and lse.dtype == torch.float32
    for h in range(2):
        arrays = a[0][0, :, h], a[1][0, h], b[0][0, :, h], b[1][0, h]
        expected = bounded(merged, *arrays, precision=Precision(dtype), outputs=(other, "float32"))
        agree(o[0, :, h], expected[0], "output")
        agree(lse[0, h], expected[1], "log-sum-exp")


@given(inputs.seeds, inputs.dtypes(), st.integers(0, 9), st.integers(0, 9), st.booleans())
@example(0, "float32", 5, 4, True)
def test_updates_agree_with_the_definition(fast, seed, dtype, n, n_more, shared):
    """Two portions of keys, values of one head for all or of each; the contract is float32 from the logits to the result."""
    s, s_more = inputs.values("normal", [(2, 3, 2, n), (2, 3, 2, n_more)], seed, "float32")
    s[0], s_more[:, 1, 0] = np.where(s[0] > 1, NOWHERE, s[0]), NOWHERE  # masked keys, and a row that sees none of a portion
    v, v_more = inputs.values("normal", [(3, n, 4), (3, n_more, 4)], seed + 1, dtype)
    v, v_more = (x[:1].repeat(3, 0) if shared else x for x in (v, v_more))
    state = fast.identity(4, shape=(2, 3, 2), device=inputs.target.device())
    for logits, values in ((s, v), (s_more, v_more)):
        state = fast.update(state, inputs.tensor(logits, "float32"), inputs.tensor(values[0] if shared else values, dtype))
    o, lse = fast.finish(state)

    def walk(s, v, s_more, v_more):
        return online_softmax.finish(online_softmax.update(online_softmax.update(online_softmax.identity(4), s, v), s_more, v_more))

    for b, h in np.ndindex(2, 3):
        arrays = s[b, h], v[h], s_more[b, h], v_more[h]
        expected = bounded(walk, *arrays, precision=FLOAT)
        agree(o[b, :, h], expected[0], "output of updates")
        agree(lse[b, h], expected[1], "log-sum-exp of updates")


@given(inputs.seeds, st.sampled_from([(), (1,), (0, 2)]))
def test_gradients_flow_to_both_parts(fast, seed, empty):
    """By hand: an output's gradient is weighted, a log-sum-exp's collects how far its part lies from the whole; an empty row gets none."""
    a, b = pair(seed), pair(seed + 2, empty=empty)
    (do, _), (_, dlse) = pair(seed + 4), pair(seed + 5)
    leaves = [x.requires_grad_() for x in (*tensors(*a), *tensors(*b))]
    gradients = torch.autograd.grad(fast.merge(tuple(leaves[:2]), tuple(leaves[2:])), leaves, tensors(do, dlse))

    def slopes(o1, lse1, o2, lse2, do, dlse):
        o, lse = merged(o1, lse1, o2, lse2)
        w1, w2 = np.exp(lse1 - lse), np.exp(lse2 - lse)
        gradient = lambda w, part: w * (dlse + np.sum(do * (part - o), axis=1))
        return w1[:, None] * do, gradient(w1, o1), w2[:, None] * do, gradient(w2, o2)

    for h in range(2):
        arrays = [x for o, lse in (a, b, (do, dlse)) for x in (o[0, :, h], lse[0, h])]
        expected = bounded(slopes, *arrays, precision=FLOAT)
        for name, actual, bound in zip(("do1", "dlse1", "do2", "dlse2"), gradients, expected, strict=True):
            agree(actual[0, :, h] if name.startswith("do") else actual[0, h], bound, name)


def test_compiled_graph_is_whole_and_empty_batches_pass(fast):
    torch._dynamo.reset()
    a, b = tensors(*pair(0)), tensors(*pair(2))
    compiled = torch.compile(lambda a, b: fast.merge(a, b), fullgraph=True, backend="aot_eager")
    for x, y in zip(compiled(a, b), fast.merge(a, b), strict=True):
        exactly(x, y, "compiled")
    o, lse = fast.merge((a[0][:0], a[1][:0]), (b[0][:0], b[1][:0]))
    assert o.shape == (0, 3, 2, 5) and lse.shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda f, o, lse: f.merge((o, lse), (o, lse, o)), TypeError, "a and b"),
        (lambda f, o, lse: f.merge((o, lse.mT), (o, lse)), ValueError, "a must be a pair"),
        (lambda f, o, lse: f.merge((o, lse), (o, lse.half())), TypeError, "b's lse"),
        (lambda f, o, lse: f.merge((o.double(), lse), (o, lse)), TypeError, "a's o"),
        (lambda f, o, lse: f.merge((lse, lse, o), (lse, lse, o)), ValueError, r"a must have shapes"),
        (lambda f, o, lse: f.finish((lse, lse)), TypeError, "state"),
        (lambda f, o, lse: f.update(f.identity(5), lse, o.new_zeros(4, 5)), ValueError, "v must have shape"),
        (lambda f, o, lse: f.update(f.identity(5), lse, o.new_zeros(3, 4)), ValueError, "v must be as wide"),
        (lambda f, o, lse: f.update(f.identity(5), lse.half(), o.new_zeros(3, 5)), TypeError, "s must"),
        (lambda f, o, lse: f.identity(-1), ValueError, "dv"),
    ],
)
def test_errors_name_the_argument(fast, call, error, name):
    with pytest.raises(error, match=name):
        call(fast, *tensors(*pair(0)))
