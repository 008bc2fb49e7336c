"""Draw `s4.svg`: a kernel of HiPPO's system, a signal of two pulses, and its convolution, with the one that comes round from the end."""

from pathlib import Path

import numpy as np

from twofold.spec.state_space import hippo, s4

T, LEFT, WIDTH = 160, 150, 440


def curve(values, top, height, style):
    points = " ".join(f"{LEFT + WIDTH * j / T:.1f},{top - height * y:.1f}" for j, y in enumerate(values))
    return f'<polyline points="{points}" fill="none" {style}/>'


def main() -> None:
    Lam, p, B, V = hippo.legs_low_rank(16)
    C = V[np.arange(16) % 2 == 0].sum(axis=0)
    K = s4.kernel_cauchy(Lam, p, B, C, 0.02, T)
    u = np.zeros(T)
    u[30:34], u[140:144] = 1.0, 1.0
    y = s4.convolve(u, K, 0.0)
    round_ = np.fft.irfft(np.fft.rfft(u) * np.fft.rfft(K), T)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 300" font-size="13" fill="currentColor">']
    loud = 44 / np.max(np.abs(round_))
    rows = [
        ("kernel", 70, [(K, 44 / np.max(np.abs(K)), 'style="stroke: var(--spec)" stroke-width="2"')]),
        ("signal", 150, [(u, 30, 'stroke="currentColor" stroke-width="2"')]),
        (
            "output",
            240,
            [
                (round_, loud, 'stroke="currentColor" stroke-width="2" stroke-dasharray="4 4" stroke-opacity="0.6"'),
                (y, loud, 'style="stroke: var(--fast)" stroke-width="2.5"'),
            ],
        ),
    ]
    for name, top, curves in rows:
        parts.append(f'<path d="M{LEFT} {top} H{LEFT + WIDTH}" stroke="currentColor" stroke-opacity="0.25"/>')
        parts += [curve(values, top, height, style) for values, height, style in curves]
        parts.append(f'<text x="{LEFT - 14}" y="{top + 5}" text-anchor="end">{name}</text>')
    note = "dashed: a transform as long as the signal; the second pulse is heard before the first"
    parts.append(f'<text x="{LEFT}" y="288" font-size="12">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
