"""Draw `tolerance.svg`: an emulated bfloat16 attention kernel, right and wrong in three ways, against the bound that the suite derives.

Run it again with `python docs/tolerance.py`; it also prints the numbers that the page quotes.
"""

from pathlib import Path

import numpy as np
import torch

from twofold.conformance import inputs
from twofold.conformance.compare import checks
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense

RUNS, LENGTH, WIDTH = 40, 100, 64


def kernel(q, k, v, scale=WIDTH**-0.5, keys=LENGTH, cast=lambda p: p.to(torch.bfloat16)):
    """What a half-precision kernel does: bfloat16 operands, float32 accumulation, bfloat16 output."""
    scores = q.float() @ k[:keys].float().T * scale
    p = (scores - scores.max(-1, keepdim=True).values).exp()
    return ((cast(p).float() @ v[:keys].float()) / p.sum(-1, keepdim=True)).to(torch.bfloat16)


def truncated(p):
    """A cast that drops the low bits instead of rounding."""
    return (p.view(torch.int32) & -65536).view(torch.float32)


KERNELS = {
    "correct": {},
    "casts by truncation": {"cast": truncated},
    "scale 2 % too large": {"scale": 1.02 * WIDTH**-0.5},
    "last key forgotten": {"keys": LENGTH - 1},
}


def measure() -> dict[str, list[dict[str, float]]]:
    ratios: dict[str, list[dict[str, float]]] = {name: [] for name in KERNELS}
    for seed in range(RUNS):
        q, k, v = inputs.values("normal", [(LENGTH, WIDTH)] * 3, seed, "bfloat16")
        expected, _ = bounded(dense.attention, q, k, v, precision=Precision("bfloat16"), outputs=("bfloat16", "float32"))
        for name, changes in KERNELS.items():
            output = kernel(*(torch.from_numpy(x).to(torch.bfloat16) for x in (q, k, v)), **changes)
            found = checks(output.double().numpy(), expected, independent=True)
            ratios[name].append({check: float(np.max(ratio)) for check, ratio in found.items()})
    return ratios


def draw(ratios: dict[str, list[dict[str, float]]]) -> str:
    left, right, low, high = 150, 660, 0.1, 200.0
    x = lambda ratio: left + (right - left) * np.log(np.clip(ratio, low, high) / low) / np.log(high / low)
    rng = np.random.default_rng(0)
    parts = [f'<rect x="{left}" y="14" width="{x(1) - left:.0f}" height="200" style="fill: var(--spec-soft)"/>']
    for row, (name, runs) in enumerate(ratios.items()):
        y = 40 + 50 * row
        parts.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{name}</text>')
        for run in runs:
            ratio = max(run.values())
            color = "--spec" if ratio <= 1 else "--fast"
            at = y + rng.uniform(-13, 13)
            parts.append(f'<circle cx="{x(ratio):.1f}" cy="{at:.1f}" r="3" style="fill: var({color})" fill-opacity="0.7"/>')
    parts.append(f'<path d="M{x(1):.0f} 8V214" style="stroke: var(--spec)" stroke-width="2"/>')
    for tick in (0.1, 0.3, 1, 3, 10, 30, 100):
        parts.append(f'<path d="M{x(tick):.0f} 214v6" stroke="currentColor"/>')
        parts.append(f'<text x="{x(tick):.0f}" y="234" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path d="M{left} 214H{right}" stroke="currentColor"/>')
    parts.append(f'<text x="{(left + right) / 2:.0f}" y="256" text-anchor="middle">largest of the four checks, as error over bound</text>')
    parts.append(f'<text x="{x(1) - 8:.0f}" y="10" text-anchor="end" style="fill: var(--spec)">accepted</text>')
    parts.append(f'<text x="{x(1) + 8:.0f}" y="10" style="fill: var(--fast)">flagged</text>')
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 264" font-size="12" fill="currentColor">\n{body}\n</svg>\n'


if __name__ == "__main__":
    measured = measure()
    for name, runs in measured.items():
        flagged = sum(max(run.values()) > 1 for run in runs)
        print(f"{name}: {flagged} of {RUNS} runs flagged; ", {c: round(float(np.median([run[c] for run in runs])), 2) for c in runs[0]},
              "largest worst", round(max(run["worst"] for run in runs), 2))
    Path(__file__).with_suffix(".svg").write_text(draw(measured), encoding="utf-8")
