"""Draw `smooth_quant.svg`: the largest magnitude of each channel of activations and weight, before and after smoothing."""

from pathlib import Path

import numpy as np

from twofold.spec.quantization import smooth_quant

LEFT, WIDTH, BAR, TALL = (150, 430), 240, 11, 100  # pixels: where the two halves begin, and how wide and tall they are
CHANNELS = 16


def largest() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    act_max, weight_max = rng.uniform(0.6, 1.4, CHANNELS), rng.uniform(0.5, 1.0, CHANNELS)
    act_max[[4, 11]] = 40, 22
    return act_max, weight_max


def bars(values: np.ndarray, left: int, base: int, color: str) -> list[str]:
    heights = np.maximum(TALL * values / values.max(), 1)
    return [
        f'<rect x="{left + 15 * k}" y="{base - height:.1f}" width="{BAR}" height="{height:.1f}" style="fill: var(--{color})"/>'
        for k, height in enumerate(heights.tolist())
    ]


def main() -> None:
    act_max, weight_max = largest()
    scale = smooth_quant.smoothing_scale(act_max, weight_max, 0.5)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 320" font-size="14" fill="currentColor">']
    for left, title, x, w in ((LEFT[0], "before", act_max, weight_max), (LEFT[1], "after", act_max / scale, weight_max * scale)):
        parts.append(f'<text x="{left + WIDTH // 2}" y="20" text-anchor="middle">{title}</text>')
        for values, base, color in ((x, 150, "fast"), (w, 290, "spec")):
            parts += bars(values, left, base, color)
            parts.append(f'<path d="M{left - 4} {base + 0.5}H{left + WIDTH}" stroke="currentColor" stroke-opacity="0.5"/>')
            largest_of = f"largest {values.max():.1f}, smallest {values.min():.1f}"
            parts.append(f'<text x="{left}" y="{base + 18}" font-size="12" fill-opacity="0.75">{largest_of}</text>')
    parts.append('<text x="10" y="100">activations</text><text x="10" y="117" font-size="12" fill-opacity="0.75">by channel</text>')
    parts.append('<text x="10" y="240">weight</text><text x="10" y="257" font-size="12" fill-opacity="0.75">by column</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
