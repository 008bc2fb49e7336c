"""Draw `s4d.svg`: four damped oscillators of a spectrum, and the kernel that one mix of them makes."""

from pathlib import Path

import numpy as np

from twofold.spec.state_space import s4d

L, LEFT, WIDTH, ROW = 200, 150, 400, 44
DT = 0.02


def curve(values, top, height, style):
    points = " ".join(f"{LEFT + WIDTH * j / L:.1f},{top - height * y:.1f}" for j, y in enumerate(values))
    return f'<polyline points="{points}" fill="none" {style}/>'


def main() -> None:
    Lam = s4d.lambdas(8, "lin")
    C = np.array([0.6, 0.5j, -0.7, 0.4 - 0.5j])
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 312" font-size="13" fill="currentColor">']
    for n, rate in enumerate(Lam):
        top = 30 + n * ROW
        parts.append(f'<path d="M{LEFT} {top} H{LEFT + WIDTH}" stroke="currentColor" stroke-opacity="0.25"/>')
        parts.append(curve(np.exp(rate * DT * np.arange(L)).real, top, 16, 'style="stroke: var(--spec)" stroke-width="2"'))
        name = "−½" if n == 0 else f"−½ + {n if n > 1 else ''}πi"
        parts.append(f'<text x="{LEFT - 14}" y="{top + 5}" text-anchor="end">λ = {name}</text>')
        parts.append(f'<text x="{LEFT + WIDTH + 16}" y="{top + 5}" font-size="12">× {label(C[n])}</text>')
    K = s4d.kernel(Lam, C, DT, L)
    top = 30 + len(Lam) * ROW + 42
    parts.append(f'<path d="M{LEFT} {top} H{LEFT + WIDTH}" stroke="currentColor" stroke-opacity="0.25"/>')
    parts.append(curve(K / np.max(np.abs(K)), top, 34, 'style="stroke: var(--fast)" stroke-width="2.5"'))
    parts.append(f'<text x="{LEFT - 14}" y="{top + 5}" text-anchor="end">kernel</text>')
    note = "the answer to one impulse, over two hundred steps: real parts of the mix"
    parts.append(f'<text x="{LEFT}" y="{top + 56}" font-size="12">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


def label(c) -> str:
    real, imaginary = (f"{abs(x):g}" for x in (c.real, c.imag))
    signs = ["−" if x < 0 else "" for x in (c.real, c.imag)]
    if c.imag == 0:
        return signs[0] + real
    return f"{signs[1]}{imaginary}i" if c.real == 0 else f"({signs[0]}{real} {signs[1] or '+'} {imaginary}i)"


if __name__ == "__main__":
    main()
