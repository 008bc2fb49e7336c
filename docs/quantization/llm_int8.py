"""Draw `llm_int8.svg`: a matrix of activations whose outlier columns are taken out, and the two products that are added."""

from pathlib import Path

import numpy as np

from twofold.spec.quantization import llm_int8

TOKENS, COLUMNS, CHANNELS, CELL = 5, 12, 4, 14  # cells, and the pixels of one


def matrix(left: float, top: float, weights: np.ndarray, color: str) -> list[str]:
    """Cells as dark as their value, 0 to 1; the frame is drawn where there is nothing, too."""
    rows, columns = weights.shape
    parts = [
        f'<rect x="{left + CELL * k}" y="{top + CELL * t}" width="{CELL - 1}" height="{CELL - 1}" '
        f'style="fill: var(--{color})" fill-opacity="{weights[t, k]:.2f}"/>'
        for t in range(rows)
        for k in range(columns)
    ]
    frame = f'<rect x="{left - 2}" y="{top - 2}" width="{CELL * columns + 3}" height="{CELL * rows + 3}" fill="none" stroke="currentColor"'
    return [*parts, f'{frame} stroke-opacity="0.4"/>']


def label(x: float, y: float, text: str, size: int = 14) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle" font-size="{size}">{text}</text>'


def main() -> None:
    rng = np.random.default_rng(2)
    x, weight = rng.uniform(-3, 3, (TOKENS, COLUMNS)), rng.uniform(-1, 1, (CHANNELS, COLUMNS))
    x[:, 3], x[:, 8] = rng.uniform(15, 60, TOKENS), -rng.uniform(4, 30, TOKENS)
    columns = llm_int8.outlier_columns(x, 6.0)
    codes, _ = llm_int8.quantize(x, columns)
    weight_codes, _ = llm_int8.quantize(weight)
    shade = lambda values: 0.1 + 0.9 * np.abs(values) / np.abs(values).max()
    kept = int(columns.sum())
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 300" font-size="14" fill="currentColor">']
    parts += [label(94, 90, "activations"), *matrix(10, 105, shade(x), "fast"), label(94, 200, "two columns reach 6", 12)]
    parts.append('<path d="M190 125L232 100M190 155L232 232" stroke="currentColor" stroke-opacity="0.5" fill="none"/>')
    parts += [label(324, 50, "codes of the others"), *matrix(240, 65, np.where(columns, 0, shade(codes)), "spec")]
    parts += [label(432, 106, "×", 18), *matrix(456, 30, shade(weight_codes[:, ~columns]).T, "spec")]
    parts += [label(484, 20, "codes of the weight", 12), label(610, 92, "exact integers,"), label(610, 110, "times two scales")]
    parts += [label(324, 192, "the two columns"), *matrix(324 - CELL * kept / 2, 205, shade(x)[:, columns], "fast")]
    parts += [label(432, 246, "×", 18), *matrix(456, 226, shade(weight[:, columns]).T, "fast")]
    parts += [label(484, 216, "the weight", 12), label(610, 244, "full precision"), label(610, 176, "+", 20)]
    parts.append("</svg>")
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
