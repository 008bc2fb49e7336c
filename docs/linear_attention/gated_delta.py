"""Draw `gated_delta.svg`: how much of each of four keys a memory holds, over a text with one shut gate, for three models."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import delta, gated_delta, simple_gla

KEYS, WRITES, GATE_AT = "ABCD", "ABCADBBACD", 6
LEFT, CELL, TOP, PANEL = 34, 17, 66, 214


def main() -> None:
    k = np.eye(len(KEYS))[[KEYS.index(name) for name in WRITES]]
    v, beta, g = np.ones((len(k), 1)), np.ones(len(k)), np.log(np.where(np.arange(len(k)) == GATE_AT, 0.1, 0.85))
    models = (
        ("decay only", "simple GLA", lambda t: simple_gla.recurrent(k[:t], k[:t], v[:t], g[:t])[1]),
        ("erasing only", "delta rule", lambda t: delta.recurrent(k[:t], k[:t], v[:t], beta[:t])[1]),
        ("both", "gated delta rule", lambda t: gated_delta.recurrent(k[:t], k[:t], v[:t], g[:t], beta[:t])[1]),
    )
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 176" font-size="13" fill="currentColor">']
    for nth, (what, model, memory) in enumerate(models):
        left = LEFT + PANEL * nth
        parts.append(f'<text x="{left}" y="18">{what}</text><text x="{left}" y="36" font-size="12" fill-opacity="0.75">{model}</text>')
        for row, key in enumerate(KEYS):
            parts.append(f'<text x="{left - 16}" y="{TOP + CELL * row + 13}" font-size="12">{key}</text>')
        for t, name in enumerate(WRITES):
            parts.append(f'<text x="{left + CELL * t + 8}" y="{TOP - 8}" text-anchor="middle" font-size="11">{name}</text>')
            for row, held in enumerate(memory(t + 1)[:, 0]):
                box = f'x="{left + CELL * t}" y="{TOP + CELL * row}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
                color = "var(--fast)" if held > 1 + 1e-12 else "var(--spec)"
                parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{0.05 + 0.85 * min(held, 1):.3f}"/>')
        if what != "erasing only":
            x = left + CELL * GATE_AT - 1
            parts.append(f'<path d="M{x} {TOP - 4}V{TOP + CELL * len(KEYS) + 4}" stroke="currentColor" stroke-width="1.5"/>')
    below = TOP + CELL * len(KEYS) + 22
    note = "writes of 1 from left to right; the line is a gate that is almost shut"
    parts.append(f'<text x="{LEFT}" y="{below}" font-size="12">{note}</text>')
    note = "the second color: more than 1, two values added up under one key"
    parts.append(f'<text x="{LEFT}" y="{below + 17}" font-size="12">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
