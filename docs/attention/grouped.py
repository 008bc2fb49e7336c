"""Draw `grouped.svg`: three ways for six query heads to share keys, and the rows of a packed group."""

from pathlib import Path

import numpy as np

from twofold.spec.attention import grouped

HEADS, STEP = 6, 30


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 262" font-size="13" fill="currentColor">']

    def box(x: float, y: float, text: str, color: str) -> None:
        look = f'style="fill: {color}; stroke: {color}" fill-opacity="0.25"'
        parts.append(f'<rect x="{x - 11}" y="{y - 12}" width="22" height="24" rx="3" {look}/>')
        parts.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle" font-size="12">{text}</text>')

    for place, (name, kv_heads) in enumerate((("multi-head", 6), ("grouped", 2), ("multi-query", 1))):
        left, group = 24 + place * 230, HEADS // kv_heads
        parts.append(f'<text x="{left - 8}" y="18">{name}: {kv_heads} key head{"s" if kv_heads > 1 else ""}</text>')
        for h in range(HEADS):
            x, owner = left + h * STEP, left + (h // group * group + (group - 1) / 2) * STEP
            parts.append(f'<line x1="{x}" y1="60" x2="{owner}" y2="102" stroke="currentColor" stroke-opacity="0.6"/>')
            box(x, 48, f"q{h}", "var(--spec)")
        for j in range(kv_heads):
            box(left + (j * group + (group - 1) / 2) * STEP, 114, f"k{j}", "var(--fast)")

    tokens = np.array([[f"{h}.{i}" for i in range(2)] for h in range(3)])
    parts.append('<text x="16" y="164">the group of k0, two tokens</text><text x="262" y="164">packed: six rows of one head</text>')
    for h in range(3):
        for i in range(2):
            box(34 + i * 40, 188 + h * 28, tokens[h, i], "var(--spec)")
        parts.append(f'<text x="112" y="{193 + h * 28}" font-size="12">head {h}</text>')
    for r, text in enumerate(grouped.pack(tokens[:, :, None], 1)[0, :, 0]):
        box(280 + r * 40, 188, text, "var(--spec)")
        parts.append(f'<text x="{280 + r * 40}" y="218" text-anchor="middle" font-size="11">row {r}</text>')
    parts.append('<text x="262" y="246" font-size="12">h.i is token i of head h; row r is masked as token r // 3</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
