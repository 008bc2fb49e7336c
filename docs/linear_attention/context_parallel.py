"""Draw `context_parallel.svg`: pieces on devices, their summaries, and the states that they begin with."""

from pathlib import Path

WIDTH, GAP, LEFT = 128, 28, 24
TOKENS = (6, 4, 7, 5)


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 250" font-size="13" fill="currentColor">']
    steps = (
        (18, "1. each device runs its piece for what it does to a memory"),
        (134, "2. summaries are gathered and composed, on every device"),
        (222, "3. each piece runs from where the ones before it end"),
    )
    for y, step in steps:
        parts.append(f'<text x="{LEFT}" y="{y}" font-size="12" fill-opacity="0.75">{step}</text>')
    for r, count in enumerate(TOKENS):
        left = LEFT + r * (WIDTH + GAP)
        middle = left + WIDTH / 2
        parts.append(f'<rect x="{left}" y="30" width="{WIDTH}" height="40" rx="5" fill="none" stroke="currentColor" stroke-opacity="0.4"/>')
        for t in range(count):
            x = left + 10 + t * (WIDTH - 20) / count
            parts.append(f'<rect x="{x:.1f}" y="42" width="{(WIDTH - 20) / count - 3:.1f}" height="16" rx="2" style="fill: var(--spec)"/>')
        parts.append(f'<path d="M{middle} 72v18m-4 -6l4 6l4 -6" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
        parts.append(f'<text x="{middle}" y="108" text-anchor="middle">S ↦ M{sub(r)} S + B{sub(r)}</text>')
        box = f'x="{left - 12}" y="150" width="34" height="26" rx="4"'
        parts.append(f'<rect {box} style="fill: var(--fast)" fill-opacity="0.18"/>')
        parts.append(f'<text x="{left + 5}" y="168" text-anchor="middle">S{sub(r)}</text>')
        parts.append(f'<path d="M{left + 26} 163h{WIDTH + GAP - 44}m-6 -4l6 4l-6 4" fill="none" style="stroke: var(--fast)"/>')
        parts.append(f'<text x="{middle + 12}" y="158" text-anchor="middle" font-size="12">M{sub(r)}, B{sub(r)}</text>')
        parts.append(f'<path d="M{left + 5} 178v22m-4 -6l4 6l4 -6" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    parts.append(f'<text x="{LEFT + 4 * (WIDTH + GAP) - 8}" y="168">S{sub(4)}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


def sub(n: int) -> str:
    return "₀₁₂₃₄"[n]


if __name__ == "__main__":
    main()
