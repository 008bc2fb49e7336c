"""Draw `chunked_prefill.svg`: three requests write while a prompt of 24 tokens arrives, without and with a budget per batch."""

from pathlib import Path

from twofold.spec.serving.chunked_prefill import Request, schedule

PROMPT, BATCHES, UNIT, LANE = 24, 9, 8.8, 30
NAMES = ["writes", "writes", "writes", "prompt"]


def batches(budget: int) -> list[list[tuple[int, bool]]]:
    """Per batch and request, the tokens it gets and whether they are its prompt's; the prompt arrives before the third batch."""
    left, last, result = [0, 0, 0, PROMPT], [0, 0, 0, 0], []
    for batch in range(BATCHES):
        here = [i for i in range(4) if i < 3 or batch >= 2]
        tokens = schedule([Request(0 if i < 3 else 2, left[i], last[i]) for i in here], budget)
        result.append([(tokens[i], left[i] > 0) if i in here else (0, False) for i in range(4)])
        for i, given in zip(here, tokens, strict=True):
            left[i] -= min(given, left[i])
            last[i] = batch if given else last[i]
    return result


def panel(parts: list[str], top: float, title: str, budget: int) -> None:
    parts.append(f'<text x="16" y="{top - 14:.0f}">{title}</text>')
    x = 84.0
    for i, name in enumerate(NAMES):
        parts.append(f'<text x="76" y="{top + LANE * i + 19:.0f}" text-anchor="end" font-size="12" fill-opacity="0.8">{name}</text>')
    for batch in batches(budget):
        width = UNIT * (2.5 + sum(tokens for tokens, _ in batch))
        if x + width > 650:
            break
        for i, (tokens, prompt) in enumerate(batch):
            if tokens:
                color = "var(--fast)" if prompt else "var(--spec)"
                box = f'x="{x + 2:.1f}" y="{top + LANE * i + 3:.0f}" width="{width - 4:.1f}" height="{LANE - 6}" rx="3"'
                parts.append(f'<rect {box} style="fill: {color}" fill-opacity="{0.75 if prompt else 0.35}"/>')
                label = f'x="{x + width / 2:.1f}" y="{top + LANE * i + 19:.0f}" text-anchor="middle" font-size="12"'
                parts.append(f"<text {label}>{tokens}</text>")
        parts.append(f'<path d="M{x:.1f} {top - 4:.0f}V{top + 4 * LANE + 4:.0f}" stroke="currentColor" stroke-opacity="0.35"/>')
        x += width
    parts.append(f'<path d="M{x:.1f} {top - 4:.0f}V{top + 4 * LANE + 4:.0f}" stroke="currentColor" stroke-opacity="0.35"/>')


def main() -> None:
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 370" font-size="13" fill="currentColor">']
    panel(parts, 36, "No limit: the prompt enters whole, and those who write wait for it.", 100)
    panel(parts, 214, "A budget of 9 tokens per batch: 3 for those who write, 6 for the prompt.", 9)
    parts.append('<text x="84" y="362" font-size="12" fill-opacity="0.8">time; a batch is as wide as it takes</text>')
    parts.append('<path d="M314 358h60m-7-4l7 4-7 4" fill="none" stroke="currentColor" stroke-opacity="0.6" stroke-width="1.5"/>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    main()
