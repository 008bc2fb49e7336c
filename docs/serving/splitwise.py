"""Draw `splitwise.svg`: one request on two machines, its cache moved at once or layer by layer; all times from the simulator."""

from pathlib import Path

from twofold.spec.serving.splitwise import Cluster, Costs, Request, simulate

LAYERS, PROMPT, OUTPUT = 4, 8, 4
SCALE, LEFT = 26, 150


def main() -> None:
    costs = Costs(lambda tokens: tokens, lambda batch: 2, lambda size: 1.5 * size / 2)  # per layer: 2 to compute, 1.5 to move
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 300" font-size="12" fill="currentColor">']

    def bar(start: float, end: float, y: float, color: str, text: str) -> None:
        look = f'style="fill: {color}; stroke: {color}" fill-opacity="0.3"'
        parts.append(f'<rect x="{LEFT + SCALE * start:.1f}" y="{y}" width="{SCALE * (end - start) - 1:.1f}" height="24" {look}/>')
        parts.append(f'<text x="{LEFT + SCALE * (start + end) / 2:.1f}" y="{y + 16}" text-anchor="middle">{text}</text>')

    for place, mode in enumerate(("serialised", "layerwise")):
        top = 40 + 136 * place
        (trace,) = simulate([Request(0, PROMPT, OUTPUT)], Cluster(1, 1, 0, LAYERS, 1, mode), costs)
        first, second = trace.times[:2]
        later = f"{mode}: token 2 comes {second - first - 2:g} later than on one machine"
        parts.append(f'<text x="8" y="{top - 14}" font-size="13">{later}</text>')
        for row, name in enumerate(("prompt machine", "link", "token machine")):
            parts.append(f'<text x="{LEFT - 10}" y="{top + 16 + 30 * row}" text-anchor="end">{name}</text>')
        free = 0.0
        for layer in range(LAYERS):
            done = first * (layer + 1) / LAYERS
            bar(first * layer / LAYERS, done, top, "var(--spec)", f"layer {layer}")
            start = max(free, done if mode == "layerwise" else first)
            free = start + costs.transfer_time(PROMPT / LAYERS)
            bar(start, free, top + 30, "currentColor", f"{layer}")
        for token, end in enumerate(trace.times[1:], 2):
            bar(end - 2, end, top + 60, "var(--fast)", f"token {token}")
        x = LEFT + SCALE * first
        parts.append(f'<line x1="{x}" y1="{top - 6}" x2="{x}" y2="{top + 90}" stroke="currentColor" stroke-dasharray="3 3"/>')
        parts.append(f'<text x="{x + 4}" y="{top - 2}" font-size="11">token 1</text>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
