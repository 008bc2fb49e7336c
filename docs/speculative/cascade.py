"""Draw `cascade.svg`: the token-specific law between a small and a large model's, for three prices of deferring."""

from pathlib import Path

import numpy as np

from twofold.spec.speculative import cascade

P, Q = np.array([0.45, 0.3, 0.15, 0.1]), np.array([0.2, 0.25, 0.15, 0.4])
PRICES = [0.05, 0.2, 0.32]
LEFT, PANEL, WIDTH, STEP, SCALE, FLOOR = 40, 150, 22, 30, 250, 190


def panel(x: float, law: np.ndarray, title: str, style: str, good: np.ndarray | None) -> list[str]:
    parts = [f'<path d="M{x - 6} {FLOOR}H{x + 4 * STEP}" stroke="currentColor"/>']
    parts.append(f'<text x="{x + 2 * STEP - 6}" y="{FLOOR + 44}" text-anchor="middle">{title}</text>')
    for v, weight in enumerate(law):
        left, middle = x + STEP * v, x + STEP * v + WIDTH / 2
        parts.append(f'<rect x="{left}" y="{FLOOR - SCALE * weight:.1f}" width="{WIDTH}" height="{SCALE * weight:.1f}" style="{style}"/>')
        parts.append(f'<text x="{middle}" y="{FLOOR + 18}" text-anchor="middle" font-size="12">{v}</text>')
        if good is not None and not good[v]:
            parts.append(f'<text x="{middle}" y="{FLOOR - SCALE * weight - 6:.1f}" text-anchor="middle">×</text>')
    return parts


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 260" font-size="14" fill="currentColor">']
    parts += panel(LEFT, P, "large, p", "fill: var(--spec)", None)
    for n, t in enumerate(PRICES):
        law, good = cascade.token_specific(P, Q, t), P.max() - t <= P
        parts += panel(LEFT + PANEL * (n + 1), law, f"t = {t}", "fill: currentColor; fill-opacity: 0.55", good)
    parts += panel(LEFT + PANEL * 4, Q, "small, q", "fill: var(--fast)", None)
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
