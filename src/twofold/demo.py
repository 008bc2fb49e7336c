"""`twofold demo`: speculative decoding on a real text in a few minutes, with the proof that it loses nothing.

The text is what every machine with Python has: the top-level sources of the standard library, every tenth file held out. Two n-gram
models stand in for the two language models, a 6-gram the target and a 3-gram the drafter, over the 95 most frequent characters and one
for all others. The tour fits them, decodes held-out contexts, compares acceptance and tokens per call with their formulas, proves on
random rational models that the law is kept, writes a chart and a page, and runs the quick profile of the conformance suite.
"""

import base64
import html
import io
import random
import sysconfig
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["corpus", "held_contexts", "main", "model"]

TARGET_ORDER, DRAFT_ORDER, ALPHABET, HISTORY = 6, 3, 96, 9
GAMMAS = (2, 4, 8)


def main(output: Path = Path("twofold-demo"), quick: bool = False, check: bool = True, seed: int = 1) -> int:
    """Run the tour, write `output`/chart.png and index.html, return 0 if everything held. `quick` measures on a tenth of the contexts."""
    from rich.progress import Progress

    from twofold.cli.console import console, table

    positions, instances = (300, 5) if quick else (3000, 40)
    with Progress(console=console(), transient=True) as progress:
        task = progress.add_task("reading the standard library", total=7)

        def now(what: str) -> None:
            progress.update(task, description=what, advance=1)

        train, held, characters = corpus()
        now("fitting a 6-gram and a 3-gram model")
        target, drafter = model(train, TARGET_ORDER), model(train, DRAFT_ORDER)
        contexts = held_contexts(held, positions, seed)
        now("measuring acceptance")
        acceptance = measure_acceptance(target, drafter, contexts, seed)
        rounds = []
        for gamma in GAMMAS:
            now(f"drafting {gamma} tokens per call")
            rounds.append(measure_round(target, drafter, contexts, gamma, acceptance["expected"], seed))
        now("decoding with and without a drafter")
        decoding = decode(target, drafter, contexts[: positions // 50], characters, seed)
        now("proving that the law is kept")
        proof = prove(instances, seed)
    found = {"characters": len(train), "contexts": positions, "acceptance": acceptance, "rounds": rounds}
    found |= {"decoding": decoding, "proof": proof}

    print_ = console().print
    print_(f"A 6-gram target and a 3-gram drafter of {len(train):,} characters, met at {positions:,} held-out places.")
    print_(f"Draft tokens kept: {acceptance['measured']:.3f} ± {acceptance['error']:.3f}; 1 - TV(p, q) says {acceptance['expected']:.3f}.")
    tokens = table("drafted", "tokens per target call", "closed form at the mean acceptance")
    for each in rounds:
        tokens.add_row(str(each["gamma"]), f"{each['tokens']:.3f} ± {each['error']:.3f}", f"{each['formula']:.3f}")
    print_(tokens)
    print_(f"{decoding['tokens']:,} tokens took {decoding['calls']:,} target calls with the drafter, {decoding['plain']:,} without.")
    print_(f"The exact law of speculated text is the target's on {proof['kept']} of {proof['instances']} random rational models.")
    print_(f"A verifier that draws its correction from p instead is off on {proof['caught']} of them, by {proof['worst']} at the most.")
    output.mkdir(parents=True, exist_ok=True)
    chart = _chart(rounds, acceptance)
    (output / "chart.png").write_bytes(chart)
    (output / "index.html").write_text(_page(found, chart), encoding="utf-8")
    print_(f"Chart and page: {output / 'chart.png'}, {output / 'index.html'}")

    sound = proof["kept"] == proof["instances"] and proof["caught"] > 0
    if check:
        from twofold.cli import check as checking

        print_("Now the conformance suite, few examples each:")
        result = checking.run(["*"], profile="quick")  # all chapters, without the tests of the suite itself
        checking.show(result)
        sound = sound and bool(result["passed"]) and not result["failed"]
    return 0 if sound else 1


def corpus() -> tuple[torch.Tensor, torch.Tensor, str]:
    """Training and held-out text as ids, and the characters they stand for; the last id is every other character."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    train = "".join(text for i, text in enumerate(texts) if i % 10)
    held = "".join(text for i, text in enumerate(texts) if i % 10 == 0)
    ranked = sorted(Counter(train).items(), key=lambda item: (-item[1], item[0]))
    characters = "".join(character for character, _ in ranked[: ALPHABET - 1])
    table = np.full(0x110000, ALPHABET - 1, dtype=np.int64)
    table[[ord(character) for character in characters]] = np.arange(len(characters))
    ids = lambda text: torch.from_numpy(table[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)])
    return ids(train), ids(held), characters + "\N{REPLACEMENT CHARACTER}"


def model(text: torch.Tensor, order: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """An n-gram model in the form that `sampling` calls: rows after `tokens[b, : ends[b, i]]`."""
    from twofold.fast.speculative import ngram_lm

    fitted = ngram_lm.fit(text, order, ALPHABET)

    def rows(tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        at = ends[:, :, None] + torch.arange(1 - order, 0)  # (B, n, order - 1)
        context = tokens.gather(1, at.clamp(min=0).flatten(1)).view_as(at)
        return ngram_lm.probs(fitted, torch.where(at >= 0, context, -1))

    return rows


def measure_acceptance(target, drafter, contexts, seed) -> dict[str, float]:
    """How many single draft tokens are kept, its standard error, and the mean of 1 - TV over the same contexts."""
    from twofold.fast.speculative import sampling

    parts = contexts.split(256)
    counts = torch.cat([sampling.step(target, drafter, part, 1, seed=seed + i)[1] - 1 for i, part in enumerate(parts)]).double()
    ends = torch.full((len(contexts), 1), HISTORY)
    overlap = torch.minimum(target(contexts, ends), drafter(contexts, ends)).sum(-1).double()
    return {"measured": counts.mean().item(), "error": counts.std().item() / len(counts) ** 0.5, "expected": overlap.mean().item()}


def measure_round(target, drafter, contexts, gamma, alpha, seed) -> dict[str, float]:
    """Mean tokens that one target call yields from each context, beside the closed form for independent acceptance."""
    from twofold.fast.speculative import cost, sampling

    parts = contexts.split(256)
    counts = torch.cat([sampling.step(target, drafter, part, gamma, seed=seed + i)[1] for i, part in enumerate(parts)]).double()
    formula = cost.expected_tokens(alpha, gamma).item()
    return {"gamma": gamma, "tokens": counts.mean().item(), "error": counts.std().item() / len(counts) ** 0.5, "formula": formula}


def decode(target, drafter, contexts, characters, seed) -> dict[str, Any]:
    """Continue contexts by 40 tokens, four drafted per call, and count the target calls; a sample of the text comes along."""
    from twofold.fast.speculative import sampling

    new, calls = sampling.generate(target, drafter, contexts, 4, 40, seed=seed)
    plain = sampling.generate(target, drafter, contexts, 0, 40, seed=seed)[1]
    text = lambda ids: "".join(characters[i] for i in ids.tolist())
    samples = [(text(context), text(continuation)) for context, continuation in zip(contexts[:5], new[:5], strict=True)]
    return {"tokens": new.numel(), "calls": int(calls.sum()), "plain": int(plain.sum()), "samples": samples}


def prove(instances: int, seed: int) -> dict[str, Any]:
    """On random rational models of three tokens: is the exact law of three speculated tokens the target's, and a wrong verifier's not?"""
    from twofold.conformance.law import Model, autoregressive, completed, law, total_variation
    from twofold.spec.speculative import chain, sampling

    generator = random.Random(seed)

    def row() -> np.ndarray:
        weights = [generator.randint(0, 4) for _ in range(3)]
        weights = weights if any(weights) else [1, 1, 1]
        return np.array([Fraction(w, sum(weights)) for w in weights], dtype=object)

    def correction_from_target(p, q, draft, rng):
        for i, x in enumerate(draft):
            if not rng.bernoulli(p[i][x] / q[i][x]):
                return i, rng.categorical(p[i])
        return len(draft), rng.categorical(p[-1])

    def emitted(target, drafter, verify, rng):
        return tuple(sampling.step(target, drafter, (), 2, rng, verify))

    texts = [context for n in range(3) for context in product(range(3), repeat=n)]
    kept, biases = 0, []
    for _ in range(instances):
        target, drafter = (Model({context: row() for context in texts}) for _ in range(2))
        expected = autoregressive(target, 3)
        right = law(partial(emitted, target, drafter, chain.verify))
        wrong = law(partial(emitted, target, drafter, correction_from_target))
        kept += completed(right, target, 3) == expected
        biases.append(total_variation(completed(wrong, target, 3), expected))
    return {"instances": instances, "kept": kept, "caught": sum(bias > 0 for bias in biases), "worst": str(max(biases))}


def held_contexts(held: torch.Tensor, positions: int, seed: int) -> torch.Tensor:
    """The characters before random places of the held-out text."""
    at = torch.from_numpy(np.random.default_rng(seed).integers(HISTORY + 1, len(held) - 1, positions))
    return held[at[:, None] + torch.arange(-HISTORY, 0)]  # (positions, HISTORY)


def _chart(rounds: list[dict[str, float]], acceptance: dict[str, float]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    gammas = [each["gamma"] for each in rounds]
    tokens, errors = [each["tokens"] for each in rounds], [2 * each["error"] for each in rounds]
    axes.errorbar(gammas, tokens, errors, fmt="o-", capsize=4, label="measured, two standard errors")
    axes.plot(gammas, [each["formula"] for each in rounds], "s--", label=f"closed form at acceptance {acceptance['expected']:.2f}")
    axes.axhline(1, color="gray", linewidth=1, label="without a drafter")
    axes.set(xlabel="drafted tokens per round", ylabel="tokens per target call", xticks=gammas, ylim=(0, None))
    axes.legend()
    stream = io.BytesIO()
    figure.savefig(stream, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
    return stream.getvalue()


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>twofold demo</title> <style> :root {{
color-scheme: light dark }} body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }} td, th
{{ padding: .2rem 1rem .2rem 0; text-align: left }} img {{ max-width: 100%; background: white }} pre {{ white-space: pre-wrap;
border-left: 3px solid gray; padding-left: 1rem }} b {{ font-weight: normal; opacity: .6 }} </style> <h1>Speculative decoding, measured
and proved</h1> <p>A 6-gram target and a 3-gram drafter, both fitted to {characters:,} characters of the Python standard library, met at
{contexts:,} places of the files held out.</p> <p>Draft tokens kept: {measured:.3f} ± {error:.3f}; 1 − TV(p, q) says {expected:.3f}.</p>
<table><tr><th>drafted<th>tokens per target call<th>closed form</tr>{rows}</table> <p><img alt="Tokens per target call over drafted
tokens" src="data:image/png;base64,{chart}"></p> <p>The closed form takes acceptance to be the same everywhere. In text it is not, and
where it varies, E[α<sup>i</sup>] ≥ E[α]<sup>i</sup>: long drafts do better than the mean promises.</p> <p>{tokens:,} tokens took
{calls:,} target calls with four drafts each, and {plain:,} without. Contexts pale, continuations plain:</p> {samples} <h2>Nothing is
lost</h2> <p>On {instances} random rational models, the exact law of the speculated text equals the target's on {kept}. A verifier that
draws its correction from p instead of the residual is off on {caught} of them, by a total variation of up to {worst}.</p> </html>
"""


def _page(found: dict[str, Any], chart: bytes) -> str:
    rows = "".join(f"<tr><td>{x['gamma']}<td>{x['tokens']:.3f} ± {x['error']:.3f}<td>{x['formula']:.3f}</tr>" for x in found["rounds"])
    samples = "".join(f"<pre><b>{html.escape(before)}</b>{html.escape(after)}</pre>" for before, after in found["decoding"]["samples"])
    decoding = {name: value for name, value in found["decoding"].items() if name != "samples"}
    return PAGE.format(
        characters=found["characters"], contexts=found["contexts"], rows=rows, samples=samples, chart=base64.b64encode(chart).decode(),
        **found["acceptance"], **decoding, **found["proof"],
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
