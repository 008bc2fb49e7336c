"""Draw `index.svg`: which model is which other one with something switched off. Every arrow is a test."""

from pathlib import Path

NODES = {
    "affine": (345, 40, "the affine recurrence"), "rwkv7": (92, 40, "RWKV-7"),
    "comba": (598, 40, "Comba"), "kda": (598, 130, "Kimi delta attention"), "gated": (598, 220, "Gated DeltaNet"),
    "delta": (598, 310, "DeltaNet"), "product": (598, 400, "DeltaProduct"),
    "gla": (345, 130, "gated linear attention"), "rwkv6": (92, 130, "RWKV-6"), "hgrn2": (92, 220, "HGRN2"),
    "simple": (345, 220, "simple GLA"), "retnet": (345, 310, "retention"), "lightning": (92, 310, "Lightning attention"),
    "linear": (345, 400, "linear attention"),
}  # fmt: skip
EDGES = [  # from, to, what has to be given up
    ("affine", "gla", "no erasing"), ("affine", "rwkv7", "its letters"), ("affine", "comba", "b = −k"),
    ("affine", "kda", "a = eᵍk"), ("kda", "gated", "equal channels"), ("gated", "delta", "no decay"),
    ("product", "delta", "one step, no decay"),
    ("gla", "rwkv6", "one place later"), ("gla", "hgrn2", "k = 1 − eᵍ"), ("gla", "simple", "equal channels"),
    ("simple", "retnet", "constant decay"), ("retnet", "lightning", "no rotation"), ("retnet", "linear", "γ = 1"),
    ("delta", "linear", "orthonormal keys"),
]  # fmt: skip
HALF, HIGH = 82, 17


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 436" font-size="13" fill="currentColor">']
    size = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    parts.append(f'<defs><marker id="a" {size} orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>')
    for one, other, label in EDGES:
        (x1, y1, _), (x2, y2, _) = NODES[one], NODES[other]
        if abs(x1 - x2) > 2 * HALF - 10 and abs(y1 - y2) < 130:  # beside each other: from side to side
            left = x2 < x1
            start, end = (x1 - HALF if left else x1 + HALF, y1), (x2 + HALF if left else x2 - HALF, y2)
        else:
            down = HIGH if y2 > y1 else -HIGH
            start, end = (x1, y1 + down), (x2, y2 - down)
        line = f'd="M{start[0]} {start[1]}L{end[0]} {end[1]}"'
        parts.append(f'<path {line} fill="none" stroke="currentColor" stroke-opacity="0.6" marker-end="url(#a)"/>')
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        anchor, dx, dy = ("start", 8, 4) if start[0] == end[0] else ("middle", 0, -6)
        place = f'x="{middle[0] + dx}" y="{middle[1] + dy}"'
        parts.append(f'<text {place} text-anchor="{anchor}" font-size="11" fill-opacity="0.75">{label}</text>')
    for name, (x, y, text) in NODES.items():
        color = "var(--fast)" if name in ("rwkv7", "comba", "kda", "gated", "delta", "product") else "var(--spec)"
        look = f'style="fill: {color}; stroke: {color}" fill-opacity="0.2"'
        parts.append(f'<rect x="{x - HALF}" y="{y - HIGH}" width="{2 * HALF}" height="{2 * HIGH}" rx="4" {look}/>')
        parts.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
