"""Draw `specdec_plus.svg`: the chance that all of a draft is kept, token by token, and the token at which drafting ends."""

from itertools import accumulate
from operator import mul
from pathlib import Path

from twofold.spec.speculative import specdec_plus

CONFIDENCES, H = [0.97, 0.92, 0.95, 0.6, 0.9, 0.85], 0.35
LEFT, STEP, FLOOR, HEIGHT = 70, 78, 220, 180


def main() -> None:
    length = specdec_plus.stop(CONFIDENCES, H)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-size="13" fill="currentColor">']
    for i, (confidence, kept) in enumerate(zip(CONFIDENCES, accumulate(CONFIDENCES, mul), strict=True)):
        x, top = LEFT + STEP * i, FLOOR - HEIGHT * kept
        drafted = i < length
        style = "fill: var(--spec)" if drafted else "fill: none; stroke: currentColor; stroke-dasharray: 5 4"
        middle = f'<text x="{x + 26}" text-anchor="middle"'
        inside = ' font-weight="700" style="fill: var(--md-default-bg-color, #fff)"' if drafted else ""
        parts.append(f'<rect x="{x}" y="{top:.1f}" width="52" height="{HEIGHT * kept:.1f}" style="{style}"/>')
        parts.append(f'{middle} y="{top + 20:.1f}"{inside}>{kept:.2f}</text>')
        parts.append(f'{middle} y="{FLOOR + 20}">{confidence:.2f}</text>')
        parts.append(f'{middle} y="{FLOOR + 40}" font-size="12" fill-opacity="0.75">{"drafted" if drafted else "not drawn"}</text>')
    line = FLOOR - HEIGHT * (1 - H)
    parts.append(f'<path d="M{LEFT - 10} {line:.1f}H{LEFT + STEP * 6}" fill="none" stroke-width="2" style="stroke: var(--fast)"/>')
    parts.append(f'<text x="{LEFT + STEP * 6 + 8}" y="{line + 4:.1f}">1 − h</text>')
    parts.append(f'<path d="M{LEFT - 10} {FLOOR}H{LEFT + STEP * 6}" stroke="currentColor"/>')
    parts.append(f'<text x="{LEFT - 16}" y="{FLOOR + 20}" text-anchor="end">â</text>')
    parts.append(f'<text x="{LEFT + STEP * 3}" y="288" text-anchor="middle" fill-opacity="0.75">drafted tokens, one after another; ')
    parts.append("bars: the chance that all so far are kept</text></svg>")
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
