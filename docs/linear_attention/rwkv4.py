"""Draw `rwkv4.svg`: what each of the last tokens weighs in two channels, one that fades fast and one that fades slowly."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import rwkv4

TOKENS = 18
LEFT, WIDTH, HEIGHT, GAP = 20, 290, 130, 40


def main() -> None:
    rng = np.random.default_rng(1)
    k = 0.7 * rng.standard_normal((TOKENS, 1))
    k[6] = 3.2
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 236" font-size="12" fill="currentColor">']
    for n, (w, u, title) in enumerate(((0.35, 1.0, "fades fast: w = 0.35, u = 1"), (0.05, -1.0, "fades slowly: w = 0.05, u = −1"))):
        left = LEFT + n * (WIDTH + GAP)
        weights = [rwkv4.recurrent(k, one[:, None], np.array([w]), np.array([u]))[0][-1, 0] for one in np.eye(TOKENS)]
        parts.append(f'<text x="{left}" y="18">{title}</text>')
        base, step = 40 + HEIGHT, WIDTH / TOKENS
        for j, weight in enumerate(weights):
            tall = HEIGHT * weight / max(weights)
            color = "var(--fast)" if j == TOKENS - 1 else "var(--spec)"
            box = f'x="{left + j * step + 2:.1f}" y="{base - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect {box} style="fill: {color}" fill-opacity="0.75"/>')
        parts.append(f'<path d="M{left} {base}h{WIDTH}" stroke="currentColor" stroke-opacity="0.6"/>')
        for j, text in ((6, "a large key"), (TOKENS - 1, "itself")):
            x = left + (j + 0.5) * step
            parts.append(f'<path d="M{x:.1f} {base + 3}v7" stroke="currentColor"/>')
            parts.append(f'<text x="{x:.1f}" y="{base + 24}" text-anchor="middle">{text}</text>')
    parts.append(
        f'<text x="{LEFT}" y="{40 + HEIGHT + 52}">weights in the last output, which add up to one; earlier tokens on the left</text>'
    )
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
