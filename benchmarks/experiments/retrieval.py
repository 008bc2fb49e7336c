"""What retrieval is worth: drafters that look up, against a target that writes a recorded file again.

Held-out sources of the standard library are read as lexemes and written again, one call of the target at a time, each call given what a
drafter found; the target writes the file as it is, so that every figure is a count and no law is sampled. Five figures were known before,
from another program that counts the same; they must come out again within three percent.
"""

import re
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.plots import OURS
from twofold.fast.speculative import prompt_lookup, suffix_automaton, suffix_decoding

LEXER = re.compile(r"\w+|[^\S\n]+|\n|[^\w\s]")  # words, blanks, line ends, and every other character by itself
GAMMA, PROMPT, SHORTEST, BAND = 10, 32, 400, 0.03

Tree = tuple[list[int], list[int]]  # tokens and parents, the root first
Drafter = Callable[[torch.Tensor, list[int]], Tree]  # (text so far (1, n), what is new in it) to a tree
Beginning = Callable[[], Drafter]  # once per text


def sources() -> tuple[list[list[int]], list[list[int]], int]:
    """Training files and held-out files as ids of lexemes, and how many ids there are."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    ids: dict[str, int] = {}
    texts = [[ids.setdefault(lexeme, len(ids)) for lexeme in LEXER.findall(file.read_text(encoding="utf-8"))] for file in files]
    return [text for i, text in enumerate(texts) if i % 10], texts[::10], len(ids)


def run() -> dict[str, Any]:
    """Tokens per target call. The target writes the file as it is, so that every figure is a count and no law is sampled.

    The expected figures were counted by another program, on Python 3.11; the sources of other versions give slightly different ones.
    """
    train, held, V = sources()
    held = [text for text in held if len(text) > SHORTEST]
    past = suffix_decoding.extend(None, [token for text in train for token in [*text, -1]])
    drafters: dict[str, tuple[Beginning, float | None]] = {
        "nothing": (lambda: lambda text, new: ([-1], [-1]), 1.0),
        "prompt lookup, n = 3…1, first": (looked_up(3, 1, last=False), 1.804),
        "prompt lookup, n = 4…2, last": (looked_up(4, 2, last=True), 1.909),
        "prompt lookup, n = 3…1, last": (looked_up(3, 1, last=True), 2.033),
        "suffix automaton, first": (longest_suffix(last=False), 1.908),
        "suffix automaton, last": (longest_suffix(last=True), None),
        "lookup, n = 4…2, then other files": (looked_up_elsewhere(train, V), 2.173),
        "suffix decoding, own text": (counted(None), None),
        "suffix decoding, and other files": (counted(past), None),
    }
    rows, claims = [], {}
    for who, (begin, expected) in drafters.items():
        calls, drafted, written = (sum(each) for each in zip(*(replayed(text, begin()) for text in held), strict=True))
        row = {"drafter": who, "tokens_per_call": round(written / calls, 3), "drafted_per_call": round(drafted / calls, 3)}
        rows.append(row | {"share_kept": round((written - calls) / drafted, 3) if drafted else None})
        if expected is not None:
            claims[f"{who}: {expected}, as counted before"] = abs(written / calls / expected - 1) < BAND
    about = {"files": len(held), "tokens": sum(map(len, held)), "prompt": PROMPT, "gamma": GAMMA}
    return {"what": "tokens per target call", **about, "rows": rows, "claims": claims}


def replayed(tokens: list[int], draft: Drafter) -> tuple[int, int, int]:
    """Target calls, drafted tokens, and tokens written, until the file is written."""
    text, seen, before, calls, drafted = torch.tensor([tokens]), PROMPT, 0, 0, 0
    while seen < len(tokens):
        tree, parents = draft(text[:, :seen], tokens[before:seen])
        before, node = seen, 0
        while seen < len(tokens) - 1:  # the last token is the target's own
            child = next((n for n in range(node + 1, len(tree)) if parents[n] == node and tree[n] == tokens[seen]), None)
            if child is None:
                break
            node, seen = child, seen + 1
        calls, drafted, seen = calls + 1, drafted + len(tree) - 1, seen + 1
    return calls, drafted, len(tokens) - PROMPT


def a_chain(tokens: list[int]) -> Tree:
    return [-1, *tokens], list(range(-1, len(tokens)))


def looked_up(n_max: int, n_min: int, last: bool) -> Beginning:
    def draft(text: torch.Tensor, new: list[int]) -> Tree:
        tokens, found = prompt_lookup.draft(text, n_max, n_min, GAMMA, last)
        return a_chain(tokens[0, : int(found)].tolist())

    return lambda: draft


def longest_suffix(last: bool) -> Beginning:
    def begin() -> Drafter:
        state = None

        def draft(text: torch.Tensor, new: list[int]) -> Tree:
            nonlocal state
            state = suffix_automaton.extend(state, new)
            return a_chain(suffix_automaton.draft(state, GAMMA, last))

        return draft

    return begin


def looked_up_elsewhere(train: list[list[int]], V: int) -> Beginning:
    """At each n first the text itself, then the first occurrence in the other files."""
    corpus = np.array([token for text in train for token in [*text, *[V] * GAMMA]])  # ids of V keep the files apart
    tables = {}
    for n in (4, 3, 2):
        codes = sum(corpus[i : len(corpus) - n + 1 + i] * (V + 1) ** (n - 1 - i) for i in range(n))
        tables[n] = np.unique(codes, return_index=True)  # sorted, each with where it first stands

    def draft(text: torch.Tensor, new: list[int]) -> Tree:
        for n, (codes, places) in tables.items():
            tokens, found = prompt_lookup.draft(text, n, n, GAMMA, last=True)
            if int(found):
                return a_chain(tokens[0, : int(found)].tolist())
            code = 0
            for token in text[0, -n:].tolist():
                code = code * (V + 1) + token
            at = int(np.searchsorted(codes, code))
            if at < len(codes) and codes[at] == code:
                copied = corpus[places[at] + n :][:GAMMA].tolist()
                return a_chain([token for token in copied if token != V])
        return a_chain([])

    return lambda: draft


def counted(past: Any) -> Beginning:
    """Trees of at most one node per matched token, so that a match of GAMMA tokens may draft as many as the others."""

    def begin() -> Drafter:
        own = None

        def draft(text: torch.Tensor, new: list[int]) -> Tree:
            nonlocal own
            own = suffix_decoding.extend(own, new)
            return suffix_decoding.draft([own, past], text[0, -GAMMA:], alpha=1, max_match=GAMMA)[:2]

        return draft

    return begin


def draw(panel: Any, report: dict[str, Any]) -> None:
    rows = report["rows"][::-1]
    places = range(len(rows))
    panel.barh(places, [row["tokens_per_call"] for row in rows], color=OURS, height=0.6)
    for place, row in zip(places, rows, strict=True):
        panel.text(row["tokens_per_call"] + 0.02, place, f"{row['tokens_per_call']:.2f}", va="center", fontsize=8)
    panel.set_yticks(places, [row["drafter"] for row in rows])
    panel.set(xlabel=report["what"], xlim=(0, 1.15 * max(row["tokens_per_call"] for row in rows)))
