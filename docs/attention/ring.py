"""Draw `ring.svg`: four devices passing keys around, and what each sees at every step under a causal mask, contiguous and striped."""

from pathlib import Path

import numpy as np

DEVICES, TOKENS = 4, 5  # tokens per device
CELL, GAP = 6, 8
SIDE = CELL * TOKENS


def positions(r, striped):
    return r + DEVICES * np.arange(TOKENS) if striped else r * TOKENS + np.arange(TOKENS)


def ring():
    parts = ['<g fill="none" stroke="currentColor" stroke-width="1.5" stroke-opacity="0.7">']
    arrows = ["M112 74h44m-7 -5l7 5-7 5", "M186 104v44m-5 -7l5 7 5-7", "M156 178h-44m7 -5l-7 5 7 5", "M82 148v-44m-5 7l5-7 5 7"]
    parts += [f'<path d="{arrow}"/>' for arrow in arrows] + ["</g>"]
    for r, (x, y) in enumerate([(82, 74), (186, 74), (186, 178), (82, 178)]):
        parts.append(f'<circle cx="{x}" cy="{y}" r="27" style="fill: var(--spec)" fill-opacity="0.3"/>')
        parts.append(f'<text x="{x}" y="{y - 1}" text-anchor="middle">q{r}</text>')
        parts.append(f'<text x="{x}" y="{y + 15}" text-anchor="middle" style="fill: var(--fast)">k{r} v{r}</text>')
    return [*parts, '<text x="134" y="130" text-anchor="middle" font-size="12">keys and</text>',
            '<text x="134" y="145" text-anchor="middle" font-size="12">values travel</text>']  # fmt: skip


def steps(left, striped):
    """One little score matrix per device and step: device r meets the keys of shard r - t."""
    parts = [f'<text x="{left}" y="34" font-weight="bold">{"striped" if striped else "contiguous"}</text>']
    for t in range(DEVICES):
        x = left + t * (SIDE + GAP)
        parts.append(f'<text x="{x + SIDE / 2}" y="232" text-anchor="middle" font-size="12">step {t}</text>')
        for r in range(DEVICES):
            y = 48 + r * (SIDE + GAP)
            seen = positions((r - t) % DEVICES, striped)[None, :] <= positions(r, striped)[:, None]
            for i, j in np.argwhere(seen):
                box = f'x="{x + CELL * j + 0.5}" y="{y + CELL * i + 0.5}" width="5" height="5"'
                parts.append(f'<rect {box} style="fill: var(--spec)" fill-opacity="0.75"/>')
            parts.append(f'<rect x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" fill="none" stroke="currentColor" stroke-opacity="0.5"/>')
    return parts


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 250" font-size="13" fill="currentColor">', *ring()]
    parts += [f'<text x="252" y="{67 + r * (SIDE + GAP)}" text-anchor="end" font-size="12">device {r}</text>' for r in range(DEVICES)]
    parts += steps(262, striped=False) + steps(450, striped=True)
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
