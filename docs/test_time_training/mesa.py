"""Draw `mesa.svg`: how well three memories answer all keys that they have seen, token by token."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import affine
from twofold.spec.test_time_training import mesa

T, K, LEFT, TOP, WIDTH, HEIGHT = 32, 16, 56, 24, 410, 190


def main() -> None:
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((T, K)), rng.standard_normal((T, 4))
    k = k / np.linalg.norm(k, axis=1, keepdims=True)
    zero, ones = np.zeros((T, K)), np.ones(T)
    sums = lambda t: affine.recurrent(k[:t], k[:t], v[:t], zero[:t], zero[:t], zero[:t])[1]
    delta = lambda t: affine.recurrent(k[:t], k[:t], v[:t], zero[:t], k[:t], -k[:t])[1]

    def best(t):
        H, R = mesa.recurrent(k[:t], k[:t], v[:t], 0 * ones[:t], ones[:t], np.full(K, 1e-3))[1]
        return np.linalg.solve(H + 1e-3 * np.eye(K), R)

    error = lambda memory, t: np.mean((k[:t] @ memory - v[:t]) ** 2)
    kinds = (
        ("sum of all pairs (linear attention)", sums, "currentColor", 0.6),
        ("one gradient step per token (delta rule)", delta, "var(--spec)", 1.0),
        ("the best of all memories (MesaNet)", best, "var(--fast)", 1.0),
    )
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 302" font-size="13" fill="currentColor">']
    x = lambda t: LEFT + WIDTH * (t - 1) / (T - 1)
    y = lambda value: TOP + HEIGHT * (1 - min(value, 2.0) / 2.0)
    for value in (0, 1, 2):
        line = f'x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}"'
        parts.append(f'<line {line} stroke="currentColor" stroke-opacity="0.2"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" font-size="11">{value}</text>')
    for t in (1, 8, 16, 24, 32):
        parts.append(f'<text x="{x(t):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle" font-size="11">{t}</text>')
    for n, (name, memory, color, strength) in enumerate(kinds):
        points = " ".join(f"{x(t):.1f},{y(error(memory(t), t)):.1f}" for t in range(1, T + 1))
        look = f'style="stroke: {color}" stroke-width="2" stroke-opacity="{strength}"'
        parts.append(f'<polyline points="{points}" fill="none" {look}/>')
        at = TOP + HEIGHT + 38 + 18 * n
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + 22}" y1="{at}" y2="{at}" {look}/>')
        parts.append(f'<text x="{LEFT + 30}" y="{at + 4}" font-size="12">{name}</text>')
    parts.append(f'<text x="{LEFT + WIDTH + 20}" y="{TOP + 12}" font-size="12" fill-opacity="0.75">mean squared error of all</text>')
    parts.append(f'<text x="{LEFT + WIDTH + 20}" y="{TOP + 28}" font-size="12" fill-opacity="0.75">answers to keys seen so far;</text>')
    parts.append(f'<text x="{LEFT + WIDTH + 20}" y="{TOP + 44}" font-size="12" fill-opacity="0.75">keys have 16 numbers</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
