"""Draw `suffix_automaton.svg`: the classes of a small text, its edges above and its links below."""

from pathlib import Path

from twofold.spec.speculative import suffix_automaton

TEXT, LEFT, STEP, ROW = "abcab", 40, 108, 120


def main() -> None:
    state = None
    for letter in TEXT:
        state = suffix_automaton.extend(state, letter)
    x = [LEFT + STEP * i for i in range(len(state.classes))]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 250" font-size="14" fill="currentColor">']
    parts.append('<g fill="none" stroke="currentColor" stroke-opacity="0.55">')
    labels = []
    for at, each in enumerate(state.classes):
        for letter, to in each.edges.items():
            high = 0 if to == at + 1 else 42 * (to - at) - 10
            start, end = (x[at] + 24, x[to] - 24) if not high else (x[at] + 6, x[to] - 6)
            y = ROW if not high else ROW - 18
            parts.append(f'<path d="M{start} {y}C{start + 20} {y - high} {end - 20} {y - high} {end} {y}"/>')
            labels.append(f'<text x="{(start + end) / 2}" y="{y - 0.75 * high - 6}" text-anchor="middle">{letter}</text>')
    parts.append("</g>")
    for at, each in enumerate(state.classes):
        if at:
            first = at == state.whole
            low = 26 * (at - each.link) + 8
            style = "stroke: var(--fast); stroke-width: 2.5" if first else "stroke: var(--fast); stroke-opacity: 0.6"
            start, end, y = x[at] - 5, x[each.link] + 5, ROW + 18
            curve = f"M{start} {y}C{start - 20} {y + low} {end + 20} {y + low} {end} {y}"
            parts.append(f'<path d="{curve}" fill="none" stroke-dasharray="5 4" style="{style}"/>')
    for at, each in enumerate(state.classes):
        name = TEXT[each.ends[0] - each.longest : each.ends[0]] if at else "ε"
        bold = 2.5 if at in (state.whole, state.classes[state.whole].link) else 1.2
        fill = "fill: var(--md-default-bg-color, #fff); stroke: var(--spec)"
        parts.append(f'<rect x="{x[at] - 26}" y="{ROW - 18}" width="52" height="36" rx="16" stroke-width="{bold}" style="{fill}"/>')
        parts.append(f'<text x="{x[at]}" y="{ROW}" text-anchor="middle">{name}</text>')
        where = ", ".join(map(str, each.ends)) if at else "everywhere"
        parts.append(f'<text x="{x[at]}" y="{ROW + 13}" text-anchor="middle" font-size="{10 if at else 8}">{where}</text>')
    repeated = state.classes[state.classes[state.whole].link]
    draft = "".join(suffix_automaton.draft(state, 3))
    name = TEXT[repeated.ends[0] - repeated.longest : repeated.ends[0]]
    said = f"“{name}” ended at {repeated.ends[0]} before: draft “{draft}”"
    parts += [*labels, f'<text x="330" y="240" text-anchor="middle" font-size="12">{said}</text>']
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
