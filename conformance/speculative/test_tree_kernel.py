"""The batched tree functions are the spec's, request by request, bit for bit; what they return where the spec would raise; compilers."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import big_tensor, target
from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, layouts, seeds, sizes, tensor
from twofold.conformance.poison import guarded, nan_outside, poisoned_empty
from twofold.fast.kernels import build_tree, gather_cache
from twofold.spec.speculative import tree

integers = st.sampled_from(["int64", "int32"])
SHAPES = {  # the parent of node n
    "bushy": lambda rng, n: rng.integers(0, n),
    "deep": lambda rng, n: rng.integers(max(n - 3, 0), n),
    "chain": lambda rng, n: n - 1,
    "star": lambda rng, n: 0,
}


def trees(rng, N, B=3):
    """Parents of B trees of different shapes, and their lengths; garbage past them."""
    shapes = [SHAPES[name] for name in rng.choice(list(SHAPES), B)]
    parents = np.array([[-1, *(shape(rng, n) for n in range(1, N))] for shape in shapes])
    lengths = rng.integers(0, N + 1, B)
    lengths[0] = N
    return np.where(np.arange(N) < lengths[:, None], parents, 2**31 - 1), lengths


def padded(values, *shape):
    out = np.full(shape, -1)
    out[tuple(slice(n) for n in np.shape(values))] = values
    return out


def by_spec(parents, N):
    """Mask, depth, paths, and the first child and next sibling of each node, padded."""
    if not len(parents):
        return np.zeros((N, N), bool), np.full(N, -1), np.full((N, N), -1), np.full(N, -1), np.full(N, -1)
    later = lambda node, parent: next((m for m in range(node + 1, len(parents)) if parents[m] == parent), -1)
    links = [(later(n, n), later(n, parents[n]) if n else -1) for n in range(len(parents))]
    lines = np.stack([padded(line, N) for line in tree.paths(parents)])
    child, sibling = (padded(column, N) for column in zip(*links, strict=True))
    return padded(tree.mask(parents), N, N) > 0, padded(tree.depth(parents), N), padded(lines, N, N), child, sibling


def by_kernel(fast, parents, lengths=None):
    """All that one launch gives: depth, words, first child, next sibling."""
    return {"triton": build_tree.build_triton, "torch": build_tree.build_torch}[fast.side](parents, lengths)


def unpacked(words):
    return (array(words)[..., None] >> np.arange(64) & 1).reshape(*words.shape[:2], -1)


def in_batch(parents, lengths):
    N = parents.shape[1]
    return [np.stack(column) for column in zip(*(by_spec(p[:n].tolist(), N) for p, n in zip(parents, lengths)), strict=True)]


@given(st.integers(1, 9), seeds, integers, st.booleans())
@example(9, 1, "int64", True)
def test_every_request_has_the_specs_tree(fast, N, seed, dtype, transposed):
    parents, lengths = trees(np.random.default_rng(seed), N)
    expected, ragged = in_batch(parents, lengths), {"lengths": tensor(lengths, dtype)}
    given_ = tensor(parents.T, dtype).T if transposed else tensor(parents, dtype)
    for form, answer in zip(("mask", "depth", "paths"), expected, strict=False):
        result = getattr(fast, form)(given_, **ragged)
        exactly(result, answer, form)
        assert result.dtype == (torch.bool if form == "mask" else given_.dtype)


@pytest.mark.parametrize("N", [5, 64, 65, 130])
def test_one_launch_knows_depths_ancestors_and_links(fast, N):
    parents, lengths = trees(np.random.default_rng(N), N, B=2)
    mask, depths, _, children, siblings = in_batch(parents, lengths)
    depth, words, child, sibling = by_kernel(fast, tensor(parents), tensor(lengths))
    exactly(depth, depths, "depth")
    exactly(unpacked(words), np.pad(mask, ((0, 0), (0, 0), (0, -N % 64))).astype(int), "words")
    exactly(child, children, "first child")
    exactly(sibling, siblings, "next sibling")
    exactly(fast.mask(tensor(parents), lengths=tensor(lengths), packed=True), words, "packed mask")


@given(sizes(8, low=1), seeds, st.sampled_from(["float32", "bfloat16", "int64", "uint8", "bool"]), layouts, st.booleans())
@example(9, 1, "float32", "transposed", True)
def test_what_is_committed_is_what_the_spec_commits(fast, N, seed, dtype, layout, in_place):
    """A path is any list of nodes here, in any order, so that rows move both ways; what lies off the path is NaN and stays as it was."""
    rng, B, S = np.random.default_rng(seed), 3, N + 4
    start = rng.integers(0, 5, B)
    paths = [rng.permutation(np.arange(1, N))[: rng.integers(0, N)] for _ in range(B)]
    paths[0] = np.arange(1, N)[::-1]
    path = np.stack([np.concatenate([p, [-1] * (len(p) < N), np.full(max(N - len(p) - 1, 0), 99)]) for p in paths])
    on_path = np.zeros((B, S), bool)
    for b in range(B):
        on_path[b, start[b] + np.array([0, *paths[b]], int)] = True
    cache = nan_outside(tensor(rng.integers(0, 100, (B, S, 2, 3)), dtype, layout), torch.from_numpy(on_path))
    before = cache.clone()
    with poisoned_empty(), guarded(cache) as inside:
        result = fast.commit(inside, tensor(path), start=tensor(start), in_place=in_place)
        assert (result is inside) == in_place
    for b in range(B):
        rows = tree.commit(array(before)[b, start[b] :], paths[b].tolist())
        first = start[b] if in_place else 0
        exactly(array(result)[b, first : first + len(rows)], rows, "committed rows")
        if in_place:
            untouched = ~np.isin(np.arange(S), start[b] + np.arange(len(rows)))
            exactly(array(cache)[b, untouched], array(before)[b, untouched], "other rows")
        else:
            assert not array(result)[b, len(rows) :].any(), "zeros past the path"
            exactly(cache, before, "the cache itself")


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("axes", [(), (5,), (1, 3), (2, 1, 3), (2, 3, 2, 2), (2, 2, 1, 2, 3)])
def test_caches_of_any_shape_and_strides(fast, axes, in_place):
    dense = np.arange(2 * 6 * int(np.prod(axes))).reshape(2, 6, *axes)
    backwards = tensor(dense.transpose(*range(2 + len(axes))[::-1]).copy())
    every_second = tensor(dense.repeat(2, axis=-1).copy())[..., ::2]
    for cache in (tensor(dense.copy()), backwards.permute(*range(2 + len(axes))[::-1]), every_second):
        result = fast.commit(cache, tensor(np.array([[2, 5, -1], [1, 2, 4]])), in_place=in_place)
        exactly(result[0, :3], dense[0, [0, 2, 5]])
        exactly(result[1, :4], dense[1, [0, 1, 2, 4]])


@pytest.mark.parametrize("in_place", [False, True])
def test_offsets_do_not_wrap(fast, in_place):
    if target.device() != "cpu":
        return  # the sparse file lives on the CPU, where the interpreter runs the same kernel
    small = tensor(np.arange(12).reshape(1, 3, 4), "int8")
    far = fast.commit(big_tensor.far_apart(small, axis=1), tensor(np.array([[2]])), in_place=in_place)
    exactly(far[0, :2], small[0, [0, 2]])


def test_a_request_alone_is_the_request_in_a_batch(fast):
    rng = np.random.default_rng(1)
    parents, lengths = (tensor(x) for x in trees(rng, 9, B=4))
    cache, path = tensor(rng.random((4, 9, 3))), tensor(rng.integers(1, 9, (4, 4)))
    paths = lambda rows: fast.paths(parents[rows], lengths=lengths[rows])
    masks = lambda rows: fast.mask(parents[rows], lengths=lengths[rows])
    for form in (paths, masks, lambda rows: fast.commit(cache[rows], path[rows])):
        together = form([0, 1, 2, 3])
        exactly(torch.cat([form([b]) for b in range(4)]), together)
        exactly(form([2, 0, 3, 1]), array(together)[[2, 0, 3, 1]])


@pytest.mark.parametrize(("place", "parent"), [((0, 0), 0), ((1, 2), 2), ((2, 3), -1), ((3, 1), 2**31 - 1), ((4, 0), -2)])
def test_parents_out_of_order_are_an_error_or_an_empty_request(fast, place, parent):
    parents = np.array([[-1, 0, 1, 1, 0]] * 5)
    parents[place] = parent
    built, right = by_kernel(fast, tensor(parents)), by_kernel(fast, tensor(np.delete(parents, place[0], 0)))
    for result, others, nothing in zip(built, right, (-1, 0, -1, -1), strict=True):
        assert (result[place[0]] == nothing).all()
        exactly(np.delete(array(result), place[0], 0), others, "the other requests")
    if target.device() == "cpu":
        with pytest.raises(ValueError, match=rf"parents\[{place[0]}, {place[1]}\]"):
            fast.depth(tensor(parents))


@pytest.mark.parametrize(("name", "start", "path"), [
    ("start", [0, 6], [[1], [1]]), ("start", [0, -1], [[1], [1]]), ("path", [0, 4], [[1], [2]]), ("path", [0, 0], [[5], [0]]),
])  # fmt: skip
def test_rows_outside_the_cache_are_an_error_or_end_the_path(fast, name, start, path):
    cache, start, path = tensor(np.arange(1, 13).reshape(2, 6)), tensor(np.array(start)), tensor(np.array(path))
    side = {"triton": gather_cache.gather_triton, "torch": gather_cache.gather_torch}[fast.side]
    committed = side(cache, path, start)
    exactly(committed[1], [7 + int(start[1]) if name == "path" else 0, 0])
    exactly(committed[0], array(cache)[0, [0, int(path[0, 0])]])
    if not cache.is_cuda:
        with pytest.raises(ValueError, match=rf"{name}\[1"):
            fast.commit(cache, path, start=start)


def test_compilers_see_through(fast):
    parents, lengths, start = tensor(np.array([[-1, 0, 0], [-1, 0, 1]])), tensor(np.array([3, 2])), tensor(np.array([1, 0]))
    cache, path = tensor(np.arange(24.0).reshape(2, 4, 3)), tensor(np.array([[2], [-1]]))
    torch.library.opcheck(build_tree.build_tree, (parents, lengths))
    torch.library.opcheck(gather_cache.gather_cache, (cache, path, start))
    torch.library.opcheck(gather_cache.gather_cache_in_place, (cache.clone(), path, None))

    def call(parents, cache, path):
        moved = fast.commit(cache.clone(), path, start=start, in_place=True)
        return fast.mask(parents, lengths=lengths), fast.depth(parents), fast.paths(parents), fast.commit(cache, path), moved

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for eager, traced in zip(call(parents, cache, path), compiled(parents, cache, path), strict=True):
        exactly(traced, eager)


def zeros(*shape, dtype=torch.int64):
    return torch.zeros(shape, dtype=dtype, device=target.device())


WRONG = {
    "parents must have shape": ("mask", dict(parents=zeros(3))),
    "parents must have dtype": ("mask", dict(parents=zeros(2, 3, dtype=torch.float32))),
    "parents must be a torch.Tensor": ("depth", dict(parents=[-1, 0])),
    "room for the root": ("paths", dict(parents=zeros(2, 0))),
    "lengths must have shape": ("depth", dict(lengths=zeros(3))),
    "lengths must have dtype": ("depth", dict(lengths=zeros(2, dtype=torch.float32))),
    "cache must have shape": ("commit", dict(cache=zeros(3, 4))),
    "cache must have a dtype of": ("commit", dict(cache=zeros(2, 3, dtype=torch.complex128))),
    "cache must not be expanded": ("commit", dict(cache=zeros(2, 1, 3).expand(2, 4, 3), in_place=True)),
    "path must have shape": ("commit", dict(path=zeros(2))),
    "path must have dtype": ("commit", dict(path=zeros(2, 1, dtype=torch.int16))),
    "path must hold at most": ("commit", dict(path=zeros(2, 300))),
    "start must have shape": ("commit", dict(start=zeros(3))),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    form, wrong = WRONG[message]
    right = dict(cache=zeros(2, 4, 3), path=zeros(2, 1)) if form == "commit" else dict(parents=zeros(2, 3))
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(fast, form)(**right | wrong)


def test_no_requests_are_no_error(fast):
    assert fast.mask(zeros(0, 3)).shape == fast.paths(zeros(0, 3)).shape == (0, 3, 3)
    assert fast.commit(zeros(0, 3, 2), zeros(0, 2)).shape == (0, 3, 2)
