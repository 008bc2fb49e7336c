"""Draw `cost.svg`: the speedup over the draft length for four rates of acceptance, a drafter at a tenth of the target's time."""

from pathlib import Path

from twofold.spec.speculative import cost

C, LONGEST = 0.1, 16


def point(gamma: float, gain: float) -> str:
    return f"{50 + 32 * gamma:g} {250 - 55 * gain:.1f}"


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-size="13" fill="currentColor">']
    parts.append('<path d="M50 250H570M50 250V20" stroke="currentColor" fill="none"/>')
    parts.append(f'<path d="M50 {250 - 55}H562" stroke="currentColor" stroke-dasharray="3 5" fill="none"/>')
    parts += [f'<text x="40" y="{255 - 55 * n}" text-anchor="end">{n}×</text>' for n in range(1, 5)]
    parts += [f'<text x="{50 + 32 * n}" y="268" text-anchor="middle">{n}</text>' for n in range(0, LONGEST + 1, 4)]
    parts.append('<text x="310" y="290" text-anchor="middle">drafted tokens per round</text>')
    for alpha in (0.9, 0.8, 0.6, 0.3):
        line = "L".join(point(gamma, cost.speedup(alpha, gamma, C)) for gamma in range(LONGEST + 1))
        best = cost.best_gamma(alpha, C, LONGEST)
        x, y = point(best, cost.speedup(alpha, best, C)).split()
        end = point(LONGEST, cost.speedup(alpha, LONGEST, C)).split()[1]
        parts.append(f'<path d="M{line}" fill="none" stroke-width="2" style="stroke: var(--spec)"/>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" style="fill: var(--fast)"/>')
        parts.append(f'<text x="570" y="{float(end) + 4:.1f}">α = {alpha}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
