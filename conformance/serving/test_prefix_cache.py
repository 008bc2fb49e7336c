"""Prefix caching: whatever requests come and go, a hit holds exactly what the request would have computed itself."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from twofold.fast.attention import paged as fast_paged
from twofold.spec.attention import paged
from twofold.spec.serving import prefix_cache as spec

OUT = (paged.OutOfBlocks, fast_paged.OutOfBlocks)
EXTRAS = [(), (("salt", "a"),), (("adapter", "a"),), (("image", "x", 1),), (("image", "y", 1),), (("image", "x", 2), ("image", "y", 4))]
texts = st.lists(st.integers(0, 1), min_size=1, max_size=8)


def key(text, end, extra):
    """All that the keys and values of the tokens before `end` depend on."""
    return tuple(text[:end]), tuple(each for each in extra if (each[2] if len(each) > 2 else 0) < end)


class Request:
    def __init__(self, text, extra, blocks):
        self.text, self.extra, self.blocks = text, extra, blocks


class Machine(RuleBasedStateMachine):
    """The oracle is a list of who has committed what, and a list of free blocks; contents are written and read slot by slot."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    @initialize(B=st.integers(1, 3), n_blocks=st.integers(2, 9))
    def begin(self, B, n_blocks):
        self.pool = paged.BlockPool(n_blocks, B)
        self.cache = self.module.PrefixCache(self.pool)
        self.B, self.free, self.requests, self.committed = B, list(range(1, n_blocks)), [], []
        self.data = {}  # (block, slot) -> the key of the token whose keys and values lie there

    @rule(text=texts, extra=st.sampled_from(EXTRAS), computed=st.integers(0, 8))
    def start(self, text, extra, computed):
        blocks = self.cache.match(text, extra)
        assert blocks == self.longest(text, extra)
        self.free = [block for block in self.free if block not in blocks]
        request = Request(text, extra, blocks)
        self.check_contents(request, len(blocks) * self.B)
        self.requests.append(request)
        if self.take(request, -(-len(text) // self.B) - len(blocks)):
            self.write(request, range(len(blocks) * self.B, len(text)))
            self.commit(request, max(len(text) - computed, 0))
        else:
            self.finish_one(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data, token):
        request = data.draw(st.sampled_from(self.requests))
        if len(request.text) < 12 and (len(request.text) % self.B or self.take(request, 1)):
            request.text = [*request.text, token]
            self.write(request, [len(request.text) - 1])
            self.commit(request, len(request.text))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def finish(self, data):
        self.finish_one(data.draw(st.sampled_from(self.requests)))

    def longest(self, text, extra):
        """The longest chain of full blocks that somebody has committed and nobody has overwritten; the first who did, of several."""
        blocks = []
        for end in range(self.B, len(text), self.B):  # at most all tokens but the last
            same = [block for block, content in self.committed if content == key(text, end, extra)]
            if not same:
                break
            blocks.append(same[0])
        return blocks

    def take(self, request, n):
        if n > len(self.free):
            with pytest.raises(OUT, match=f"{n} blocks asked for, {len(self.free)} free"):
                self.cache.take(n)
            return False
        blocks = self.cache.take(n)
        assert blocks == self.free[:n]
        self.free = self.free[n:]
        self.committed = [each for each in self.committed if each[0] not in blocks]
        request.blocks = request.blocks + blocks
        return True

    def write(self, request, positions):
        for j in positions:
            block = request.blocks[j // self.B]
            assert sum(block in each.blocks for each in self.requests) == 1, "nobody writes into a shared block"
            assert block not in dict(self.committed), "what has a name is never overwritten"
            self.data[block, j % self.B] = key(request.text, j + 1, request.extra)

    def commit(self, request, computed):
        self.cache.commit(request.blocks, request.text[:computed], request.extra)
        for b in range(computed // self.B):
            if request.blocks[b] not in dict(self.committed):
                self.committed.append((request.blocks[b], key(request.text, (b + 1) * self.B, request.extra)))

    def finish_one(self, request):
        self.requests.remove(request)
        self.cache.release(request.blocks)
        for block in reversed(request.blocks):
            if not any(block in each.blocks for each in self.requests):
                self.free.insert(len(self.free) if block in dict(self.committed) else 0, block)

    def check_contents(self, request, length):
        for j in range(length):
            assert self.data[request.blocks[j // self.B], j % self.B] == key(request.text, j + 1, request.extra), f"token {j}"

    @invariant()
    def books_are_kept(self):
        held = [block for request in self.requests for block in request.blocks]
        assert list(self.pool.free) == self.free, "in this order"
        assert list(self.pool.ref) == [held.count(block) for block in range(len(self.pool.ref))]
        assert sorted({*held, *self.free}) == list(range(1, len(self.pool.ref))) and not {*held} & {*self.free}
        for request in self.requests:
            self.check_contents(request, len(request.text))

    def teardown(self):
        for request in list(self.requests):
            self.finish_one(request)
        self.books_are_kept()


def test_any_sequence_of_requests_finds_what_it_would_have_computed(fast):
    many = settings(settings.default, max_examples=5 * settings.default.max_examples, stateful_step_count=40)
    for module in (spec, fast):
        run_state_machine_as_test(lambda: Machine(module), settings=many)  # noqa: B023


def made(module, n_blocks=8, B=2):
    return module.PrefixCache(paged.BlockPool(n_blocks, B))


def stored(cache, text, extra=()):
    """A request that came, was computed and left."""
    blocks = cache.match(text, extra)
    blocks = blocks + cache.take(-(-len(text) // cache.pool.B) - len(blocks))
    cache.commit(blocks, text, extra)
    cache.release(blocks)
    return blocks


def test_one_token_is_always_left_to_compute(fast):
    for module in (spec, fast):
        cache = made(module)
        blocks = stored(cache, [1, 2, 3, 4])
        assert [cache.match([1, 2, 3, 4, 5][:n]) for n in range(6)] == [[], [], [], blocks[:1], blocks[:1], blocks]


def test_taking_nothing_takes_nothing(fast):
    for module in (spec, fast):
        cache = made(module)
        everything = cache.take(len(cache.pool.free))
        assert cache.take(0) == [] and len(everything) == len(cache.pool.ref) - 1


def test_committing_again_changes_nothing(fast):
    for module in (spec, fast):
        cache = made(module)
        blocks = cache.take(2)
        for length in (2, 4, 4, 3):
            cache.commit(blocks, [1, 2, 3, 4][:length])
        assert cache.match([1, 2, 3, 4, 5]) == blocks


def test_a_prompt_shorter_than_a_block_is_never_found(fast):
    for module in (spec, fast):
        cache = made(module, B=4)
        stored(cache, [1, 2, 3])
        assert cache.match([1, 2, 3]) == [] and cache.match([1, 2, 3, 4, 5]) == [] and cache.match([]) == []


def test_the_same_tokens_after_another_prefix_are_other_content(fast):
    for module in (spec, fast):
        cache = made(module)
        stored(cache, [1, 2, 3, 4])
        assert cache.match([9, 9, 3, 4, 5]) == [] and cache.match([3, 4, 5]) == []


def test_what_is_released_last_is_found_longest_and_ends_go_before_beginnings(fast):
    for module in (spec, fast):
        cache = made(module, n_blocks=8)
        first, second = stored(cache, [1, 2, 3, 4, 5]), stored(cache, [6, 7, 8, 9])
        assert second[0] == first[2], "a block that was not full is of no use, and goes next"
        assert list(cache.pool.free) == [5, 6, 7, first[1], first[0], second[1], second[0]]
        cache.take(4)
        assert len(cache.match([1, 2, 3, 4, 5])) == 1 and len(cache.match([6, 7, 8, 9, 0])) == 2


def test_without_the_middle_of_a_chain_its_end_is_out_of_reach(fast):
    for module in (spec, fast):
        cache = made(module, n_blocks=4)
        blocks = stored(cache, [1, 2, 3, 4, 5, 6])
        held = cache.match([1, 2, 3])  # its first block is in use, and leaves the queue
        cache.release(cache.take(2))  # the end and the middle go
        assert cache.match([1, 2, 3, 4, 5, 6, 7]) == blocks[:1] == held


def test_of_two_blocks_with_the_same_content_the_second_is_found_when_the_first_is_gone(fast):
    for module in (spec, fast):
        cache = made(module, n_blocks=4)
        first, second = cache.take(1), cache.take(1)  # both computed at once
        cache.commit(first, [1, 2])
        cache.commit(second, [1, 2])
        cache.release(first)
        cache.take(2)  # the third block, and the first
        assert cache.match([1, 2, 3]) == second
        assert list(cache.pool.ref) == [0, 1, 2, 1]
