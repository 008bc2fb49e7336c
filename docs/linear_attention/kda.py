"""Draw `kda.svg`: how long six channels remember one pair, with one gate per token and with a gate per channel."""

from pathlib import Path

import numpy as np

from twofold.spec.linear_attention import kda

CHANNELS, TOKENS, SHUT = 6, 14, 8
LEFT, CELL, TOP, PANEL = 20, 20, 44, 330


def main() -> None:
    together = np.full((TOKENS, CHANNELS), 0.86)
    together[SHUT] = 0.3
    apart = np.tile(np.linspace(0.55, 0.995, CHANNELS), (TOKENS, 1))
    apart[SHUT, 3:5] = 0.1
    silent, start = np.zeros((TOKENS, CHANNELS)), np.ones((CHANNELS, 1))
    left_after = lambda t, gates: kda.recurrent(silent[:t], silent[:t], silent[:t, :1], np.log(gates[:t]), silent[:t, 0], start)[1]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 204" font-size="13" fill="currentColor">']
    kinds = (("one gate per token: gated delta rule", together), ("a gate per token and channel: KDA", apart))
    for nth, (name, gates) in enumerate(kinds):
        left = LEFT + PANEL * nth
        parts.append(f'<text x="{left}" y="18">{name}</text>')
        parts.append(f'<text x="{left}" y="36" font-size="12" fill-opacity="0.75">tokens →, channels ↓</text>')
        for t in range(TOKENS):
            for row, held in enumerate(left_after(t + 1, gates)[:, 0]):
                box = f'x="{left + CELL * t}" y="{TOP + CELL * row}" width="{CELL - 2}" height="{CELL - 2}" rx="2"'
                parts.append(f'<rect {box} style="fill: var(--spec)" fill-opacity="{0.04 + 0.92 * held:.3f}"/>')
    note = "what is left of a row of ones: channels that forget at once beside channels that keep, and a gate shut for two of them"
    parts.append(f'<text x="{LEFT}" y="{TOP + CELL * CHANNELS + 24}" font-size="12">{note}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
