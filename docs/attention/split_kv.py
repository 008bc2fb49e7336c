"""Draw `split_kv.svg`: one row's keys in chunks that are attended apart and merged; and how full the waves of programs are."""

from fractions import Fraction
from pathlib import Path

from twofold.spec.attention import split_kv

TILES, BLOCKS, SMS = 24, 64, 108


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 250" font-size="13" fill="currentColor">']
    bounds = split_kv.fixed(38, 8)
    unit = 7.4
    for s, (start, stop) in enumerate(zip(bounds, bounds[1:])):
        x, width = 12 + unit * start, unit * (stop - start)
        for key in range(start, stop):
            parts.append(f'<rect x="{13 + unit * key:.1f}" y="42" width="6" height="26" style="fill: var(--spec)" fill-opacity="0.75"/>')
        middle = x + width / 2
        parts.append(f'<path d="M{x:.1f} 36v38" stroke="currentColor" stroke-opacity="0.5"/>')
        parts.append(f'<path d="M{middle:.1f} 74v22" stroke="currentColor" stroke-opacity="0.6"/>')
        parts.append(
            f'<rect x="{middle - 23:.1f}" y="96" width="46" height="26" rx="5" fill="none" stroke-width="2" style="stroke: var(--fast)"/>'
        )
        parts.append(f'<text x="{middle:.1f}" y="114" text-anchor="middle" font-size="12">o{"₀₁₂₃₄"[s]}, L{"₀₁₂₃₄"[s]}</text>')
        parts.append(f'<path d="M{middle:.1f} 122L148.8 160" stroke="currentColor" stroke-opacity="0.6"/>')
    parts.append('<rect x="124" y="160" width="50" height="28" rx="5" style="fill: var(--fast)"/>')
    parts.append('<text x="149" y="179" text-anchor="middle" font-weight="600" style="fill: var(--md-default-bg-color, #fff)">o, L</text>')
    parts.append('<text x="12" y="24">38 keys, cut every 8: five programs read them</text>')
    parts.append('<text x="149" y="212" text-anchor="middle">merged by mass</text>')

    left, floor, height = 340, 190, 130
    chosen = split_kv.occupancy(TILES, BLOCKS, SMS)
    for s in range(1, 25):
        full = Fraction(TILES * s, SMS) / -(-TILES * s // SMS)
        x, tall = left + 12 * (s - 1), float(full) * height
        side, strength = ("--fast", 1) if s == chosen else ("--spec", 0.55)
        parts.append(
            f'<rect x="{x}" y="{floor - tall:.1f}" width="9" height="{tall:.1f}" style="fill: var({side})" fill-opacity="{strength}"/>'
        )
        if s in (1, chosen, 9, 18, 24):
            parts.append(f'<text x="{x + 4}" y="{floor + 17}" text-anchor="middle" font-size="12">{s}</text>')
    parts.append(f'<path d="M{left - 4} {floor}h296" stroke="currentColor"/>')
    parts.append(
        f'<path d="M{left - 4} {floor - 0.85 * height:.1f}h296" stroke="currentColor" stroke-dasharray="4 4" stroke-opacity="0.7"/>'
    )
    parts.append(f'<text x="{left - 4}" y="24">how full the waves of {TILES} × splits programs are</text>')
    parts.append(f'<text x="{left + 140}" y="230" text-anchor="middle">splits, on {SMS} processors; 85 % of the best will do</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
