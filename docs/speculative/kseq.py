"""Draw `kseq.svg`: what three attempts give, as the ratio grows, and what the target allows; first row of the reference pair."""

from pathlib import Path

import numpy as np

P, Q, K = np.array([3, 1, 2]) / 6, np.array([1, 1, 4]) / 6, 3
LEFT, TOP, WIDTH, HEIGHT = 60, 20, 420, 220


def place(ratio: float, value: float) -> str:
    return f"{LEFT + WIDTH * (ratio - 1) / (K - 1):.1f} {TOP + HEIGHT * (1.2 - value) / 0.8:.1f}"


def main() -> None:
    ratios = np.linspace(1, K, 201)
    beta = np.array([np.minimum(Q, P / ratio).sum() for ratio in ratios])
    some, allowed = 1 - (1 - beta) ** K, ratios * beta
    least = ratios[np.argmax(some <= allowed)]
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 290" font-size="13" fill="currentColor">']
    out.append(f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" fill="none" stroke="currentColor"/>')
    for values, color in ((some, "--spec"), (allowed, "--fast")):
        inside = [place(r, v) for r, v in zip(ratios, values, strict=True) if 0.4 <= v <= 1.2]
        out.append(f'<path d="M{"L".join(inside)}" fill="none" stroke-width="2.5" style="stroke: var({color})"/>')
    x = place(least, 0.4).split()[0]
    out.append(f'<path d="M{x} {TOP}V{TOP + HEIGHT}" stroke="currentColor" stroke-dasharray="5 4" stroke-opacity="0.6"/>')
    out.append(f'<text x="{x}" y="{TOP + HEIGHT + 18}" text-anchor="middle">ρ* ≈ {least:.2f}</text>')
    for ratio in (1, K):
        out.append(f'<text x="{place(ratio, 0.4).split()[0]}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{ratio}</text>')
    for value in (0.4, 0.6, 0.8, 1.0):
        out.append(f'<text x="{LEFT - 8}" y="{float(place(1, value).split()[1]) + 4:.1f}" text-anchor="end">{value}</text>')
    for n, (text, color) in enumerate((("1 − (1 − β)³: kept", "--spec"), ("ρβ: what p allows", "--fast"))):
        y = 40 + 28 * n
        out.append(f'<path d="M496 {y}h24" stroke-width="2.5" style="stroke: var({color})"/><text x="528" y="{y + 5}">{text}</text>')
    out.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 40}" text-anchor="middle" fill-opacity="0.75">ratio ρ</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
