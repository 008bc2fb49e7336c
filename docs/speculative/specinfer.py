"""Draw `specinfer.svg`: the target law over five tokens, filled by one attempt after another; what is left is the last residual."""

from pathlib import Path

import numpy as np

P, Q = np.array([0.34, 0.26, 0.2, 0.12, 0.08]), np.array([0.12, 0.14, 0.26, 0.28, 0.2])
SCALE, FLOOR, WIDTH = 520, 220, 64
STYLES = ("fill: var(--spec)", "fill: var(--spec); fill-opacity: 0.6", "fill: var(--spec); fill-opacity: 0.3", "fill: var(--fast)")


def attempts(count: int) -> list[np.ndarray]:
    """What each attempt contributes to the law of the token, and what is left of p after the last."""
    parts, left = [], P
    for _ in range(count):
        parts.append(np.minimum(left, left.sum() * Q))  # the attempt happens with probability left.sum()
        left = left - parts[-1]
    return [*parts, left]


def main() -> None:
    parts = attempts(3)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 290" font-size="14" fill="currentColor">']
    for v in range(len(P)):
        x, low = 30 + 84 * v, 0.0
        for part, style in zip(parts, STYLES, strict=True):
            if part[v] > 0:
                top = FLOOR - SCALE * (low + part[v])
                out.append(f'<rect x="{x}" y="{top:.1f}" width="{WIDTH}" height="{SCALE * part[v]:.1f}" style="{style}"/>')
            low += part[v]
        label = f'<text x="{x + WIDTH / 2}" text-anchor="middle"'
        out.append(f'{label} y="{FLOOR + 20}">{v}</text>')
        out.append(f'{label} y="{FLOOR + 40}" font-size="12" fill-opacity="0.75">p .{100 * P[v]:02.0f}  q .{100 * Q[v]:02.0f}</text>')
    names = ("first draft kept", "second draft kept", "third draft kept", "drawn from the residual")
    for n, (part, style, name) in enumerate(zip(parts, STYLES, names, strict=True)):
        y = 42 + 30 * n
        text = f'<text x="486" y="{y + 13}">{name}, {part.sum():.3f}</text>'
        out.append(f'<rect x="462" y="{y}" width="16" height="16" style="{style}"/>{text}')
    out.append(f'<path d="M20 {FLOOR}H450" stroke="currentColor"/><text x="30" y="280" fill-opacity="0.75">token</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
