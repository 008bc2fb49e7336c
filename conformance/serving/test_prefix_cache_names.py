"""Names of blocks: equal exactly where the contents are, whatever else than tokens they depend on; and what is found under them."""

import struct
from hashlib import blake2b
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.fast.attention import flash
from twofold.fast.attention import paged as fast_paged
from twofold.spec.attention import dense, paged
from twofold.spec.serving import prefix_cache as spec

DIGEST = "1f9a" * 16
DISTINCT = [  # no two of these are the same model input
    [],
    [("salt", "a")],
    [("adapter", "a")],
    [("adapter", "a"), ("salt", "a")],
    [("adapter", "sql"), ("adapter id", 1)],
    [("adapter", "sql"), ("adapter id", 2)],
    [("image", DIGEST)],
    [("image", "0" + DIGEST[1:])],
    [("image", DIGEST[:-4] + "0000")],
    [("image", DIGEST[-4:])],
    [("salt", 1)],
    [("salt", "1")],
    [("salt", b"1")],
    [("a", "bsc")],
    [("asb", "c")],  # a, tag of strings, bsc: without lengths the same bytes
    [("salt", "")],
    [("", "salt")],
    [("salt", "a"), ("salt", "b")],
    [("salt", "b"), ("salt", "a")],
    [("salt", "asaltb")],
]


def cache_of(module):
    return module.PrefixCache(paged.BlockPool(8, 2))


@pytest.mark.parametrize("one", range(len(DISTINCT)))
def test_different_extras_never_meet(fast, one):
    for module in (spec, fast):
        cache = cache_of(module)
        blocks = cache.take(2)
        cache.commit(blocks, [1, 2, 3, 4], DISTINCT[one])
        for other, extra in enumerate(DISTINCT):
            assert cache.match([1, 2, 3, 4, 5], extra) == (blocks if one == other else []), (DISTINCT[one], extra)


def test_an_image_counts_from_where_it_enters(fast):
    for module in (spec, fast):
        cache = cache_of(module)
        blocks = cache.take(3)
        cache.commit(blocks, [1, 2, 7, 7, 7, 7], [("image", "cat", 3)])
        text = [1, 2, 7, 7, 7, 7, 8]
        assert cache.match(text, [("image", "cat", 3)]) == blocks
        assert cache.match(text, [("image", "dog", 3)]) == blocks[:1], "what stands before it does not depend on it"
        assert cache.match(text, [("image", "cat", 2)]) == blocks[:1], "the same image elsewhere is other content"
        assert cache.match(text) == blocks[:1]


def test_names_are_equal_exactly_where_those_of_the_spec_are(fast):
    """All texts of up to six tokens over two ids, under five extras."""
    extras = [(), (("salt", "0"),), (("image", "0", 1),), (("image", "0", 4),), (("salt", "0"), ("image", "0", 2))]
    texts = [text for n in range(7) for text in product(range(2), repeat=n)]
    meaning = {}
    for B, text, extra in product([1, 2, 3], texts, extras):
        ours, theirs = fast.hash_chain(text, B, extra), spec.hash_chain(text, B, extra)
        assert len(ours) == len(theirs) == len(text) // B
        for name, content in zip(ours, theirs):
            assert len(name) >= 16 and meaning.setdefault(name, (B, content)) == (B, content)
    assert len(set(meaning.values())) == len(meaning)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), st.integers(1, 4), st.sampled_from(DISTINCT))
def test_names_are_hashes_of_the_documented_bytes(fast, tokens, B, extra):
    """The same in every process and for ever: written down a second time, field by field."""

    def hashed(*parts):
        return blake2b(b"".join(parts), digest_size=32).digest()

    def field(data):
        return struct.pack("<Q", len(data)) + data

    entries = []
    for domain, value in extra:
        tag, data = {str: (b"s", str.encode), bytes: (b"b", bytes), int: (b"i", lambda i: b"%d" % i)}[type(value)]
        entries.append(field(domain.encode()) + tag + field(data(value)) + field(b""))
    name, expected = hashed(field(b"prefix cache"), struct.pack("<Q", B)), []
    for start in range(0, len(tokens) - B + 1, B):
        here = entries if start == 0 else []
        name = hashed(name, struct.pack("<Q", len(here)), *here, struct.pack(f"<{B}q", *tokens[start : start + B]))
        expected.append(name)
    assert fast.hash_chain(tokens, B, extra) == expected
    assert fast.hash_chain(torch.tensor(tokens, dtype=torch.int64), B, extra) == expected


def keys_and_values(text):
    """A row of each for every token, which depends on all tokens up to it."""
    rows = [np.random.default_rng([j, *text[: j + 1]]).standard_normal((2, 16)) for j in range(len(text))]
    return np.stack(rows, 1) if rows else np.zeros((2, 0, 16))


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=11), min_size=2, max_size=4), st.sampled_from([1, 2, 4]))
def test_outputs_are_those_of_a_cold_run_bit_by_bit(fast, texts, B):
    """Requests one after another, each writing only what it did not find: its pages hold what a cold run would have, and so do outputs."""
    cache = fast.PrefixCache(fast_paged.BlockPool(13, B))
    pools = np.full((2, 13, B, 16), np.nan)
    for text in texts:
        blocks = cache.match(text)
        found = len(blocks) * B
        blocks = blocks + cache.take(-(-len(text) // B) - len(blocks))
        cold = inputs.rounded(keys_and_values(text), "float32")
        for j in range(found, len(text)):
            pools[:, blocks[j // B], j % B] = cold[:, j]
        cache.commit(blocks, text)
        k, v = (paged.gather(pool, blocks, len(text)) for pool in pools)
        exactly(np.stack([k, v]), cold, "keys and values")
        query = inputs.values("normal", [(1, 16)], len(text))[0]
        exactly(dense.attention(query, k, v)[0], dense.attention(query, *cold)[0], "output of the spec")
        warm, expected = ([inputs.tensor(x[None, :, None], "float32") for x in (query, *pair)] for pair in ((k, v), cold))
        exactly(flash.forward(*warm)[0], flash.forward(*expected)[0], "output")
        cache.release(blocks)


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (ValueError, "B", lambda fast, cache: fast.hash_chain([1], 0)),
        (TypeError, "tokens", lambda fast, cache: cache.match([0.5, 1.5, 2.5])),
        (TypeError, "tokens", lambda fast, cache: cache.match(torch.zeros(2, 3, dtype=torch.int64))),
        (TypeError, "extra", lambda fast, cache: cache.match([1, 2, 3], [("salt", None)])),
        (TypeError, "extra", lambda fast, cache: cache.match([1, 2, 3], [("salt", True)])),
        (TypeError, "extra", lambda fast, cache: cache.match([1, 2, 3], ["salt"])),
        (TypeError, "extra", lambda fast, cache: cache.match([1, 2, 3], [["salt", "a"]])),
        (TypeError, "extra", lambda fast, cache: cache.match([1, 2, 3], [(1, "a")])),
        (TypeError, "extra", lambda fast, cache: cache.match([1, 2, 3], [("image", "x", 1, 2)])),
        (ValueError, "extra", lambda fast, cache: cache.match([1, 2, 3], [("image", "x", -1)])),
        (ValueError, "n", lambda fast, cache: cache.take(-1)),
        (ValueError, "blocks", lambda fast, cache: cache.release([3])),
        (ValueError, "blocks", lambda fast, cache: cache.release([0])),
        (ValueError, "blocks", lambda fast, cache: cache.commit([99], [1, 2])),
    ],
)
def test_errors_name_the_argument_and_change_nothing(fast, error, name, call):
    cache = cache_of(fast)
    free, ref = list(cache.pool.free), list(cache.pool.ref)
    with pytest.raises(error, match=name):
        call(fast, cache)
    assert list(cache.pool.free) == free and list(cache.pool.ref) == ref
