"""Draw `online_softmax.svg`: two states over different keys, each measured against its own largest logit, and their merger."""

from pathlib import Path

import numpy as np

LOGITS = np.array([0.6, 2.2, 1.7, 0.9, 1.2, 0.1, 2.9, 2.4])
PART = np.array([0, 1, 0, 0, 1, 0, 1, 1])  # which state has met which key: any set will do
COLOR = ["var(--spec)", "var(--fast)"]
WIDTH, HEIGHT, BASE = 20, 120, 170


def bars(x, keys, reference):
    parts = []
    for at, key in enumerate(keys):
        height = HEIGHT * np.exp(LOGITS[key] - reference)
        box = f'x="{x + WIDTH * at + 2}" y="{BASE - height:.1f}" width="{WIDTH - 4}" height="{height:.1f}"'
        parts.append(f'<rect {box} style="fill: {COLOR[PART[key]]}" fill-opacity="0.75"/>')
    right = WIDTH * len(keys)
    parts.append(f'<path d="M{x - 4} {BASE}h{right + 8}" stroke="currentColor"/>')
    parts.append(f'<path d="M{x - 4} {BASE - HEIGHT}h{right + 8}" stroke="currentColor" stroke-opacity="0.5" stroke-dasharray="3 3"/>')
    return parts


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 250" font-size="13" fill="currentColor">']
    columns = [(24, np.flatnonzero(PART == 0), "m₁"), (188, np.flatnonzero(PART == 1), "m₂"), (392, np.arange(len(LOGITS)), "m")]
    for x, keys, name in columns:
        reference = float(LOGITS[keys].max())
        total = float(np.exp(LOGITS[keys] - reference).sum())
        middle = x + WIDTH * len(keys) / 2
        parts += bars(x, keys, reference)
        parts.append(f'<text x="{middle}" y="{BASE - HEIGHT - 10}" text-anchor="middle">{name} = {reference:.1f}</text>')
        letters = ", ".join(str(key + 1) for key in keys)
        parts.append(f'<text x="{middle}" y="{BASE + 20}" text-anchor="middle" font-size="12">keys {letters}</text>')
        parts.append(f'<text x="{middle}" y="{BASE + 42}" text-anchor="middle" font-weight="bold">l{name[1:]} = {total:.2f}</text>')
    shrink = np.exp(LOGITS[PART == 0].max() - LOGITS.max())
    parts.append(f'<text x="138" y="{BASE - 52}" text-anchor="middle" font-size="24">⊕</text>')
    parts.append(f'<text x="330" y="{BASE - 52}" text-anchor="middle" font-size="24">=</text>')
    caption = f"the first state shrinks by exp(m₁ − m) = {shrink:.2f}, the second by exp(m₂ − m) = 1"
    parts.append(f'<text x="320" y="{BASE + 70}" text-anchor="middle" font-size="12" fill-opacity="0.8">{caption}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
