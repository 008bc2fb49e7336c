"""Draw `ring.svg`: four devices passing keys around, and what each sees at every step under a causal mask, contiguous and striped."""

from pathlib import Path

import numpy as np

DEVICES, TOKENS = 4, 5  # tokens per device
CELL, GAP = 7, 8
SIDE = CELL * TOKENS


def positions(r, striped):
    return r + DEVICES * np.arange(TOKENS) if striped else r * TOKENS + np.arange(TOKENS)


def ring():
    parts = ['<g fill="none" stroke="currentColor" stroke-width="1.5" stroke-opacity="0.7">']
    arrows = ["M68 74h44m-7-5l7 5-7 5", "M142 104v44m-5-7l5 7 5-7", "M112 178h-44m7-5l-7 5 7 5", "M38 148v-44m-5 7l5-7 5 7"]
    parts += [f'<path d="{arrow}"/>' for arrow in arrows] + ["</g>"]
    for r, (x, y) in enumerate([(38, 74), (142, 74), (142, 178), (38, 178)]):
        parts.append(f'<circle cx="{x}" cy="{y}" r="27" style="fill: var(--spec)" fill-opacity="0.3"/>')
        parts.append(f'<text x="{x}" y="{y - 1}" text-anchor="middle">q{r}</text>')
        parts.append(f'<text x="{x}" y="{y + 15}" text-anchor="middle" style="fill: var(--fast)">k{r} v{r}</text>')
    return [*parts, '<text x="90" y="124" text-anchor="middle" font-size="12">keys and</text>',
            '<text x="90" y="139" text-anchor="middle" font-size="12">values travel</text>']  # fmt: skip


def steps(left, striped):
    """One little score matrix per device and step: device r meets the keys of shard r - t."""
    parts = [f'<text x="{left}" y="34" font-weight="bold">{"striped" if striped else "contiguous"}, by step</text>']
    for t in range(DEVICES):
        x = left + t * (SIDE + GAP)
        parts.append(f'<text x="{x + SIDE / 2}" y="227" text-anchor="middle" font-size="12">{t}</text>')
        for r in range(DEVICES):
            y = 48 + r * (SIDE + GAP)
            seen = positions((r - t) % DEVICES, striped)[None, :] <= positions(r, striped)[:, None]
            for i, j in np.argwhere(seen):
                box = f'x="{x + CELL * j + 0.5}" y="{y + CELL * i + 0.5}" width="6" height="6"'
                parts.append(f'<rect {box} style="fill: var(--spec)" fill-opacity="0.75"/>')
            parts.append(f'<rect x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" fill="none" stroke="currentColor" stroke-opacity="0.5"/>')
    return parts


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 240" font-size="13" fill="currentColor">', *ring()]
    parts += [f'<text x="248" y="{70 + r * (SIDE + GAP)}" text-anchor="end" font-size="12">device {r}</text>' for r in range(DEVICES)]
    parts += steps(258, striped=False) + steps(460, striped=True)
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
