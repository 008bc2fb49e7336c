"""Draw `rwkv7.svg`: one token's update of a memory, in its three parts."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import rwkv7

CELL, TOP, KEYS, VALUES = 24, 66, 4, 4


def main() -> None:
    rng = np.random.default_rng(3)
    state = np.round(rng.uniform(0.25, 1.0, (KEYS, VALUES)), 2)
    g = np.log(np.array([0.95, 0.9, 0.55, 0.9]))
    kappa, iota = np.eye(KEYS)[1], np.array([0.0, 0.85, 0.0, 0.0])
    k, v = np.array([0.0, 0.3, 0.9, 0.0]), np.array([0.9, 0.1, 0.9, 0.1])
    nothing, silent = np.zeros(KEYS), np.zeros(VALUES)
    still = np.zeros(KEYS)
    faded = rwkv7.step(state, nothing, g, nothing, silent, kappa, nothing)[1]
    removed = rwkv7.step(state, nothing, g, nothing, silent, kappa, iota)[1]
    after = rwkv7.step(state, nothing, g, k, v, kappa, iota)[1]
    written = rwkv7.step(np.zeros_like(state), nothing, still, k, v, kappa, nothing)[1]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 710 216" font-size="13" fill="currentColor">']
    panels = (
        (30, "the memory", "before the token", state, 0 * state),
        (190, "fades", "each row at its own rate", faded, 0 * state),
        (350, "removes", "85 % of one row", removed, 0 * state),
        (510, "writes", "under a key of its own", after - written, written),
    )
    for left, name, what, old, new in panels:
        parts.append(f'<text x="{left}" y="22" font-weight="600">{name}</text><text x="{left}" y="42" font-size="12">{what}</text>')
        for i, j in np.ndindex(old.shape):
            box = f'x="{left + j * CELL}" y="{TOP + i * CELL}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
            parts.append(f'<rect {box} fill="none" stroke="currentColor" stroke-opacity="0.25"/>')
            for color, weight in (("var(--spec)", old[i, j]), ("var(--fast)", new[i, j])):
                if abs(weight) > 1e-9:
                    parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{min(abs(weight), 1):.3f}"/>')
        if left < 510:
            x, y = left + VALUES * CELL + 16, TOP + KEYS * CELL // 2
            parts.append(f'<path d="M{x} {y}h28m-7 -5l7 5l-7 5" fill="none" stroke="currentColor" stroke-opacity="0.6"/>')
    y = TOP + KEYS * CELL + 26
    parts.append(f'<text x="30" y="{y}" font-size="12" fill-opacity="0.75">rows are key channels, columns value channels</text>')
    parts.append(f'<text x="350" y="{y}" font-size="12" fill-opacity="0.75">what is removed is what stood there before it faded</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
