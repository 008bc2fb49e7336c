"""Draw `cutoff.svg`: eight logits in the order of the law, what each cut keeps of them, and the two numbers that remember it."""

from pathlib import Path

import numpy as np

from twofold.spec.speculative import cutoff

LOGITS = np.array([1.2, 3.0, 0.1, 2.2, 3.6, 1.2, 2.6, 1.2])
CUTS = [("top-k, k = 5", {"k": 5}), ("top-p, P = 0.96", {"mass": 0.96}), ("min-p, m = 0.05", {"ratio": 0.05}),
        ("all three", {"k": 5, "mass": 0.96, "ratio": 0.05})]  # fmt: skip
LEFT, STEP, FLOOR = 130, 50, 150


def main() -> None:
    order = np.argsort(-LOGITS, kind="stable").tolist()
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 330" font-size="13" fill="currentColor">']
    parts.append('<text x="8" y="130">logit</text><text x="8" y="170">token id</text>')
    kept_by_all = _kept(CUTS[-1][1])
    for place, v in enumerate(order):
        x, height = LEFT + STEP * place, 32 * LOGITS[v]
        kept = "fill: var(--spec)" if v in kept_by_all else "fill: none; stroke: currentColor; stroke-opacity: 0.6; stroke-dasharray: 3 3"
        parts.append(f'<rect x="{x}" y="{FLOOR - height:.1f}" width="30" height="{height:.1f}" style="{kept}"/>')
        parts.append(f'<text x="{x + 15}" y="{FLOOR - height - 5:.1f}" text-anchor="middle" font-size="11">{LOGITS[v]}</text>')
        parts.append(f'<text x="{x + 15}" y="170" text-anchor="middle">{v}</text>')
    parts.append(f'<path d="M{LEFT - 8} {FLOOR}h{STEP * len(order)}" stroke="currentColor"/>')
    for n, (title, setting) in enumerate(CUTS):
        y, width = 200 + 25 * n, STEP * len(_kept(setting)) - 20
        side = "var(--fast)" if n < 3 else "var(--spec)"
        parts.append(
            f'<text x="8" y="{y + 5}">{title}</text><rect x="{LEFT}" y="{y - 6}" width="{width}" height="12" style="fill: {side}"/>'
        )
    _, greatest, cut, last, total = cutoff.row(LOGITS, **CUTS[-1][1])
    numbers = f"greatest {greatest}   cut {cut}   last {last}   total {total:.3f}"
    parts.append(f'<text x="{LEFT}" y="315" xml:space="preserve">{numbers}</text><text x="8" y="315">what is left</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


def _kept(setting):
    return np.flatnonzero(cutoff.restore(LOGITS, cutoff.row(LOGITS, **setting))).tolist()


if __name__ == "__main__":
    main()
