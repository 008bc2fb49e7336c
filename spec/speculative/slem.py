r"""String-level exact match: any model may draft for any other, with text between them where their vocabularies differ.

Paper: Timor, Mamou, Korat et al., "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous
Vocabularies", 2025, arXiv:2502.05202, Alg. 2.

The drafter continues a text with its own tokenizer and hands over text. The target's tokenizer reads the end of what has been written
together with the guess:

$$\mathrm{encode}(\mathrm{decode}(\text{tail}) \cdot \text{guess}) = \text{tail} \cdot \text{draft}.$$

If the ids of the tail come out again unchanged, what follows them is the draft; if they do not, there is none. The law of a draft made
this way is nobody's to know, so it must be verified by exact match (`match.verify`, or `chain.verify_onehot`, which has the same law).
That is lossless for any draft whatever, so nothing about tokenizers, windows or models can hurt the text's law. What is emitted are
the target's own tokens; ids that stand are never replaced by others of the same spelling.

| name | paper | shape | meaning |
|---|---|---|---|
| `drafter` | $q$ | text -> text | the continuation that it guesses, its own tokenizer inside |
| `decode`, `encode` | | ids -> text, text -> ids | the target's tokenizer; text is `str` or `bytes` |
| `ids` | | sequence of ids | what the target has written so far |
| `look_behind` | | integer | how many of the last ids are encoded anew with the guess |

Deviations: where the tail does not come out again, the paper's code looks for an overlap; here there is no draft in that round. That
happens where the guess's first letters merge with the tail, and where the target itself spelled the tail in an unusual way. A short
tail costs less to encode; with none at all the guess is encoded by itself. The algorithm's number is from memory.
"""

__all__ = ["draft"]


def draft(drafter, decode, encode, ids, look_behind=16):
    """The target's ids for the guess, any number of them.

    >>> import re
    >>> words = ["a", "b", "ab"]
    >>> decode = lambda ids: "".join(words[i] for i in ids)
    >>> encode = lambda text: [words.index(word) for word in re.findall("ab|a|b", text)]      # the longest word first
    >>> draft(lambda text: "ba", decode, encode, [2, 1])
    [1, 0]
    >>> draft(lambda text: "ba", decode, encode, [2, 0])             # "a" and "b" would merge: the committed 0 would be gone
    []
    >>> draft(lambda text: "ba", decode, encode, [2, 0], look_behind=0)
    [1, 0]
    """
    tail = list(ids)[max(len(ids) - look_behind, 0) :]
    again = list(encode(decode(tail) + drafter(decode(ids))))
    return again[len(tail) :] if again[: len(tail)] == tail else []
