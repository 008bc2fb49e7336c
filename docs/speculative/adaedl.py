"""Draw `adaedl.svg`: the estimated and the true chance of being kept, for a drafter and targets that grow more and more undecided."""

from pathlib import Path

import numpy as np

from twofold.spec.speculative import adaedl

V, C, THRESHOLD = 8, 0.2, 0.5
SHARES = np.linspace(0, 1, 41)  # of the uniform law, mixed with a certain one


def mixed(share: float, token: int) -> np.ndarray:
    return (1 - share) * np.eye(V)[token] + share / V


def place(share: float, chance: float) -> str:
    return f"{60 + 440 * share:.1f} {230 - 190 * chance:.1f}"


def main() -> None:
    kept = lambda share, token: np.minimum(mixed(share / 2, token), mixed(share, 0)).sum()
    curves = [
        ("1 − √(c H(q))", "stroke: var(--fast)", [adaedl.bound(mixed(s, 0), C) for s in SHARES]),
        ("kept: a surer target", "stroke: var(--spec)", [kept(s, 0) for s in SHARES]),
        ("kept: another target", "stroke: var(--spec); stroke-dasharray: 6 4", [kept(s, 1) for s in SHARES]),
    ]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 290" font-size="13" fill="currentColor">']
    parts.append('<path d="M60 230H500M60 230V36" stroke="currentColor" fill="none"/>')
    parts += [f'<text x="50" y="{place(0, n).split()[1]}" text-anchor="end" dy="4">{n}</text>' for n in (0, 0.5, 1)]
    parts.append(f'<path d="M{place(0, THRESHOLD)}L{place(1, THRESHOLD)}" stroke="currentColor" stroke-dasharray="2 5"/>')
    parts.append(f'<text x="70" y="{float(place(0, THRESHOLD).split()[1]) + 16:.1f}" font-size="12">below λ: no draft</text>')
    for _, style, chances in curves:
        line = "L".join(place(s, chance) for s, chance in zip(SHARES, chances, strict=True))
        parts.append(f'<path d="M{line}" fill="none" stroke-width="2" style="{style}"/>')
    for n, (name, style, _) in enumerate(curves):
        parts.append(f'<path d="M515 {70 + 26 * n}h26" stroke-width="2" style="{style}"/><text x="548" y="{74 + 26 * n}">{name}</text>')
    parts.append('<text x="60" y="250">certain</text><text x="500" y="250" text-anchor="end">uniform</text>')
    parts.append('<text x="280" y="274" text-anchor="middle">the drafter\'s row</text></svg>')
    Path(__file__).with_suffix(".svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
