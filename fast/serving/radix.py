"""RadixAttention's cache on the host: runs of tokens as bytes, leaves in a heap. See `twofold.spec.serving.radix`.

A run is kept as the bytes of its 64-bit ids, so that an edge is compared by one `memcmp` and the place where two runs part is found by one
exclusive or. A match takes time in proportion to its length, plus one dictionary look-up per edge; a split also copies the edge.

A leaf that may go stands in a heap by its last use. Using it again does not touch the heap: an entry that has become too old is put back
when it comes up, which costs one step per use at most. So giving back a leaf takes logarithmic time, where a scan would visit every node.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from twofold.fast.serving._ids import BYTES, as_bytes, integers

__all__ = ["RadixCache"]


class Node:
    """The end of an edge. A handle for `lock`; what is in it is the cache's."""

    __slots__ = ("children", "locks", "parent", "queued", "run", "slots", "used")

    def __init__(self, parent: "Node | None", run: bytes, slots: Tensor, used: int, locks: int = 0) -> None:
        self.parent, self.run, self.slots, self.used, self.locks = parent, run, slots, used, locks
        self.children: dict[bytes, Node] = {}  # by the first page of the run
        self.queued = False  # whether it stands in the heap, with a use that is not later than `used`


class RadixCache:
    """The trie of everything that is cached; slots are int64 tensors on `device`."""

    def __init__(self, page: int = 1, *, device: torch.device | str = "cpu") -> None:
        if page < 1:
            raise ValueError(f"page must be at least 1, not {page}")
        self.page, self.width = page, BYTES * page
        self.none = torch.empty(0, dtype=torch.int64, device=device)
        self.root = Node(None, b"", self.none, 0)
        self.time = self.stored = 0
        self.leaves: list[tuple[int, int, Node]] = []  # (last use, a number that breaks ties, the leaf)
        self.numbers = count()

    def __len__(self) -> int:
        return self.stored

    def match(self, tokens: Sequence[int] | Tensor) -> tuple[Tensor, Node]:
        """The slots of the longest stored prefix `(n,)`, and the node where it ends: lock it before anything else is done.

        `tokens` are ids, a sequence or a tensor `(n,)`.
        """
        path = self._walk(as_bytes(tokens, "tokens"))
        return torch.cat([self.none, *(node.slots for node in path)]), path[-1] if path else self.root

    def insert(self, tokens: Sequence[int] | Tensor, slots: Sequence[int] | Tensor) -> int:
        """Store the sequence up to its last full page; returns how many of its tokens were there before. Slots are copied."""
        run = as_bytes(tokens, "tokens")
        if len(run) != BYTES * len(slots):
            raise ValueError(f"slots must be one for each of the {len(run) // BYTES} tokens, not {len(slots)}")
        run = run[: len(run) // self.width * self.width]
        path = self._walk(run)
        there = sum(len(node.run) for node in path)
        if there < len(run):
            parent = path[-1] if path else self.root
            leaf = Node(parent, run[there:], self._copied(slots[there // BYTES : len(run) // BYTES]), self.time)
            parent.children[leaf.run[: self.width]] = leaf
            self.stored += len(leaf.slots)
            self._queue(leaf)
        return there // BYTES

    def lock(self, node: Node) -> None:
        """Keep the node and the way to it until it is unlocked as often."""
        for each in self._way(node):
            each.locks += 1

    def unlock(self, node: Node) -> None:
        if not node.locks:
            raise ValueError("node is not locked")
        for each in self._way(node):
            each.locks -= 1
        self._queue(node)

    def evict(self, n: int) -> Tensor:
        """Give up least recently used leaves until n tokens are free, or as many as can be; returns their slots `(m,)`."""
        freed, missing = [self.none], n
        while missing > 0 and self.leaves:
            used, _, leaf = heapq.heappop(self.leaves)
            leaf.queued = False
            if leaf.used > used:
                self._queue(leaf)
            elif not leaf.children and not leaf.locks:
                freed.append(leaf.slots)
                missing -= len(leaf.slots)
                self._remove(leaf)
        return torch.cat(freed)

    def _copied(self, slots: Sequence[int] | Tensor) -> Tensor:
        if isinstance(slots, Tensor):  # without a way over the host
            return integers(slots, "slots").to(self.none.device, torch.int64, copy=True)
        return torch.frombuffer(bytearray(as_bytes(slots, "slots")), dtype=torch.int64).to(self.none.device)

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None  # the root is never queued
        del parent.children[leaf.run[: self.width]]
        leaf.parent = None
        self.stored -= len(leaf.slots)
        self._queue(parent)

    def _queue(self, node: Node) -> None:
        """Enter a node into the heap if it may go and does not stand there yet."""
        if node.parent is not None and not (node.children or node.locks or node.queued):
            node.queued = True
            heapq.heappush(self.leaves, (node.used, next(self.numbers), node))

    def _walk(self, run: bytes) -> list[Node]:
        """The nodes along the run below the root, all used now; the edge in which it is left is split there."""
        self.time += 1
        path, node, at = [], self.root, 0
        while (child := node.children.get(run[at : at + self.width])) is not None:
            ahead = run[at : at + len(child.run)]
            node = child if ahead == child.run else self._split(child, _shared(ahead, child.run) // self.width * self.width)
            node.used = self.time
            path.append(node)
            at += len(node.run)
        return path

    def _split(self, node: Node, length: int) -> Node:
        """A node of its own for the first bytes of an edge. Who holds the old node holds the end of the edge, as before."""
        first, rest = node.slots.split([length // BYTES, len(node.slots) - length // BYTES])
        upper = Node(node.parent, node.run[:length], first.clone(), node.used, node.locks)
        assert node.parent is not None
        node.parent.children[upper.run[: self.width]] = upper
        node.parent, node.run, node.slots = upper, node.run[length:], rest.clone()  # a view would keep both alive
        upper.children[node.run[: self.width]] = node
        return upper

    def _way(self, node: Node) -> Iterator[Node]:
        if node.parent is None and node is not self.root:
            raise ValueError("node is no longer in the cache: lock it right after its match")
        above: Node | None = node
        while above is not None:
            yield above
            above = above.parent


def _shared(a: bytes, b: bytes) -> int:
    """How many bytes two different runs share from the start."""
    n = min(len(a), len(b))
    differ = int.from_bytes(a[:n], "little") ^ int.from_bytes(b[:n], "little")
    return ((differ & -differ).bit_length() - 1) // 8 if differ else n
