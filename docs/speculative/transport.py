"""Draw `transport.svg`: how often each verifier keeps one of two drafts, on average over 40 pairs of laws; the tests hold the numbers."""

from pathlib import Path

ROWS = [
    ("exact match", 0.473, "spec"),
    ("exact match, the two likeliest tokens", 0.611, "spec"),
    ("one draft: 1 − TV", 0.674, "bound"),
    ("recursive rejection", 0.775, "spec"),
    ("k-SEQ", 0.794, "spec"),
    ("without replacement", 0.830, "spec"),
    ("optimum, independent drafts", 0.838, "bound"),
    ("optimum, without replacement", 0.900, "bound"),
]
STYLES = {"spec": "fill: var(--spec)", "bound": "fill: none; stroke: var(--fast); stroke-width: 2"}


def main() -> None:
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {30 * len(ROWS) + 12}" font-size="13" fill="currentColor">']
    for i, (name, value, kind) in enumerate(ROWS):
        y = 10 + 30 * i
        out.append(f'<text x="238" y="{y + 14}" text-anchor="end">{name}</text>')
        out.append(f'<rect x="250" y="{y}" width="{360 * value:.1f}" height="19" style="{STYLES[kind]}"/>')
        label = f'<text x="{250 + 360 * value - 8:.1f}" y="{y + 14}" text-anchor="end"'
        out.append(f'{label} style="fill: {"var(--md-default-bg-color, #fff)" if kind == "spec" else "currentColor"}">{value:.3f}</text>')
    out.append("</svg>")
    Path(__file__).with_suffix(".svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
