r"""RadixAttention's cache: the token sequences of past requests in one compressed trie, each stored prefix once, with its cache slots.

Paper: Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs", 2023, arXiv:2312.07104, Sec. 3.

Keys and values of a token depend on all tokens before it and on none after it, so what requests can share is a common *prefix*. A trie
holds every stored sequence as a path from the root. Where sequences go the same way they share the path, and with it the slots of their
keys and values. An edge carries a whole run of tokens, and is split where a second sequence leaves it.

Slots come in pages of p tokens, and only whole pages are shared: two sequences that part inside a page share none of it. For stored $S$,

$$\text{match}(x) = \text{slots of the longest } y \text{ with } p \text{ dividing } |y| \text{ that begins } x \text{ and an } s \in S.$$

A running request locks the path that it reads. When slots run out, *leaves* that no one locks are given back, the one whose last use is
longest ago first: an inner node is needed by what hangs below it, and was never used less recently.

| name | symbol | meaning |
|---|---|---|
| `page` | p | tokens per page; a match is a whole number of pages |
| `tokens`, `slots` | x | a sequence of token ids, and where the keys and values of each lie |
| `node` | | the end of a match, to be locked as long as its slots are read |

Deviations: the paper's cache-aware order of requests is left out. A match splits the edge that it ends in, as SGLang's code does, so that
a lock covers what is read and no more. Time is a count of calls. The slots of tokens that were there before stay the caller's.
"""

from dataclasses import dataclass, field

__all__ = ["RadixCache"]


@dataclass(eq=False)
class Node:
    """The end of an edge: the run of tokens on it, their slots, and what goes on from here, by its whole first page."""

    parent: "Node | None"
    tokens: tuple = ()
    slots: tuple = ()
    used: int = 0
    locks: int = 0  # of this node and of all below it
    children: dict = field(default_factory=dict)


class RadixCache:
    """The trie of everything that is cached.
    >>> cache = RadixCache()
    >>> cache.insert([1, 2, 3, 4], [10, 11, 12, 13]), cache.insert([1, 2, 7], [20, 21, 22])    # two tokens were there before
    (0, 2)
    >>> cache.match([1, 2, 7, 8])[0], cache.match([5])[0]
    ((10, 11, 22), ())
    >>> cache.evict(1), len(cache)                                                # the leaf used least recently goes whole
    ((12, 13), 3)
    """

    def __init__(self, page=1):
        self.page, self.time, self.root = page, 0, Node(None)

    def __len__(self):  # tokens stored
        return sum(len(node.tokens) for node in self._nodes())

    def match(self, tokens):
        """The slots of the longest stored prefix, and the node where it ends: lock it before anything else is done."""
        path = self._walk(tokens)
        return sum((node.slots for node in path), ()), path[-1]

    def insert(self, tokens, slots):
        """Store the sequence up to its last full page; returns how many of its tokens were there before."""
        whole = len(tokens) // self.page * self.page
        path = self._walk(tokens[:whole])
        present = sum(len(node.tokens) for node in path)
        if present < whole:
            leaf = Node(path[-1], tuple(tokens[present:whole]), tuple(slots[present:whole]), used=self.time)
            leaf.parent.children[leaf.tokens[: self.page]] = leaf
        return present

    def lock(self, node):
        """Keep the node and the way to it until it is unlocked as often."""
        self._count(node, 1)

    def unlock(self, node):
        self._count(node, -1)

    def evict(self, n):
        """Give up least recently used leaves until n tokens are free, or as many as can be; returns their slots."""
        freed = ()
        while len(freed) < n and (leaves := [node for node in self._nodes() if node.parent and not node.children and not node.locks]):
            leaf = min(leaves, key=lambda node: node.used)
            del leaf.parent.children[leaf.tokens[: self.page]]
            freed = freed + leaf.slots
        return freed

    def _walk(self, tokens):
        """The nodes along the sequence, root first, all used now; the edge in which it is left is split there."""
        self.time += 1
        path, tokens = [self.root], tuple(tokens)
        while child := path[-1].children.get(tokens[: self.page]):
            shared = self.page  # by which the child was found
            while shared < len(child.tokens) and child.tokens[shared : shared + self.page] == tokens[shared : shared + self.page]:
                shared += self.page
            node = child if shared == len(child.tokens) else self._split(child, shared)
            node.used = self.time
            path, tokens = [*path, node], tokens[shared:]
        return path

    def _split(self, node, length):
        """A node of its own for the first tokens of an edge. Who holds the old node holds the end of the edge, as before."""
        upper = Node(node.parent, node.tokens[:length], node.slots[:length], node.used, node.locks)
        node.parent.children[node.tokens[: self.page]] = upper
        node.parent, node.tokens, node.slots = upper, node.tokens[length:], node.slots[length:]
        upper.children[node.tokens[: self.page]] = node
        return upper

    def _count(self, node, change):
        while node:
            node.locks, node = node.locks + change, node.parent

    def _nodes(self):
        nodes = [self.root]
        for node in nodes:  # it grows as it is walked
            nodes.extend(node.children.values())
        return nodes
