"""A key-value cache against its definition: any interleaving of pieces, decodes and forks attends as if every sequence lay in rows."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.fast.attention.paged import OutOfBlocks
from twofold.spec.attention import paged
from twofold.spec.serving import kv_cache

H, HKV, D, DV = 3, 1, 16, 8


def tensors(arrays, dtype="float32"):
    return [inputs.tensor(x, dtype) for x in arrays]


def piece(seed, sequences, n, dtype="float32"):
    """Queries, keys and values (S, N, ·, ·)."""
    return inputs.values("normal", [(sequences, n, H, D), (sequences, n, HKV, D), (sequences, n, HKV, DV)], seed, dtype)


def cache_of(fast, n_blocks, B, **more):
    return fast.Cache(n_blocks, B, HKV, D, DV, device=inputs.target.device(), **more)


class Interleavings(RuleBasedStateMachine):
    """Beside both caches runs the definition: for every sequence the keys and values of all its tokens, in a row."""

    fast = None

    @initialize(
        n_blocks=st.integers(3, 9), B=st.sampled_from([1, 3, 8]), options=st.sampled_from([{}, {"window": (4, 0)}, {"softcap": 2.0}])
    )
    def begin(self, n_blocks, B, options):
        self.spec, self.cache = kv_cache.Cache(n_blocks, B, D, DV), cache_of(self.fast, n_blocks, B)
        self.model, self.options, self.count = {}, options, 0

    def extend(self, names, n, call, call_spec):
        """One call of both caches with N more tokens per sequence, and what the definition says about each."""
        self.count += 1
        q, k, v = piece(self.count, len(names), n)
        books = repr(self.spec.pool.__dict__)
        try:
            o, lse = call_spec(q[:, :, 0], k[:, :, 0], v[:, :, 0])
        except paged.OutOfBlocks:
            with pytest.raises(OutOfBlocks):
                call(*tensors((q, k, v)))
            assert repr(self.spec.pool.__dict__) == books, "who found no room has changed nothing"
            return
        results = call(*tensors((q, k, v)))
        for s, name in enumerate(names):
            past = self.model.get(name, (np.zeros((0, D)), np.zeros((0, DV))))
            alone = kv_cache.attention(q[s, :, 0], k[s, :, 0], v[s, :, 0], *past, **self.options)
            for x, y in zip((o[s], lse[s]), alone, strict=True):
                exactly(x, y, "spec")
            for h in range(H):
                arrays = q[s, :, h], k[s, :, 0], v[s, :, 0], *past
                expected = bounded(kv_cache.attention, *arrays, precision=Precision("float32"), **self.options)
                agree(results[0][s, :, h], expected[0], "output")
                agree(results[1][s, h], expected[1], "log-sum-exp")
            self.model[name] = tuple(np.concatenate([x, new[s, :, 0]]) for x, new in zip(past, (k, v)))

    @rule(data=st.data(), n=st.sampled_from([0, 1, 5, 20]))
    def prefill(self, data, n):
        """A new sequence, or the next piece of one."""
        name = data.draw(st.sampled_from([*sorted(self.model), self.count + 1]))
        call = lambda q, k, v: [x[None] for x in self.cache.prefill(name, q[0], k[0], v[0], **self.options)]
        self.extend([name], n, call, lambda q, k, v: [x[None] for x in self.spec.prefill(name, q[0], k[0], v[0], **self.options)])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), n=st.sampled_from([1, 1, 2]))
    def decode(self, data, n):
        """Some of the sequences, in any order."""
        names = data.draw(st.permutations(sorted(self.model)))[: data.draw(st.integers(1, 3))]
        call, call_spec = (lambda *x, cache=cache: cache.decode(names, *x, **self.options) for cache in (self.cache, self.spec))
        self.extend(names, n, call, call_spec)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def fork(self, data):
        source, self.count = data.draw(st.sampled_from(sorted(self.model))), self.count + 1
        for cache in (self.spec, self.cache):
            cache.fork(source, self.count)
        self.model[self.count] = self.model[source]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release(self, data):
        """Blocks that nobody owns any more are poisoned."""
        name = data.draw(st.sampled_from(sorted(self.model)))
        for cache in (self.spec, self.cache):
            cache.release(name)
        del self.model[name]
        free = list(self.spec.pool.free)
        self.spec.k[free], self.spec.v[free] = np.nan, np.nan
        self.cache.k[:, free], self.cache.v[:, free] = torch.nan, torch.nan

    @invariant()
    def every_sequence_holds_its_own_tokens(self):
        assert (self.spec.pool.tables, self.spec.pool.ref) == (self.cache.pool.tables, self.cache.pool.ref)
        for name, (k, v) in self.model.items():
            for actual, expected in zip(self.spec.contents(name), (k, v)):
                exactly(actual, expected, "spec")
            for actual, expected in zip(self.cache.contents(name), (k, v)):
                exactly(actual[:, 0], expected, "contents")


def test_every_interleaving_attends_as_if_it_lay_in_rows(fast):
    class Here(Interleavings):
        pass

    Here.fast = fast
    run_state_machine_as_test(Here, settings=settings(stateful_step_count=12))


@pytest.mark.usefixtures("one_thread")
@given(st.permutations([0, 1, 2, 3]), st.integers(1, 4), inputs.seeds)
def test_a_decoded_sequence_has_its_own_bits_in_any_batch(fast, order, together, seed):
    """Alone, with some of the others, in any order, and wherever its blocks lie."""
    lengths = [600, 3, 17, 64]
    prompts, (q, k, v) = [piece(seed + i, 1, n) for i, n in enumerate(lengths)], tensors(piece(seed + 9, 4, 1))
    results = []
    for names, batches in ((range(4), [[0, 1, 2, 3]]), (order, [order[:together], *([i] for i in order[together:])])):
        cache = cache_of(fast, 100, 16)
        for name in names:  # stored without being attended: 600 rows would take the interpreter minutes
            step, (_, keys, values) = cache.extend([name], lengths[name], new=True), tensors(prompts[name])
            cache.k[0, step.block, step.slot], cache.v[0, step.block, step.slot] = keys, values
        answers = {}
        for batch in batches:
            o, lse = cache.decode(batch, q[batch], k[batch], v[batch])
            answers |= {name: (o[i], lse[i]) for i, name in enumerate(batch)}
        results.append(answers)
    for name in range(4):
        for x, y in zip(results[0][name], results[1][name], strict=True):
            exactly(x, y, "in another batch")


@given(inputs.seeds, st.sampled_from([[33], [1, 32], [16, 1, 16], [13, 20]]), st.booleans())
@example(0, [13, 20], True)
def test_the_last_row_of_a_prompt_is_a_decoded_token(fast, seed, cuts, capped):
    """A prompt in one piece or in several, by either kernel: the same bound holds for its last row."""
    q, k, v = piece(seed, 1, 33)
    options = {"softcap": 2.0} if capped else {}
    nothing = np.zeros((0, D)), np.zeros((0, DV))
    cache, start = cache_of(fast, 9, 8), 0
    sink = inputs.tensor(np.array([0.5] * H), "float32")
    for n in cuts:
        o, lse = cache.prefill("a", *(x[0, start : start + n] for x in tensors((q, k, v))), sink=sink, **options)
        start += n
    for h in range(H):
        arrays = q[0, :, h], k[0, :, 0], v[0, :, 0]
        expected = bounded(kv_cache.attention, *arrays, *nothing, precision=Precision("float32"), sink=0.5, **options)
        agree(o[-1:, h], expected[0][-1:], "last row")
        agree(lse[h, -1:], expected[1][-1:], "log-sum-exp")


def test_layers_share_books_and_nothing_else(fast):
    """One step reserves the places of all layers; copies on write reach every layer."""
    cache, twins = cache_of(fast, 9, 4, layers=2), [cache_of(fast, 9, 4), cache_of(fast, 9, 4)]
    names = ["a"]
    for turn, n in enumerate((6, 1, 2)):
        if turn == 1:
            names = ["b", "a"]
            for each in (cache, *twins):
                each.fork("a", "b")
        step = cache.extend(names, n, new=turn == 0)
        for layer, twin in enumerate(twins):
            arrays = tensors(piece(10 * turn + layer, len(names), n))
            alone = twin.attend(twin.extend(names, n, new=turn == 0), *arrays)
            for x, y in zip(cache.attend(step, *arrays, layer=layer), alone, strict=True):
                exactly(x, y, f"layer {layer}")
    for layer, twin in enumerate(twins):
        for name in names:
            for x, y in zip(cache.contents(name, layer=layer), twin.contents(name), strict=True):
                exactly(x, y, "contents")


def test_forks_that_run_out_of_blocks_have_changed_nothing(fast):
    """Two of three owners of a tail must leave it, which takes two blocks where one is free. Without the third the last owner stays."""
    cache = cache_of(fast, 3, 4)
    cache.prefill("a", *(x[0] for x in tensors(piece(0, 1, 3))))
    cache.fork("a", "b")
    cache.fork("a", "c")
    q, k, v = tensors(piece(1, 3, 1))
    before = [x.clone() for x in cache.contents("a")]
    with pytest.raises(OutOfBlocks):
        cache.decode(["a", "b"], q[:2], k[:2], v[:2])
    assert cache.pool.lengths == {"a": 3, "b": 3, "c": 3} and list(cache.pool.free) == [2]
    cache.release("c")
    cache.decode(["a", "b"], q[:2], k[:2], v[:2])
    for name in ("a", "b"):
        for x, y in zip(cache.contents(name), before, strict=True):
            exactly(x[:3], y, "what they share")


def test_wrong_arguments_are_named_before_the_books_know_of_them(fast):
    cache = cache_of(fast, 9, 4)
    q, k, v = tensors(piece(0, 2, 1))
    cache.prefill("a", q[0], k[0], v[0])
    for arguments, options, error, name in (
        ((["a", "a"], q, k, v), {}, ValueError, "seqs"),
        ((["a", "b"], q, k, v), {}, ValueError, "seqs .* 'b'"),
        ((["a"], q, k, v), {}, ValueError, "seqs"),
        ((["a", "b"], q, k[..., :8], v), {}, ValueError, "k"),
        ((["a", "b"], q, k, v.half()), {}, TypeError, "v"),
        ((["a"], q[:1], k[:1], v[:1]), {"window": (-1, 0)}, ValueError, "window"),
        ((["a"], q[:1], k[:1], v[:1]), {"sink": q[0, 0, 0]}, ValueError, "sink"),
        ((["a"], q[:1], k[:1], v[:1]), {"causal": False}, TypeError, "causal"),
    ):
        with pytest.raises(error, match=name):
            cache.decode(*arguments, **options)
    for call in (lambda: fast.Cache(4, 4, 0, 8), lambda: fast.Cache(4, 4, 1, 8, layers=0), lambda: cache.fork("a", "a")):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(ValueError, match="seqs"):
        kv_cache.Cache(4, 4, D, DV).decode(["a", "a"], *(x[:, :, 0] for x in piece(0, 2, 1)))
    assert cache.pool.lengths == {"a": 1}


def test_sixteen_bits_stay_sixteen_bits_and_inputs_unchanged(fast):
    for dtype in (torch.float16, torch.bfloat16):
        cache, arguments = cache_of(fast, 9, 4, dtype=dtype), [x.to(dtype) for x in tensors(piece(0, 1, 5))]
        before = [x.clone() for x in arguments]
        o, lse = cache.prefill("a", *(x[0] for x in arguments))
        assert o.dtype == dtype and lse.dtype == torch.float32 and o.shape == (5, H, DV) and lse.shape == (H, 5)
        for x, y in zip((*cache.contents("a"), *arguments), (*(x[0] for x in before[1:]), *before), strict=True):
            exactly(x, y)
