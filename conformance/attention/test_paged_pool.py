"""The block pool against the plainest model: a dictionary of token lists. Spec and fast go through every history side by side."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from twofold.conformance import inputs
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense, paged


class Histories(RuleBasedStateMachine):
    """What a caller does with a pool: create, append, copy on write, fork, release, preempt. Blocks that are given back are poisoned."""

    fast = None

    @initialize(n_blocks=st.integers(2, 9), B=st.sampled_from([1, 2, 3, 4]))
    def begin(self, n_blocks, B):
        self.pools = paged.BlockPool(n_blocks, B), self.fast.BlockPool(n_blocks, B)
        self.memory = np.full((n_blocks, B), np.nan)
        self.model, self.count = {}, 0

    def ask(self, method, *arguments):
        """Ask both pools; they answer alike, and who runs out of blocks has changed nothing."""
        spec, fast = self.pools
        before = repr((spec.tables, spec.lengths, spec.ref, list(spec.free)))
        try:
            answer = getattr(spec, method)(*arguments)
        except paged.OutOfBlocks:
            with pytest.raises(self.fast.OutOfBlocks):
                getattr(fast, method)(*arguments)
            assert repr((spec.tables, spec.lengths, spec.ref, list(spec.free))) == before
            return None
        assert getattr(fast, method)(*arguments) == answer
        return answer if answer is not None else True

    def write(self, block, slot, token):
        assert self.pools[0].ref[block] == 1, "a block that others own as well is never written"
        self.memory[block, slot] = token

    def new(self):
        self.count += 1
        return self.count

    def some(self, data):
        return data.draw(st.sampled_from(sorted(self.model)))

    def fill(self, name, tokens):
        """Create a sequence and write its tokens, if there is room."""
        if self.ask("create", name, len(tokens)):
            self.model[name] = tokens
            for i, token in enumerate(tokens):
                self.write(self.pools[0].tables[name][i // self.pools[0].B], i % self.pools[0].B, token)

    def drop(self, name):
        self.ask("release", name)
        self.memory[[block for block, owners in enumerate(self.pools[0].ref) if not owners]] = np.nan
        return self.model.pop(name)

    @rule(n=st.integers(0, 9))
    def create(self, n):
        self.fill(self.new(), [float(self.new()) for _ in range(n)])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), times=st.integers(1, 3))
    def append(self, data, times):
        name = self.some(data)
        for _ in range(times):
            place = self.ask("append", name)
            if place is None:
                return
            block, slot, copied_from = place
            if copied_from is not None:
                self.memory[block, :slot] = self.memory[copied_from, :slot]
            self.model[name].append(float(self.new()))
            self.write(block, slot, self.model[name][-1])

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def fork(self, data):
        source, name = self.some(data), self.new()
        self.ask("fork", source, name)
        self.model[name] = list(self.model[source])

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release(self, data):
        self.drop(self.some(data))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def preempt(self, data):
        """Copied out and in again, or computed anew: other blocks, the same tokens; unless the others need the room."""
        name = self.some(data)
        self.fill(name, self.drop(name))

    @invariant()
    def the_books_balance(self):
        spec, fast = self.pools
        entries = [block for table in spec.tables.values() for block in table]
        assert spec.ref == [entries.count(block) for block in range(len(spec.ref))]
        assert sorted([0, *spec.free, *set(entries)]) == list(range(len(spec.ref))), "every block is null, free or owned"
        for name, tokens in self.model.items():
            assert len(spec.tables[name]) * spec.B - len(tokens) in range(spec.B), "less than a block per sequence is wasted"
        assert (spec.tables, spec.lengths, spec.ref) == (fast.tables, fast.lengths, fast.ref) and list(spec.free) == list(fast.free)

    @invariant()
    def every_sequence_reads_its_own_tokens(self):
        spec, pool = self.pools[0], self.memory[..., None]
        for name, tokens in self.model.items():
            tokens = np.array(tokens)[:, None]
            exactly(paged.gather(pool, [*spec.tables[name], 10**6], spec.lengths[name]), tokens, "gathered tokens")
            decoded = paged.attention(np.full((1, 1), 0.01), pool, pool, [*spec.tables[name], -1], len(tokens))
            for x, y in zip(decoded, dense.attention(np.full((1, 1), 0.01), tokens, tokens), strict=True):
                exactly(x, y, "decoded")

    def teardown(self):
        """All sequences that are left, decoded together by the implementation."""
        if not getattr(self, "model", None):
            return
        names = list(self.model)
        tables = np.full((len(names), max(len(self.pools[0].tables[name]) for name in names) + 1), 10**6)
        for row, name in zip(tables, names):
            row[: len(self.pools[0].tables[name])] = self.pools[0].tables[name]
        pool = inputs.tensor(np.repeat(self.memory[..., None, None], 2, axis=3), "float32")
        length = inputs.tensor(np.array([len(self.model[name]) for name in names]))
        q = inputs.tensor(np.full((len(names), 1, 1, 2), 2.0**-7), "float32")
        o, lse = self.fast.attention(q, pool, pool, inputs.tensor(tables), length, scale=1.0)
        for b, name in enumerate(names):
            tokens = np.repeat(np.array(self.model[name]).reshape(-1, 1), 2, axis=1)
            expected = bounded(dense.attention, np.full((1, 2), 2.0**-7), tokens, tokens, precision=Precision("float32"), scale=1.0)
            agree(o[b, :, 0], expected[0], "decoded together")
            agree(lse[b, 0], expected[1], "log-sum-exp")


def test_every_history_keeps_the_books_and_the_tokens(fast):
    class Here(Histories):
        pass

    Here.fast = fast
    run_state_machine_as_test(Here, settings=settings(stateful_step_count=20))


def test_who_writes_into_a_shared_block_gets_a_copy(fast):
    for pool in (paged.BlockPool(9, 4), fast.BlockPool(9, 4)):
        pool.create("a", 6)
        pool.fork("a", "b")
        pool.fork("b", "c")
        assert pool.append("a") == (3, 2, 2) and pool.append("b") == (4, 2, 2), "two of three owners leave the shared tail"
        assert pool.append("c") == (2, 2, None), "the last one keeps it"
        assert pool.tables == {"a": [1, 3], "b": [1, 4], "c": [1, 2]} and pool.ref[:5] == [0, 3, 1, 1, 1]


def test_siblings_may_go_in_any_order(fast):
    """Shared blocks are free when the last owner has gone, and a sequence gives its last block back first."""
    for pool in (paged.BlockPool(5, 2), fast.BlockPool(5, 2)):
        pool.create("a", 4)
        pool.fork("a", "b")
        pool.release("a")
        assert list(pool.free) == [3, 4]
        pool.release("b")
        assert list(pool.free) == [3, 4, 2, 1] and pool.ref == [0] * 5


def test_a_pool_names_what_is_wrong(fast):
    for pool in (paged.BlockPool(4, 2), fast.BlockPool(4, 2)):
        pool.create("a", 1)
        for call in (lambda pool=pool: pool.create("a", 1), lambda pool=pool: pool.fork("a", "a")):
            with pytest.raises(ValueError, match="'a' exists"):
                call()
        with pytest.raises(KeyError):
            pool.append("b")
    for arguments in ((0, 2), (4, 0)):
        with pytest.raises(ValueError, match="n_blocks and B"):
            fast.BlockPool(*arguments)
    with pytest.raises(ValueError, match="n must"):
        fast.BlockPool(4, 2).create("a", -1)
