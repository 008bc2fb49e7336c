"""Draw `staged.svg`: two rounds between the smaller models make the draft that the target verifies."""

from pathlib import Path

LANES = {"smallest": 30, "middle": 100, "draft": 170, "target": 240}
LEFT, STEP = 110, 76


def box(place: float, lane: str, label: str, style: str, filled: bool = True) -> str:
    x, y = LEFT + STEP * place, LANES[lane]
    ink = ' font-weight="700" style="fill: var(--md-default-bg-color, #fff)"' if filled else ""
    text = f'<text x="{x + 28}" y="{y + 22}" text-anchor="middle"{ink}>{label}</text>'
    return f'<rect x="{x}" y="{y}" width="56" height="34" rx="4" style="{style}"/>{text}'


def call(first: float, last: float, lane: str, label: str) -> str:
    """One call of a model: a frame over the places that it scores."""
    x, y, width = LEFT + STEP * first - 6, LANES[lane] - 6, STEP * (last - first) + 68
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="46" rx="6" fill="none" stroke="currentColor" stroke-opacity="0.6"/>'
    return frame + f'<text x="{x + width + 8}" y="{y + 28}" font-size="12" fill-opacity="0.75">{label}</text>'


def main() -> None:
    spec, fast = "fill: var(--spec)", "fill: var(--fast)"
    refused = "fill: none; stroke: currentColor; stroke-dasharray: 5 4"
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-size="14" fill="currentColor">']
    parts += [f'<text x="10" y="{y + 22}" font-size="12" fill-opacity="0.75">{lane}</text>' for lane, y in LANES.items()]
    parts += [box(0, "smallest", "a", fast), box(1, "smallest", "b", refused, False)]
    parts += [box(2, "smallest", "d", fast), box(3, "smallest", "e", fast)]
    parts += [call(0, 1, "middle", ""), box(0, "middle", "a", fast), box(1, "middle", "c", spec)]
    parts += [call(2, 4, "middle", "two calls"), box(2, "middle", "d", fast), box(3, "middle", "e", fast)]
    parts.append(box(4, "middle", "f", refused, False))
    parts += [box(i, "draft", label, spec) for i, label in enumerate("acde")]
    parts.append(f'<text x="{LEFT + STEP * 4 + 6}" y="192" font-size="12">f is cut off: a draft has four tokens</text>')
    parts.append(call(0, 4, "target", "one call"))
    parts += [box(i, "target", f"p{i}", "fill: none", False) for i in range(5)]
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
