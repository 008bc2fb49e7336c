"""Draw `rest.svg`: sorted suffixes of a small text, the run that starts with the end of the context, and the tree of what follows."""

from pathlib import Path

from twofold.spec.speculative import rest

TEXTS = ["if x in seen : return x", "for x in seen : print x", "if y in seen : return y", "while x in queue : return x"]
CONTEXT, SHOWN, DEPTH, NODES = ["in", "seen"], 5, 3, 4


def main() -> None:
    words = sorted({word for text in TEXTS for word in text.split()})
    store = rest.index([token for text in TEXTS for token in [*map(words.index, text.split()), -1]])
    tokens, places = store
    match = tuple(map(words.index, CONTEXT))
    run = [i for i, place in enumerate(places) if tokens[place : place + len(match)] == match]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 250" font-size="14" fill="currentColor">']
    parts.append('<text x="14" y="18" font-size="12" fill-opacity="0.75">suffixes, sorted</text>')
    for line, i in enumerate(range(run[0] - 2, run[-1] + 3)):
        y, inside = 46 + 27 * line, i in run
        shown = tokens[places[i] : places[i] + SHOWN]
        shown = shown[: shown.index(-1)] if -1 in shown else shown
        text = " ".join(words[token] for token in shown)
        if inside:
            head = " ".join(CONTEXT)
            text = f'<tspan font-weight="700" style="fill: var(--spec)">{head}</tspan>{text[len(head) :]}'
        parts.append(f'<text x="14" y="{y}" fill-opacity="{1 if inside else 0.5}">{text} …</text>')
    top, bottom = 46 + 27 * 2 - 18, 46 + 27 * (len(run) + 1) + 8
    parts.append(f'<path d="M196 {top}h8V{bottom}h-8" fill="none" stroke="currentColor"/>')
    tree, parents, counts = rest.draft(store, list(match), len(match), DEPTH, NODES)
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    leaves = [n for n in range(len(tree)) if n not in parents]
    middle = {leaf: 80 + 70 * i for i, leaf in enumerate(leaves)}
    for node in range(len(tree) - 1, -1, -1):
        below = [middle[child] for child, parent in enumerate(parents) if parent == node]
        middle.setdefault(node, sum(below) / len(below) if below else 0)
    for node in range(len(tree)):
        x, y = 258 + 112 * depths[node], middle[node]
        if node:
            x0, y0 = 258 + 112 * depths[parents[node]], middle[parents[node]]
            curve = f"M{x0 + 36} {y0}C{x0 + 56} {y0} {x - 56} {y} {x - 36} {y}"
            parts.append(f'<path d="{curve}" fill="none" style="stroke: var(--fast); stroke-width: 2"/>')
        color = "var(--fast)" if node else "var(--spec)"
        box = f'x="{x - 36}" y="{y - 17}" width="72" height="34" rx="5"'
        parts.append(f'<rect {box} fill="none" style="stroke: {color}; stroke-width: 2.5"/>')
        parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{words[tree[node]] if node else CONTEXT[-1]}</text>')
        parts.append(f'<text x="{x}" y="{y + 12}" text-anchor="middle" font-size="10" fill-opacity="0.75">{counts[node]}</text>')
    parts.append('<text x="440" y="232" text-anchor="middle" font-size="12">what follows, by how often</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
