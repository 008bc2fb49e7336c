"""Draw `index.svg`, the picture of the front page: a line of spec, the tiles of its kernel, and the two held together.

The dots are measured: the errors of an emulated bfloat16 kernel in one row of attention, against the bound that ran along with the spec.
"""

from pathlib import Path

import torch
from tolerance import kernel

from twofold.conformance import inputs
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense

CODE = [
    "for keys in blocks:",
    "    s = scale * q @ k[keys].T",
    "    m_new = maximum(m, max(s))",
    "    rescale = exp(m - m_new)",
    "    p = exp(s - m_new)",
    "    l = rescale * l + sum(p)",
    "    acc = rescale * acc + p @ v[keys]",
    "    m = m_new",
    "return acc / l",
]


def leaf(color: str, corners: str, title: str) -> str:
    at = 36 if color == "--spec" else 604
    anchor = "start" if color == "--spec" else "end"
    return (
        f'<path d="{corners}" style="fill: var({color}-soft); stroke: var({color})" stroke-width="1.5"/>'
        f'<text x="{at}" y="54" text-anchor="{anchor}" font-size="16" font-weight="700" style="fill: var({color})">{title}</text>'
    )


def tiles() -> str:
    """The causal tiles of a kernel: skipped above the diagonal, masked on it, whole below."""
    parts, size, left, top = [], 26, 342, 72
    box = f'width="{size - 3}" height="{size - 3}"'
    whole = lambda x, y: f'<rect x="{x}" y="{y}" {box} fill-opacity="0.75" style="fill: var(--fast)"/>'
    masked = lambda x, y: f'<path d="M{x} {y}V{y + size - 3}H{x + size - 3}z" fill-opacity="0.75" style="fill: var(--fast)"/>'
    frame = lambda x, y: f'<rect x="{x}" y="{y}" {box} fill="none" stroke="currentColor" stroke-opacity="0.35"/>'
    for row in range(7):
        for column in range(7):
            x, y = left + size * column, top + size * row
            parts.append((whole(x, y) if column < row else masked(x, y) if column == row else "") + frame(x, y))
    for row, (name, tile) in enumerate({"skipped": lambda x, y: "", "masked": masked, "whole": whole}.items()):
        x, y = left + 7 * size + 9, top + 2 * size + size * row
        parts.append(tile(x, y) + frame(x, y) + f'<text x="{x + size}" y="{y + 16}">{name}</text>')
    return "".join(parts)


def strip() -> str:
    """Signed errors of one output row inside the band of the bound."""
    q, k, v = inputs.values("normal", [(100, 64)] * 3, 7, "bfloat16")
    expected, _ = bounded(dense.attention, q, k, v, precision=Precision("bfloat16"), outputs=("bfloat16", "float32"))
    output = kernel(*(torch.from_numpy(x).to(torch.bfloat16) for x in (q, k, v))).double().numpy()
    row = 50
    error, bound = (output - expected.value)[row], expected.error[row]
    unit = 34 / bound.max()
    middle, step = 350, 9.0
    x = lambda i: 34 + step * i
    upper = " ".join(f"{x(i):.1f},{middle - unit * b:.1f} {x(i + 1):.1f},{middle - unit * b:.1f}" for i, b in enumerate(bound))
    lower = " ".join(f"{x(i + 1):.1f},{middle + unit * bound[i]:.1f} {x(i):.1f},{middle + unit * bound[i]:.1f}" for i in range(63, -1, -1))
    dot = lambda i: f'<circle cx="{x(i + 0.5):.1f}" cy="{middle - unit * error[i]:.1f}" r="2.6" style="fill: var(--fast)"/>'
    dots = "".join(map(dot, range(64)))
    return (
        f'<polygon points="{upper} {lower}" style="fill: var(--spec-soft); stroke: var(--spec)"/>'
        f'<path d="M34 {middle}H610" stroke="currentColor" stroke-opacity="0.35"/>{dots}'
        f'<text x="34" y="{middle + 56}">dots: a kernel’s error in 64 outputs. band: the bound that was derived for them.</text>'
    )


def draw() -> str:
    text = lambda i: f'<text class="mono" x="36" y="{80 + 21 * i}" font-size="11.5" xml:space="preserve">{CODE[i]}</text>'
    code = "".join(map(text, range(len(CODE))))
    parts = [
        leaf("--spec", "M20 22 312 36V282L20 268z", "spec: to read"),
        leaf("--fast", "M620 22 328 36V282L620 268z", "fast: to run"),
        code,
        tiles(),
        strip(),
    ]
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 416" font-size="13" fill="currentColor">\n{body}\n</svg>\n'


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
