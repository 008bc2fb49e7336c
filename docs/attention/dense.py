"""Draw `dense.svg`: one query, six keys; logits, the weights they become, and the same with the last two keys masked or with a sink."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import dense

LOGITS = np.array([1.2, -0.6, 2.1, 0.3, 1.5, -1.0])
MASK = np.array([True, True, True, True, False, False])


def main() -> None:
    q, k = np.ones((1, 1)), LOGITS[:, None]
    panels = [
        ("logits", LOGITS / 4, None),
        ("weights", dense.weights(q, k, scale=1.0)[0], None),
        ("two keys masked", dense.weights(q, k, mask=MASK[None], scale=1.0)[0], None),
        ("with a sink at 2", dense.weights(q, k, scale=1.0, sink=2.0)[0], 1 - dense.weights(q, k, scale=1.0, sink=2.0).sum()),
    ]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 190" font-size="13" fill="currentColor">']
    for n, (title, bars, sink) in enumerate(panels):
        left = 12 + 158 * n
        for i, height in enumerate(bars.tolist()):
            top, size = (130 - 180 * height, 180 * height) if height >= 0 else (130, -180 * height)
            parts.append(f'<rect x="{left + 19 * i}" y="{top:.1f}" width="15" height="{size:.1f}" style="fill: var(--spec)"/>')
        if sink is not None:
            height = 180 * sink
            parts.append(f'<rect x="{left + 116}" y="{130 - height:.1f}" width="15" height="{height:.1f}" style="fill: var(--fast)"/>')
        end = left + (134 if sink is not None else 112)
        parts.append(f'<path d="M{left - 2} 130H{end}" stroke="currentColor"/><text x="{left}" y="182">{title}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
