"""The radix cache's arguments: lists or tensors, copied; wrong ones are named."""

import pytest
import torch


def test_tokens_and_slots_may_be_lists_or_tensors_and_are_not_kept(fast):
    tokens, slots = torch.tensor([3, 4, 5], dtype=torch.int32), torch.tensor([7, 8, 9])
    cache = fast.RadixCache()
    assert cache.insert(tokens, slots) == 0 and cache.insert([3, 4, 5], range(3)) == 3
    tokens.zero_()
    slots.zero_()
    found, _ = cache.match((3, 4, 5))
    assert found.dtype == torch.int64 and found.tolist() == [7, 8, 9]
    found.zero_()
    assert cache.match([3, 4, 5])[0].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (ValueError, "page", lambda fast, cache: fast.RadixCache(page=0)),
        (TypeError, "tokens", lambda fast, cache: cache.match(torch.zeros(3))),
        (TypeError, "tokens", lambda fast, cache: cache.match(torch.zeros(1, 3, dtype=torch.int64))),
        (TypeError, "tokens", lambda fast, cache: cache.match([1 << 63])),
        (TypeError, "tokens", lambda fast, cache: cache.insert(["a"], [1])),
        (ValueError, "slots", lambda fast, cache: cache.insert([1, 2], [1])),
        (TypeError, "slots", lambda fast, cache: cache.insert([8, 9], [0.5, 1.5])),
        (TypeError, "slots", lambda fast, cache: cache.insert([8, 9], torch.zeros(2))),
        (ValueError, "node", lambda fast, cache: cache.unlock(cache.match([1])[1])),
        (ValueError, "node", lambda fast, cache: cache.lock([cache.match([1])[1], cache.evict(2)][0])),
    ],
)
def test_errors_name_the_argument(fast, error, name, call):
    cache = fast.RadixCache()
    cache.insert([1, 2], [0, 1])
    with pytest.raises(error, match=name):
        call(fast, cache)
