"""Draw `spechub.svg`: for three tokens, which part of p each pair of drafts serves; the hub takes what the pairs did not use."""

from pathlib import Path

import numpy as np

P, Q = np.array([0.25, 0.45, 0.18, 0.12]), np.array([0.5, 0.2, 0.2, 0.1])
SCALE, FLOOR, WIDTH = 380, 210, 70
STYLES = ("fill: var(--spec)", "fill: var(--spec); fill-opacity: 0.5", "fill: var(--fast)")


def main() -> None:
    hub, others = int(np.argmax(Q)), Q.copy()
    others[hub] = 0
    target, second = np.where(np.arange(4) == hub, 0, P), Q[hub] * others / others.sum()
    serve = np.minimum(target, others)
    again = np.minimum(target - serve, second)
    taken = min(P[hub], (others - serve + second - again).sum()) * (np.arange(4) == hub)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 270" font-size="14" fill="currentColor">']
    for v in range(4):
        x, low = 30 + 92 * v, 0.0
        for part, style in zip((serve, again, taken), STYLES, strict=True):
            if part[v] > 0:
                y = FLOOR - SCALE * (low + part[v])
                out.append(f'<rect x="{x}" y="{y:.1f}" width="{WIDTH}" height="{SCALE * part[v]:.1f}" style="{style}"/>')
            low += part[v]
        top = FLOOR - SCALE * P[v]
        out.append(f'<path d="M{x} {FLOOR}V{top:.1f}h{WIDTH}V{FLOOR}" fill="none" stroke="currentColor" stroke-dasharray="5 4"/>')
        name = f"{v} (hub)" if v == hub else str(v)
        out.append(f'<text x="{x + WIDTH / 2}" y="{FLOOR + 20}" text-anchor="middle">{name}</text>')
        label = f'<text x="{x + WIDTH / 2}" y="{FLOOR + 40}" text-anchor="middle" font-size="12" fill-opacity="0.75"'
        out.append(f"{label}>p .{100 * P[v]:02.0f}  q .{100 * Q[v]:02.0f}</text>")
    names = ("pair (x, hub) serves x", "pair (hub, x) serves x", "what both left serves the hub")
    for n, (style, name) in enumerate(zip(STYLES, names, strict=True)):
        y = 40 + 30 * n
        out.append(f'<rect x="430" y="{y}" width="16" height="16" style="{style}"/><text x="454" y="{y + 13}">{name}</text>')
    out.append(f'<path d="M20 {FLOOR}H400" stroke="currentColor"/></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
