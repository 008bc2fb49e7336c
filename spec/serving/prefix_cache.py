r"""Prefix caching: full blocks of keys and values are found again by a hash of all that they depend on, and forgotten as late as can be.

Paper: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023, arXiv:2309.06180, Sec. 4.4
(shared prefix); the chain of hashes and the queue are those of vLLM's automatic prefix caching.

What lies in a block depends on its own tokens, on all tokens before it, and on whatever else enters the model: an adapter, an image. So a
block is named by a chain,

$$h_b = H(h_{b-1},\; x_{bB},\dots,x_{bB+B-1},\; e_b),$$

and a request finds its longest cached prefix by looking up $h_0, h_1, \dots$ until one is missing. A block that no request holds any more
keeps its content and waits in the pool's queue of free blocks. If it is found again before its turn comes, it leaves the queue; if it is
handed out to somebody else, its name is forgotten. Cached blocks therefore cost no memory that anyone else could use.

| name | symbol | shape | meaning |
|---|---|---|---|
| `tokens` | x | `(n,)` | token ids of a request |
| `B` | B | | tokens per block |
| `extra` | e | | what else it depends on: `(domain, value)`, or `(domain, value, position)` where it enters later, as an image does |
| `blocks` | | | ids of blocks in the pool, those of one request in order |
| `n` | | | how many blocks |

Deviations: here H keeps everything it is given, so that two names are equal only if the contents are; `fast` has 256 bits. The domain
stands beside the value, since an adapter and a salt may have the same name. vLLM's blocks without hash keep their order at the head.
Derives from: attention.paged
"""

from twofold.spec.attention.paged import OutOfBlocks

__all__ = ["hash_chain", "PrefixCache"]


def hash_chain(tokens, B, extra=()):
    """The names of all full blocks, each the whole chain that leads to it.

    >>> hash_chain([1, 2, 3, 4, 5], 2)
    [(((1, 2), ()),), (((1, 2), ()), ((3, 4), ()))]
    >>> hash_chain([1, 2, 3], 2, extra=[("salt", "a"), ("image", "f00d", 2)])     # token 2 stands in no full block
    [(((1, 2), (('salt', 'a'),)),)]
    >>> hash_chain([1], 2)
    []
    """
    chain, name = [], ()
    for start in range(0, len(tokens) - B + 1, B):
        here = tuple(each for each in extra if start <= _position(each) < start + B)
        name = (*name, (tuple(tokens[start : start + B]), here))
        chain.append(name)
    return chain


class PrefixCache:
    """The names of a pool's blocks. From now on blocks are taken and released here: only here are names forgotten in time.

    >>> from twofold.spec.attention.paged import BlockPool
    >>> cache = PrefixCache(BlockPool(6, 2))
    >>> first = cache.take(3)                                                     # room for five tokens
    >>> cache.commit(first, [1, 2, 3, 4, 5])                                      # two full blocks have names now
    >>> cache.release(first)
    >>> cache.match([1, 2, 3, 4, 9]), cache.match([1, 2, 3, 4]), cache.match([7, 2, 3, 4])
    ([1, 2], [1], [])
    >>> cache.match([1, 2, 3, 4, 9], extra=[("adapter", "sql")])
    []
    """

    def __init__(self, pool):
        self.pool, self.names, self.found = pool, {}, {}  # block -> its name; name -> the blocks with that content, oldest first

    def match(self, tokens, extra=()):
        """The longest chain of cached blocks, held for the caller; without the last token, which someone has to compute."""
        blocks = []
        for name in hash_chain(tokens[:-1], self.pool.B, extra):
            if name not in self.found:
                break
            blocks.append(self.found[name][0])
        for block in blocks:
            if self.pool.ref[block] == 0:
                self.pool.free.remove(block)
            self.pool.ref[block] += 1
        return blocks

    def take(self, n):
        """Fresh blocks from the head of the queue; whatever they were called is forgotten."""
        if n > len(self.pool.free):
            raise OutOfBlocks(f"{n} blocks asked for, {len(self.pool.free)} free")
        blocks = [self.pool.free.pop(0) for _ in range(n)]
        for block in blocks:
            self.pool.ref[block] = 1
            if block in self.names:
                name = self.names.pop(block)
                self.found[name].remove(block)
                if not self.found[name]:
                    del self.found[name]
        return blocks

    def commit(self, blocks, tokens, extra=()):
        """Name the blocks that these tokens have filled. A second block with the same content has the same name and is found later."""
        for block, name in zip(blocks, hash_chain(tokens, self.pool.B, extra)):
            if block not in self.names:
                self.names[block] = name
                self.found.setdefault(name, []).append(block)

    def release(self, blocks):
        """Let go, the last block first. A block with a name waits at the end of the queue, one without is of no use and goes next."""
        for block in reversed(blocks):
            self.pool.ref[block] -= 1
            if self.pool.ref[block] == 0:
                self.pool.free.insert(len(self.pool.free) if block in self.names else 0, block)


def _position(each):
    return each[2] if len(each) > 2 else 0
