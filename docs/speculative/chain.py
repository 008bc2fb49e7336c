"""Draw `chain.svg`: target and draft law over five tokens, what of a drafted token is kept, what is refused, and the residual."""

from pathlib import Path

import numpy as np

P, Q = np.array([35, 30, 15, 15, 5]), np.array([15, 20, 35, 25, 5])
SCALE, FLOOR, WIDTH = 4.5, 220, 64


def bar(x: float, low: float, high: float, style: str) -> str:
    return f'<rect x="{x}" y="{FLOOR - SCALE * high:g}" width="{WIDTH}" height="{SCALE * (high - low):g}" style="{style}"/>'


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 290" font-size="14" fill="currentColor">']
    for i, (p, q) in enumerate(zip(P.tolist(), Q.tolist(), strict=True)):
        x = 30 + 84 * i
        parts.append(bar(x, 0, min(p, q), "fill: var(--spec)"))
        if p > q:
            parts.append(bar(x, q, p, "fill: var(--fast)"))
        if q > p:
            parts.append(bar(x, p, q, "fill: none; stroke: currentColor; stroke-dasharray: 5 4"))
        label = f'<text x="{x + WIDTH / 2}" text-anchor="middle"'
        parts.append(f'{label} y="{FLOOR + 20}">{i}</text>')
        parts.append(f'{label} y="{FLOOR + 40}" font-size="12" fill-opacity="0.75">p .{p:02d}  q .{q:02d}</text>')
    overlap, left = np.minimum(P, Q).sum(), np.maximum(P - Q, 0).sum()
    legend = [
        ("fill: var(--spec)", f"min(p, q): kept, .{overlap}"),
        ("fill: none; stroke: currentColor; stroke-dasharray: 5 4", f"q − p: refused, .{left}"),
        ("fill: var(--fast)", f"p − q: the residual, .{left}"),
    ]
    for n, (style, text) in enumerate(legend):
        y = 52 + 30 * n
        parts.append(f'<rect x="452" y="{y}" width="16" height="16" style="{style}"/><text x="476" y="{y + 13}">{text}</text>')
    parts.append(f'<path d="M20 {FLOOR}H450" stroke="currentColor"/><text x="30" y="280" fill-opacity="0.75">token</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
