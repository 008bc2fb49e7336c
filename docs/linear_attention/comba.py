"""Draw `comba.svg`: one token of the gated delta rule and one of Comba, on a memory of one number."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import comba, gated_delta

BEFORE, VALUE, DECAY = 4.0, 6.0, 0.5
LEFT, WIDTH, GAP, HEIGHT = 96, 108, 28, 54


def main() -> None:
    one, g = np.ones(1), np.log(DECAY)
    fades_first = gated_delta.step(BEFORE * np.ones((1, 1)), one, one, VALUE * one, g, 1.0)[1].item()
    looks_first = comba.step(BEFORE * np.ones((1, 1)), one, one, VALUE * one, g, 1.0, one, 0.0)[1].item()
    faded = DECAY * BEFORE
    fade, write = ("fade", f"{faded:g}"), lambda found: ("write", f"{faded:g} + ({VALUE:g} − {found:g})")
    rows = (
        ("gated delta", [fade, ("look up k", f"finds {faded:g}"), write(faded)], fades_first, "ask q"),
        ("Comba", [("look up p", f"finds {BEFORE:g}"), fade, write(BEFORE)], looks_first, "ask q − d p"),
    )
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 216" font-size="13" fill="currentColor">']
    parts.append(f'<text x="8" y="18" font-size="12">memory {BEFORE:g}, decay ½, value {VALUE:g}, β = 1, p = k</text>')
    for nth, (model, boxes, after, ask) in enumerate(rows):
        top = 36 + 92 * nth
        parts.append(f'<text x="8" y="{top + 32}">{model}</text>')
        for place, (name, number) in enumerate([*boxes, (ask, f"memory {after:g}")]):
            x, color = LEFT + (WIDTH + GAP) * place, "var(--fast)" if name.startswith("look") else "var(--spec)"
            parts.append(f'<rect x="{x}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6" style="fill: {color}" fill-opacity="0.18"/>')
            parts.append(f'<text x="{x + WIDTH / 2}" y="{top + 22}" text-anchor="middle">{name}</text>')
            parts.append(f'<text x="{x + WIDTH / 2}" y="{top + 42}" text-anchor="middle" font-size="12" fill-opacity="0.8">{number}</text>')
            if place:
                y, tip = top + HEIGHT / 2, x - 4
                parts.append(f'<path d="M{x - GAP + 4} {y}H{tip}m-5 -4l5 4l-5 4" fill="none" stroke="currentColor" stroke-opacity="0.7"/>')
    parts.append('<text x="8" y="208" font-size="12">where nothing fades both are the same</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
