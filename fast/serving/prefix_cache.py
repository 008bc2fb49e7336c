"""Prefix caching on the host: blocks named by chained 256-bit hashes, and a queue that can be left in the middle.

See `twofold.spec.serving.prefix_cache`.

A name is BLAKE2b over the parent's name, the extras that enter with the block and its tokens. Every field has a fixed width or is preceded
by its length, and every extra carries its domain and the type of its value, so that no two different blocks are hashed from the same bytes;
names are the same in every process. Names are computed lazily: a match stops at the first miss, a commit starts behind the last block
that has one.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

from torch import Tensor

from twofold.fast.attention.paged import OutOfBlocks
from twofold.fast.serving._ids import BYTES, as_bytes

__all__ = ["hash_chain", "PrefixCache"]

Extra = Sequence[tuple]  # of (domain, value) or (domain, value, position)
TYPES = {str: b"s", bytes: b"b", int: b"i"}  # of values


def hash_chain(tokens: Sequence[int] | Tensor, B: int, extra: Extra = ()) -> list[bytes]:
    """The names of all full blocks, 32 bytes each.

    `tokens` are ids, a sequence or a tensor `(n,)`. A domain is a string, a value a string, bytes or an integer, a position an index of
    the tokens.
    """
    if B < 1:
        raise ValueError(f"B must be at least 1, not {B}")
    return list(_names(tokens, B, extra))


class Queue:
    """Blocks in order, with the methods of a deque, each in constant time: also to leave from the middle."""

    def __init__(self, blocks: Iterable[int]) -> None:
        self.order: OrderedDict[int, None] = OrderedDict.fromkeys(blocks)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)

    def append(self, block: int) -> None:
        self.order[block] = None

    def appendleft(self, block: int) -> None:
        self.order[block] = None
        self.order.move_to_end(block, last=False)

    def popleft(self) -> int:
        return self.order.popitem(last=False)[0]

    def remove(self, block: int) -> None:
        del self.order[block]


class PrefixCache:
    """The names of a pool's blocks. From now on blocks are taken and released here: only here are names forgotten in time."""

    def __init__(self, pool: Any) -> None:
        pool.free = Queue(pool.free)
        self.pool = pool
        self.names: dict[int, bytes] = {}  # of blocks
        self.found: dict[bytes, dict[int, None]] = {}  # the blocks with that content, oldest first

    def match(self, tokens: Sequence[int] | Tensor, extra: Extra = ()) -> list[int]:
        """The longest chain of cached blocks, held for the caller; without the last token, which someone has to compute."""
        blocks = []
        for name in _names(tokens[: max(len(tokens) - 1, 0)], self.pool.B, extra):
            if name not in self.found:
                break
            blocks.append(next(iter(self.found[name])))
        for block in blocks:
            if self.pool.ref[block] == 0:
                self.pool.free.remove(block)
            self.pool.ref[block] += 1
        return blocks

    def take(self, n: int) -> list[int]:
        """Fresh blocks from the head of the queue; whatever they were called is forgotten."""
        if n < 0:
            raise ValueError(f"n must be at least 0, not {n}")
        if n > len(self.pool.free):
            raise OutOfBlocks(f"{n} blocks asked for, {len(self.pool.free)} free")
        blocks = [self.pool.free.popleft() for _ in range(n)]
        for block in blocks:
            self.pool.ref[block] = 1
            if (name := self.names.pop(block, None)) is not None:
                del self.found[name][block]
                if not self.found[name]:
                    del self.found[name]
        return blocks

    def commit(self, blocks: Sequence[int], tokens: Sequence[int] | Tensor, extra: Extra = ()) -> None:
        """Name the blocks that these tokens have filled. A second block with the same content has the same name and is found later."""
        self._demand_held(blocks)
        known = 0
        while known < len(blocks) and blocks[known] in self.names:
            known += 1
        parent = self.names[blocks[known - 1]] if known else None
        for block, name in zip(blocks[known:], _names(tokens, self.pool.B, extra, known, parent)):
            if block not in self.names:
                self.names[block] = name
                self.found.setdefault(name, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Let go, the last block first. A block with a name waits at the end of the queue, one without is of no use and goes next."""
        self._demand_held(blocks)
        for block in reversed(blocks):
            self.pool.ref[block] -= 1
            if self.pool.ref[block] == 0:
                (self.pool.free.append if block in self.names else self.pool.free.appendleft)(block)

    def _demand_held(self, blocks: Sequence[int]) -> None:
        free = [block for block in blocks if not 0 < block < len(self.pool.ref) or self.pool.ref[block] == 0]
        if free:
            raise ValueError(f"blocks must be held by their request, {free} are not")


def _names(tokens: Sequence[int] | Tensor, B: int, extra: Extra, known: int = 0, parent: bytes | None = None) -> Iterator[bytes]:
    """The names of the full blocks behind the first `known` ones, whose last is called `parent`."""
    entering: dict[int, list[bytes]] = {}  # by block
    for each in extra:
        position, encoded = _encoded(each)
        entering.setdefault(position // B, []).append(encoded)
    name = parent or blake2b(_field(b"prefix cache") + B.to_bytes(8, "little"), digest_size=32).digest()
    data = as_bytes(tokens[known * B :], "tokens")
    for at in range(0, len(data) - B * BYTES + 1, B * BYTES):
        here = entering.get(known + at // (B * BYTES), [])
        content = [name, len(here).to_bytes(8, "little"), *here, data[at : at + B * BYTES]]
        name = blake2b(b"".join(content), digest_size=32).digest()
        yield name


def _encoded(each: tuple) -> tuple[int, bytes]:
    """Where an extra enters, and its bytes."""
    if not (isinstance(each, tuple) and len(each) in (2, 3) and isinstance(each[0], str) and type(each[1]) in TYPES):
        raise TypeError(f"extra must hold (domain, value) or (domain, value, position), a value being str, bytes or int, not {each!r}")
    domain, value, *position = each
    if position and (type(position[0]) is not int or position[0] < 0):
        raise ValueError(f"extra's positions must be indices of tokens, not {position[0]!r}")
    data = value if isinstance(value, bytes) else str(value).encode()
    where = b"".join(at.to_bytes(8, "little") for at in position)
    return position[0] if position else 0, _field(domain.encode()) + TYPES[type(value)] + _field(data) + _field(where)


def _field(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data
