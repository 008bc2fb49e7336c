"""Draw `grouped_latent.svg`: numbers per token in the cache of one of two devices, and what is stored twice."""

from pathlib import Path

D = 128
WIDTH, LEFT = 0.36, 190

# what one device has as its share, and what each device needs a copy of
KINDS = (
    ("grouped, 8 key heads", [("k", 4 * D), ("v", 4 * D)], []),
    ("tied, 8 key heads", [("x", 4 * D)], [("kᴿ", D // 2)]),
    ("one latent (MLA)", [], [("c", 4 * D), ("kᴿ", D // 2)]),
    ("two latents", [("c₀", 2 * D)], [("kᴿ", D // 2)]),
)


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 232" font-size="13" fill="currentColor">']
    parts.append(f'<text x="{LEFT}" y="18">numbers per token on one of two devices, heads of {D}</text>')
    for line, (name, shared, copied) in enumerate(KINDS):
        top, x = 34 + line * 42, float(LEFT)
        parts.append(f'<text x="{LEFT - 12}" y="{top + 19}" text-anchor="end">{name}</text>')
        for color, group in (("var(--spec)", shared), ("var(--fast)", copied)):
            for text, size in group:
                look = f'style="fill: {color}; stroke: {color}" fill-opacity="0.25"'
                parts.append(f'<rect x="{x:.1f}" y="{top}" width="{size * WIDTH:.1f}" height="28" rx="3" {look}/>')
                parts.append(f'<text x="{x + size * WIDTH / 2:.1f}" y="{top + 19}" text-anchor="middle" font-size="12">{text}</text>')
                x += size * WIDTH
        parts.append(f'<text x="{x + 10:.1f}" y="{top + 19}">{sum(size for _, size in shared + copied)}</text>')
    for x, color, text in ((LEFT, "var(--spec)", "this one's share"), (LEFT + 120, "var(--fast)", "each device has a copy")):
        parts.append(f'<rect x="{x}" y="208" width="14" height="14" rx="2" style="fill: {color}" fill-opacity="0.5"/>')
        parts.append(f'<text x="{x + 20}" y="220" font-size="12">{text}</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
