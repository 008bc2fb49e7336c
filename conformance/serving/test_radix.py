"""The radix cache against a set of prefixes: any sequence of calls finds, keeps and gives back what a plain table of pages says."""

import random

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from twofold.conformance.compare import exactly
from twofold.spec.serving import radix as spec

texts = st.lists(st.integers(0, 1), max_size=9)


def ints(slots):
    return [int(slot) for slot in slots]


class Table:
    """What must be in the cache, page by page: each stored prefix of whole pages, its last page's slots and its last use."""

    def __init__(self, page):
        self.page, self.time, self.slots, self.used, self.locked = page, 0, {}, {}, []

    def prefixes(self, text):
        return [tuple(text[:end]) for end in range(self.page, len(text) + 1, self.page)]

    def match(self, text):
        self.time += 1
        found = [prefix for prefix in self.prefixes(text) if prefix in self.slots]
        self.used |= dict.fromkeys(found, self.time)
        return [slot for prefix in found for slot in self.slots[prefix]]

    def insert(self, text, slots):
        present = len(self.match(text))
        for prefix in self.prefixes(text)[present // self.page :]:
            self.slots[prefix] = slots[len(prefix) - self.page : len(prefix)]
            self.used[prefix] = self.time
        return present

    def evict(self, freed):
        """Take out the pages used least recently, one by one, as many as were freed; returns their slots and last uses, in order."""
        slots, uses = [], []
        while len(slots) < freed and (ends := self.ends()):
            end = min(ends, key=self.used.get)
            slots, uses = slots + self.slots.pop(end), [*uses, self.used.pop(end)]
        return slots, uses

    def ends(self):
        """Pages behind which nothing is stored and that no lock covers."""
        inner = {prefix[: -self.page] for prefix in self.slots} | {each[:end] for each in self.locked for end in range(len(each) + 1)}
        return [prefix for prefix in self.slots if prefix not in inner]


class Machine(RuleBasedStateMachine):
    stored = Bundle("stored")

    def __init__(self, module):
        super().__init__()
        self.module, self.handed_out = module, 0

    @initialize(page=st.sampled_from([1, 1, 2, 3]))
    def start(self, page):
        self.cache, self.table, self.locks = self.module.RadixCache(page), Table(page), []

    @rule(target=stored, text=texts)
    def insert(self, text):
        slots = list(range(self.handed_out, self.handed_out + len(text)))
        self.handed_out += len(text)
        assert self.cache.insert(text, slots) == self.table.insert(text, slots)
        return text

    @rule(target=stored, start=stored, rest=texts)
    def insert_behind(self, start, rest):
        return self.insert(start + rest)

    @rule(text=st.one_of(texts, stored), cut=st.integers(0, 3), lock=st.booleans())
    def match(self, text, cut, lock):
        text = text[: len(text) - cut] if cut < len(text) else text
        slots, node = self.cache.match(text)
        assert ints(slots) == self.table.match(text)
        if lock:
            self.cache.lock(node)
            self.locks.append(node)
            self.table.locked.append(tuple(text[: len(slots)]))

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data):
        i = data.draw(st.integers(0, len(self.locks) - 1))
        self.cache.unlock(self.locks.pop(i))
        self.table.locked.pop(i)

    @rule(n=st.integers(-1, 7))
    def evict(self, n):
        freed = ints(self.cache.evict(n))
        slots, uses = self.table.evict(len(freed))
        assert sorted(freed) == sorted(slots), "what was used least recently goes first"
        assert len(freed) >= n or not self.table.ends(), "as many as were asked for, if there are as many"
        asked = -(-max(n, 0) // self.table.page)  # pages
        assert len(set(uses[max(asked - 1, 0) :])) <= (asked > 0), "no more than the run in which the last of them lies"

    @invariant()
    def tokens_are_conserved(self):
        assert len(self.cache) == self.table.page * len(self.table.slots)

    def teardown(self):
        for node in self.locks:
            self.cache.unlock(node)
        assert sorted(ints(self.cache.evict(10**9))) == sorted(slot for slots in self.table.slots.values() for slot in slots)
        assert len(self.cache) == 0 and ints(self.cache.match([0, 1, 0])[0]) == []


def test_any_sequence_of_calls_finds_and_gives_back_what_a_table_of_prefixes_says(fast):
    many = settings(settings.default, max_examples=5 * settings.default.max_examples, stateful_step_count=40)
    for module in (spec, fast):
        run_state_machine_as_test(lambda: Machine(module), settings=many)  # noqa: B023


@pytest.mark.parametrize("page", [1, 2, 5])
def test_slots_come_in_the_order_of_the_spec(fast, page):
    """The same calls on both: the same slots, in the same order, for a thousand random calls."""
    rng, ours, theirs, locks = random.Random(page), fast.RadixCache(page), spec.RadixCache(page), []
    for step in range(1000):
        text = [rng.randrange(2) for _ in range(rng.randrange(4 * page + 4))]
        match rng.randrange(5):
            case 0 | 1:
                slots = [100 * step + i for i in range(len(text))]
                assert ours.insert(torch.tensor(text, dtype=torch.int64), torch.tensor(slots)) == theirs.insert(text, slots)
            case 2:
                (slots, mine), (expected, other) = ours.match(text), theirs.match(text)
                assert ints(slots) == list(expected)
                ours.lock(mine)
                theirs.lock(other)
                locks.append((mine, other))
            case 3 if locks:
                mine, other = locks.pop(rng.randrange(len(locks)))
                ours.unlock(mine)
                theirs.unlock(other)
            case _:
                n = rng.randrange(6)
                assert ints(ours.evict(n)) == list(theirs.evict(n))
        assert len(ours) == len(theirs)


def test_a_lock_covers_what_was_read_and_no_more(fast):
    """A match that ends inside an edge splits it: the rest of the edge may go."""
    for module in (spec, fast):
        cache = module.RadixCache()
        cache.insert([1, 2, 3, 4], [10, 11, 12, 13])
        cache.lock(cache.match([1, 2])[1])
        assert ints(cache.evict(4)) == [12, 13]
        assert ints(cache.match([1, 2, 3])[0]) == [10, 11]


def test_a_locked_edge_that_is_split_stays_locked_on_both_sides_and_is_free_after_one_unlock(fast):
    for module in (spec, fast):
        cache = module.RadixCache()
        cache.insert([1, 2, 3, 4], [10, 11, 12, 13])
        node = cache.match([1, 2, 3, 4])[1]
        cache.lock(node)
        cache.insert([1, 2, 9], [20, 21, 22])
        assert ints(cache.evict(9)) == [22]
        assert ints(cache.match([1, 2, 3, 4])[0]) == [10, 11, 12, 13]
        cache.unlock(node)
        assert sorted(ints(cache.evict(9))) == [10, 11, 12, 13]


def test_a_node_may_be_locked_later_than_it_was_matched(fast):
    for module in (spec, fast):
        cache = module.RadixCache()
        cache.insert([1], [10])
        cache.insert([2], [20])
        cache.match([2])
        node = cache.match([1])[1]
        assert ints(cache.evict(1)) == [20]
        cache.lock(node)
        assert ints(cache.evict(1)) == [] and ints(cache.match([1])[0]) == [10]


def test_a_prefix_of_what_is_stored_adds_nothing(fast):
    for module in (spec, fast):
        cache = module.RadixCache(page=2)
        assert cache.insert([1, 2, 3, 4], [10, 11, 12, 13]) == 0
        assert [cache.insert([1, 2, 3, 4][:n], [20, 21, 22, 23][:n]) for n in range(5)] == [0, 0, 2, 2, 4]
        assert len(cache) == 4 and ints(cache.match([1, 2, 3, 4])[0]) == [10, 11, 12, 13]


def test_runs_that_part_inside_a_page_share_none_of_it(fast):
    for module in (spec, fast):
        cache = module.RadixCache(page=2)
        assert cache.insert([1, 2, 3, 4, 5], [10, 11, 12, 13, 14]) == 0  # token 5 fills no page
        assert cache.insert([1, 2, 3, 9], [20, 21, 22, 23]) == 2  # token 3 stands in two pages from now on
        assert ints(cache.match([1, 2, 3, 9])[0]) == [10, 11, 22, 23] and ints(cache.match([1, 2, 3])[0]) == [10, 11]
        assert ints(cache.match([1])[0]) == [] and len(cache) == 6


def test_using_a_leaf_uses_the_way_to_it(fast):
    """The inner node is as recent as what hung below it: when that is gone, an older leaf still goes first."""
    for module in (spec, fast):
        cache = module.RadixCache()
        for text, slots in (([1, 2], [10, 11]), ([1, 3], [20, 21]), ([7], [30])):
            cache.insert(text, slots)
        older = cache.match([7])[1]
        cache.lock(older)
        cache.match([1, 2])
        cache.match([1, 3])
        assert [ints(cache.evict(1)) for _ in range(2)] == [[11], [21]]
        cache.unlock(older)
        assert [ints(cache.evict(1)) for _ in range(3)] == [[30], [10], []]


def test_long_runs_and_large_ids_are_told_apart_token_by_token(fast):
    """Ids that share their low or high bytes; runs that part at every place of a long edge."""
    ids = [1, 256, 1 << 32, (1 << 32) + 1, -1, 1 << 62, 0]
    cache = fast.RadixCache()
    for i, token in enumerate(ids):
        assert cache.insert([token, 5], [2 * i, 2 * i + 1]) == 0
    assert [ints(cache.match([token])[0]) for token in ids] == [[2 * i] for i in range(len(ids))]
    text = list(range(100))
    for at in range(100):
        for other in (-5, at - 2**63):  # the second differs in its highest bit alone
            cache = fast.RadixCache()
            cache.insert(text, text)
            exactly(cache.match([*text[:at], other, *text[at + 1 :]])[0], torch.arange(at), "shared slots")
