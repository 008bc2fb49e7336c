"""Draw `rsd.svg`: five tokens race for the time noise / q; the first two to arrive are the drafts."""

from pathlib import Path

import numpy as np

Q, NOISE = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.92, 0.42, 0.39, 0.61, 0.23])
LEFT, SCALE, DRAFTS = 190, 62, 2


def main() -> None:
    times = NOISE / Q
    order = np.argsort(times)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 230" font-size="14" fill="currentColor">']
    out.append('<g font-size="12" fill-opacity="0.75"><text x="20" y="24">token</text><text x="76" y="24">q</text>')
    out.append(f'<text x="126" y="24">noise</text><text x="{LEFT}" y="24">time = noise / q</text></g>')
    for v in range(len(Q)):
        y, place = 38 + 32 * v, int(np.flatnonzero(order == v)[0])
        style = "fill: var(--spec)" if place < DRAFTS else "fill: none; stroke: currentColor; stroke-opacity: 0.5"
        label = ("first draft", "second draft")[place] if place < DRAFTS else ""
        out.append(f'<rect x="{LEFT}" y="{y}" width="{SCALE * times[v]:.1f}" height="20" style="{style}"/>')
        out.append(f'<text x="36" y="{y + 15}" text-anchor="middle">{v}</text><text x="70" y="{y + 15}">.{100 * Q[v]:02.0f}</text>')
        out.append(f'<text x="126" y="{y + 15}">.{100 * NOISE[v]:02.0f}</text>')
        out.append(f'<text x="{LEFT + SCALE * times[v] + 8:.1f}" y="{y + 15}" font-size="12">{times[v]:.1f}  {label}</text>')
    out.append(f'<path d="M{LEFT} 32V200" stroke="currentColor"/></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
