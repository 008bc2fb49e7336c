"""Draw `delta_product.svg`: a triangle, mirrored once, mirrored twice: the second mirror image is a rotation."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import delta_product

PANEL, RADIUS, TOP = 220, 62, 118


def main() -> None:
    corner = np.deg2rad([90.0, 210.0, 330.0])
    corners = np.stack([np.cos(corner), np.sin(corner)])  # the state: two channels, three values    (2, 3)
    normal = np.deg2rad([0.0, 60.0])  # of the two mirrors
    keys = np.stack([np.cos(normal), np.sin(normal)], axis=1)  #                                          (2, 2)
    after = [corners]
    for steps in (1, 2):
        values, beta = np.zeros((steps, 3)), np.full(steps, 2.0)
        after.append(delta_product.step(corners, np.zeros(2), keys[:steps], values, 0.0, beta)[1])
    titles = "before", "one step: a mirror image", "two steps: a third of a turn"
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 232" font-size="13" fill="currentColor">']
    for nth, (title, state) in enumerate(zip(titles, after)):
        x, y = PANEL * nth + PANEL / 2 + RADIUS * state[0], TOP - RADIUS * state[1]
        parts.append(f'<text x="{PANEL * nth + PANEL / 2}" y="20" text-anchor="middle">{title}</text>')
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))
        parts.append(f'<polygon points="{points}" style="fill: var(--spec); stroke: var(--spec)" fill-opacity="0.15" stroke-width="1.5"/>')
        if nth:
            along = 86 * np.array([-keys[nth - 1, 1], keys[nth - 1, 0]])
            middle = PANEL * nth + PANEL / 2
            line = f"M{middle - along[0]:.1f} {TOP + along[1]:.1f}L{middle + along[0]:.1f} {TOP - along[1]:.1f}"
            parts.append(f'<path d="{line}" style="stroke: var(--fast)" stroke-width="1.5" stroke-dasharray="5 4"/>')
        for name, a, b in zip("123", x, y):
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="11" style="fill: var(--spec)"/>')
            parts.append(f'<text x="{a:.1f}" y="{b + 4.5:.1f}" text-anchor="middle" fill="white" style="fill: white">{name}</text>')
    parts.append('<text x="8" y="224" font-size="12">dashed: the mirror of the last step, at right angles to its key</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
