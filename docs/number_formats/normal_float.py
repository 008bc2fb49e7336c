"""Draw `normal_float.svg`: the sixteen numbers of NF4 under the bell curve, beside sixteen numbers at equal distances."""

from pathlib import Path
from statistics import NormalDist

import numpy as np

from twofold.spec.number_formats import normal_float

LEFT, WIDTH = 90, 600  # pixels: where -1 stands, and from there to 1
QUANTILE = NormalDist().inv_cdf(0.9677083)  # the standard deviations that 1 stands for


def place(x: float) -> float:
    return LEFT + WIDTH * (x + 1) / 2


def marks(y: int, name: str, values: np.ndarray, color: str) -> list[str]:
    parts = [f'<text x="10" y="{y + 5}">{name}</text>', f'<path d="M{LEFT} {y}H{LEFT + WIDTH}" stroke="currentColor" opacity="0.3"/>']
    return parts + [f'<path d="M{place(v):.1f} {y - 10}V{y + 10}" style="stroke: var(--{color})" stroke-width="2.5"/>' for v in values]


def main() -> None:
    x = np.linspace(-1, 1, 101)
    curve = " ".join(f"{place(v):.1f},{150 - 120 * np.exp(-((QUANTILE * v) ** 2) / 2):.1f}" for v in x)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 290" font-size="14" fill="currentColor">']
    parts.append(f'<polyline points="{curve}" fill="none" stroke="currentColor" stroke-width="1.5" opacity="0.6"/>')
    parts += marks(185, "NF4", normal_float.table().astype(float), "spec") + marks(230, "uniform", np.linspace(-1, 1, 16), "fast")
    for v, name in ((-1, "−absmax"), (0, "0"), (1, "absmax")):
        parts.append(f'<text x="{place(v):.1f}" y="270" text-anchor="middle" font-size="12" fill-opacity="0.75">{name}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
