"""Draw `heuristic.svg`: draft lengths by the schedule where text is easy, hard and in between, and what is kept of each draft."""

from pathlib import Path

from twofold.spec.speculative import heuristic

RIGHT = [20] * 5 + [0, 1, 2, 0, 0, 1, 3, 0, 0, 1] + [4, 3, 6, 5, 2, 7, 5, 4, 6, 3]  # how many tokens the drafter would get right
LEFT, STEP, WIDTH, FLOOR, SCALE = 60, 22, 16, 210, 13


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 270" font-size="13" fill="currentColor">']
    gamma = 3
    for i, right in enumerate(RIGHT):
        x, kept = LEFT + STEP * i, min(right, gamma)
        frame = "fill: none; stroke: currentColor; stroke-opacity: 0.6"
        parts.append(f'<rect x="{x}" y="{FLOOR - SCALE * kept}" width="{WIDTH}" height="{SCALE * kept}" style="fill: var(--spec)"/>')
        parts.append(f'<rect x="{x}" y="{FLOOR - SCALE * gamma}" width="{WIDTH}" height="{SCALE * gamma}" style="{frame}"/>')
        gamma = heuristic.update(gamma, kept)
    parts += [f'<text x="50" y="{FLOOR - SCALE * n + 4}" text-anchor="end">{n}</text>' for n in (0, 5, 10)]
    for first, last, name in ((0, 5, "easy"), (5, 15, "hard"), (15, 25, "in between")):
        left, right = LEFT + STEP * first, LEFT + STEP * last - 6
        parts.append(f'<path d="M{left} 218H{right}" stroke="currentColor"/>')
        parts.append(f'<text x="{(left + right) / 2}" y="236" text-anchor="middle">{name}</text>')
    parts.append('<text x="330" y="262" text-anchor="middle" fill-opacity="0.75">rounds; frames: drafted tokens, filled: kept</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
