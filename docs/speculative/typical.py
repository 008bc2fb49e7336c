"""Draw `typical.svg`: the threshold over the target's entropy, for the released numbers, and two rows whose tokens it judges."""

from pathlib import Path

import numpy as np

EPS, DELTA = 0.09, 0.3
LEFT, FLOOR, WIDE, HIGH = 60, 220, 300, 180  # the plot: entropy 0 … 4, probability 0 … 0.12
ROWS = {
    "sure": [0.8, 0.08, 0.05, 0.04, 0.03],
    "undecided": [0.16, 0.13, 0.11, 0.09, 0.08, 0.08, 0.07, 0.06, 0.06, 0.05, 0.04, 0.03, 0.02, 0.02],
}
REFUSED = "fill: none; stroke: currentColor; stroke-opacity: 0.6"


def entropy(p: np.ndarray) -> float:
    return float(-(p * np.log(p)).sum())


def text(x: float, y: float, words: str, anchor: str = "middle", size: int = 12, opacity: float = 0.75) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill-opacity="{opacity}">{words}</text>'


def curve() -> list[str]:
    """min(eps, delta e^-H) over H."""
    H = np.linspace(0, 4, 81)
    least = np.minimum(EPS, DELTA * np.exp(-H))
    line = " ".join(f"{LEFT + WIDE * h / 4:.1f},{FLOOR - HIGH * y / 0.12:.1f}" for h, y in zip(H, least, strict=True))
    parts = [f'<polyline points="{line}" fill="none" stroke-width="2.5" style="stroke: var(--spec)"/>']
    parts.append(f'<path d="M{LEFT} {FLOOR - HIGH}V{FLOOR}H{LEFT + WIDE}" fill="none" stroke="currentColor"/>')
    parts += [text(LEFT + WIDE * h / 4, FLOOR + 18, str(h)) for h in range(5)]
    parts += [text(LEFT - 8, FLOOR - HIGH * y / 0.12 + 4, f"{y:g}", "end") for y in (0, 0.03, 0.06, 0.09)]
    parts += [text(LEFT + WIDE / 2, FLOOR + 38, "entropy of the target's row"), text(LEFT + 20, FLOOR - 145, "ε", "start", 14, 1)]
    return [
        *parts,
        text(LEFT + 190, FLOOR - 70, 'δ e<tspan dy="-6" font-size="10">−H</tspan>', "start", 14, 1),
        text(LEFT + 120, FLOOR - 160, "accepted"),
        text(LEFT + 60, FLOOR - 40, "refused"),
    ]


def bars(x: float, floor: float, name: str) -> list[str]:
    """One row's tokens: filled where they pass."""
    p = np.array(ROWS[name])
    least, scale = min(EPS, DELTA * np.exp(-entropy(p))), 380
    parts = [text(x, floor - 82, f"{name}: entropy {entropy(p):.1f}, threshold {least:.3f}", "start")]
    for v, chance in enumerate(p.tolist()):
        height, style = min(scale * chance, 72), "fill: var(--fast)" if chance > least else REFUSED
        parts.append(f'<rect x="{x + 17 * v:g}" y="{floor - height:g}" width="13" height="{height:g}" style="{style}"/>')
    parts.append(
        f'<path d="M{x - 6:g} {floor - scale * least:.1f}h250" stroke-width="1.5" stroke-dasharray="5 4" style="stroke: var(--spec)"/>'
    )
    return [*parts, f'<path d="M{x - 6:g} {floor}h250" stroke="currentColor"/>']


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 270" fill="currentColor">', *curve()]
    parts += [
        *bars(420, 110, "sure"),
        *bars(420, 226, "undecided"),
        text(420, 258, "filled: tokens that pass (tall bars are cut)", "start"),
        "</svg>",
    ]
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
