"""Draw `kv_cache.svg`: a pool of blocks after each call of an engine, with the tokens that the call wrote."""

from pathlib import Path

import numpy as np

from twofold.spec.serving import kv_cache

BLOCKS, B = 7, 4
CELL, GAP, ROW = 19, 10, 66


def main() -> None:
    cache = kv_cache.Cache(BLOCKS, B, 1, 1)
    names = np.full((BLOCKS, B), "", object)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 {ROW * 6 + 24}" font-size="13" fill="currentColor">']

    def panel(row: int, call: str) -> None:
        """All blocks after the call, what it wrote in a darker color, and the owners of each."""
        before = {(block, slot): names[block, slot] for block in range(BLOCKS) for slot in range(B)}
        stored = cache.k[:, :, 0]  # tokens store their own number, from 1
        for seq, table in cache.pool.tables.items():
            for i in range(cache.pool.lengths[seq]):
                names[table[i // B], i % B] = f"{int(stored[table[i // B], i % B])}"
        y = 36 + ROW * row
        parts.append(f'<text x="8" y="{y - 10}">{call}</text>')
        for block in range(1, BLOCKS):
            owners = [seq for seq, table in cache.pool.tables.items() if block in table]
            for slot in range(B):
                x = 8 + (block - 1) * (B * CELL + GAP) + slot * CELL
                used = any(i < cache.pool.lengths[seq] for seq in owners for i in [cache.pool.tables[seq].index(block) * B + slot])
                color = {"a": "var(--spec)", "b": "var(--fast)"}.get("".join(owners), "currentColor")
                fresh = used and names[block, slot] != before[block, slot]
                look = f'style="stroke: {color}; fill: {color}" fill-opacity="{0.5 if fresh else 0.15 if used else 0}"'
                parts.append(f'<rect x="{x}" y="{y}" width="{CELL}" height="24" {look}/>')
                if used:
                    parts.append(f'<text x="{x + CELL / 2}" y="{y + 17}" font-size="11" text-anchor="middle">{names[block, slot]}</text>')
            x = 8 + (block - 1) * (B * CELL + GAP) + 2 * CELL
            if owners:
                parts.append(f'<text x="{x}" y="{y + 38}" font-size="11" text-anchor="middle">{", ".join(owners)}</text>')

    def tokens(*numbers: int) -> np.ndarray:
        return np.array(numbers, float)[:, None]

    piece = tokens(1, 2, 3, 4, 5, 6)
    cache.prefill("a", piece, piece, piece)
    panel(0, "prefill a: six tokens of a prompt")
    piece = tokens(7, 8, 9)
    cache.prefill("a", piece, piece, piece)
    panel(1, "prefill a: the next piece, which attends the first one too")
    cache.fork("a", "b")
    panel(2, "fork a, b: a second sample; nothing is copied")
    step = tokens(10, 10)[:, None]
    cache.decode(["a", "b"], step, step, step)
    panel(3, "decode a and b: b, the last owner, keeps the third block; a has taken a copy of what was in it")
    step = np.array([[[11.0], [12.0], [13.0]]])
    cache.decode(["b"], step, step, step)
    panel(4, "decode b: three tokens at once, as a drafted chain")
    cache.release("a")
    panel(5, "release a: its own block is free, what it shared is now b's alone")
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
