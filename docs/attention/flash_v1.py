"""Draw `flash_v1.svg`: what attention moves, against the size of fast memory, in tiles and with a stored score matrix."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import flash_v1

N, D = 4096, 64
LEFT, RIGHT, TOP, BASE = 70, 610, 24, 210
MEMORY = 2 ** np.arange(12, 19)  # elements
ROOMS = [2**20, 2**22, 2**24, 2**26, 2**28]


def x(memory):
    return LEFT + (RIGHT - LEFT) * np.log2(memory / MEMORY[0]) / np.log2(MEMORY[-1] / MEMORY[0])


def y(elements):
    return BASE - (BASE - TOP) * np.log2(elements / ROOMS[0]) / np.log2(ROOMS[-1] / ROOMS[0])


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 270" font-size="12" fill="currentColor">']
    for elements in ROOMS:
        parts.append(f'<path d="M{LEFT} {y(elements):.1f}H{RIGHT}" stroke="currentColor" stroke-opacity="0.2"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(elements) + 4:.1f}" text-anchor="end">{elements // 2**20} Mi</text>')
    for memory in MEMORY.tolist():
        parts.append(f'<text x="{x(memory):.1f}" y="{BASE + 18}" text-anchor="middle">{memory // 1024} Ki</text>')
    dense = 4 * N * N + 4 * N * D  # scores and weights are written and read once each; q, k, v read, o written
    points = []
    for memory in MEMORY.tolist():
        block_k = memory // (4 * D)
        points.append((x(memory), y(flash_v1.traffic(N, N, D, D, min(block_k, D), block_k))))
    path = " L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    parts.append(f'<path d="M{LEFT} {y(dense):.1f}H{RIGHT}" stroke-width="2.5" style="stroke: var(--fast)"/>')
    parts.append(f'<text x="{RIGHT}" y="{y(dense) - 7:.1f}" text-anchor="end" style="fill: var(--fast)">with a stored score matrix</text>')
    parts.append(f'<path d="M{path}" fill="none" stroke-width="2.5" style="stroke: var(--spec)"/>')
    parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" style="fill: var(--spec)"/>' for a, b in points]
    parts.append(f'<text x="{points[3][0] + 10:.1f}" y="{points[3][1] - 6:.1f}" style="fill: var(--spec)">FlashAttention</text>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BASE + 44}" text-anchor="middle">elements of fast memory</text>')
    parts.append(f'<text x="{LEFT - 48}" y="{TOP - 10}">elements moved, {N} tokens, heads of {D}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
