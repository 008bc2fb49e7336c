"""Draw `block.svg`: the reach of the prefixes of one draft, and what of the next token's law the drafter and the residual fill."""

from pathlib import Path

import numpy as np

RATIOS = [0.5, 0.8, 1.5, 1.5]  # p(x) / q(x) of four drafted tokens
P, Q, REACH = np.array([40, 35, 15, 10]), np.array([10, 15, 25, 50]), 0.6
FLOOR, WIDTH = 200, 44


def rectangle(x: float, low: float, high: float, style: str, scale: float = 3.7, width: float = WIDTH) -> str:
    return f'<rect x="{x:g}" y="{FLOOR - scale * high:g}" width="{width}" height="{scale * (high - low):g}" style="{style}"/>'


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle", opacity: float = 1) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill-opacity="{opacity}">{words}</text>'


def reaches(x: float) -> list[str]:
    """The chance that each prefix is kept: what both rules give, and what the block rule gives on top."""
    parts, block, token = [], 1.0, 1.0
    for i, ratio in enumerate(RATIOS):
        block, token = min(1.0, block * ratio), token * min(1.0, ratio)
        at = x + i * 62
        parts.append(rectangle(at, 0, 100 * token, "fill: var(--spec)", 1.4))
        if block > token:
            parts.append(rectangle(at, 100 * token, 100 * block, "fill: var(--fast)", 1.4))
        parts.append(text(at + WIDTH / 2, FLOOR - 140 * block - 8, f"{block:.2g}"))
        parts.append(text(at + WIDTH / 2, FLOOR + 20, f"× {ratio:g}", opacity=0.75))
    return parts


def shares(x: float) -> list[str]:
    """The next token's law under a reach: P p, of which q fills a part and the residual the rest."""
    parts = []
    for v, (p, q) in enumerate(zip((REACH * P).tolist(), Q.tolist(), strict=True)):
        at = x + v * 62
        parts.append(rectangle(at, 0, min(p, q), "fill: var(--spec)"))
        if p > q:
            parts.append(rectangle(at, q, p, "fill: var(--fast)"))
        parts.append(rectangle(at, 0, P[v], "fill: none; stroke: currentColor; stroke-dasharray: 2 4"))
        if q > p:
            parts.append(rectangle(at, p, q, "fill: none; stroke: currentColor; stroke-dasharray: 5 4"))
        parts.append(text(at + WIDTH / 2, FLOOR + 20, str(v)))
    return parts


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 300" fill="currentColor">']
    parts += reaches(30) + [text(150, FLOOR + 42, "p(x) / q(x) of four drafted tokens", opacity=0.75)]
    parts += shares(420) + [text(540, FLOOR + 42, f"token after a prefix of reach {REACH:g}", opacity=0.75)]
    parts.append(f'<path d="M20 {FLOOR}H285M410 {FLOOR}H670" stroke="currentColor"/>')
    legend = [
        (20, "fill: var(--spec)", "kept by either rule"),
        (180, "fill: var(--fast)", "by the block rule alone"),
        (410, "fill: var(--spec)", "min(q, P p): drafted"),
        (560, "fill: var(--fast)", "P p − q: the residual"),
    ]
    for x, style, words in legend:
        parts.append(f'<rect x="{x}" y="264" width="14" height="14" style="{style}"/>' + text(x + 20, 276, words, 12, "start"))
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
