"""Draw `jacobi.svg`: the iterates of a small model, which of their tokens are final, and which are right but not known to stay."""

from pathlib import Path

import numpy as np

from twofold.spec.speculative import jacobi

N, LEFT, TOP, STEP, PROMPT = 6, 120, 40, 40, [1, 1]
FOLLOWING = [[1, 2, 1, 1], [3, 2, 3, 0], [1, 3, 3, 1], [1, 0, 0, 1]]  # a toy language: the next token after each pair
FINAL = "fill: var(--spec)"
RIGHT = "fill: none; stroke: currentColor; stroke-dasharray: 4 3"
WRONG = "fill: none; stroke: currentColor; stroke-opacity: 0.35"


def target(context):
    return np.eye(4)[FOLLOWING[context[-2]][context[-1]]]


def box(x: int, y: int, size: int, style: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="4" style="{style}"/>'


def main() -> None:
    greedy, iterations = jacobi.decode(target, PROMPT, N)
    height = TOP + STEP * (iterations + 1)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {height}" font-size="14" fill="currentColor">']
    tokens, final = [0] * N, 0
    for t in range(iterations + 1):
        y = TOP + STEP * t
        parts.append(f'<text x="12" y="{y + 20}" font-size="12" fill-opacity="0.75">{f"iteration {t}" if t else "guess"}</text>')
        for i, token in enumerate(tokens):
            style = FINAL if i < final else RIGHT if token == greedy[i] else WRONG
            ink = "var(--md-default-bg-color, #fff)" if i < final else "currentColor"
            parts.append(box(LEFT + STEP * i, y, 30, style))
            parts.append(f'<text x="{LEFT + STEP * i + 15}" y="{y + 20}" text-anchor="middle" style="fill: {ink}">{token}</text>')
        previous, tokens = tokens, jacobi.iterate(target, PROMPT, tokens)
        final = 1 + next((i for i in range(N - 1) if tokens[i] != previous[i]), N - 1)
    for n, (style, text) in enumerate([(FINAL, "final"), (RIGHT, "right, but not known to stay"), (WRONG, "wrong")]):
        x, y = LEFT + STEP * N + 40, TOP + 30 * n
        parts.append(f'{box(x, y, 16, style)}<text x="{x + 24}" y="{y + 13}">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
