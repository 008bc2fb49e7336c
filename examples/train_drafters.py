"""Train a small target and every kind of drafter for it, and count what speculation saves: `python examples/train_drafters.py [--quick]`.

The text is what every Python brings along: the top-level sources of its standard library, every tenth file held out. A byte-level
transformer is the target. On its frozen trunk grow Medusa heads, Hydra heads, an EAGLE-style drafter with and without a training-time
test, a multi-token prediction module, and an early exit; beside it stands a small model of its own, once distilled from the target and once
not. Then held-out files are continued with each, as chains, static trees and dynamic trees, verified token by token, as a block, or by
exact match.

Weights are made, not shipped. The recipe is deterministic, and resumes where it was stopped: `--folder` holds one file per stage.
`--quick` is a setting of about two minutes that shows the way, not the numbers.
"""

import argparse
import json
import platform
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from byte_transformer import BYTES, Layer, Transformer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from twofold.fast.speculative import block, chain, decoding, eagle2, eagle3, hydra, match, medusa, mtp

GAMMA, NODES, RANKS, HEADS, SEED = 4, 16, 8, 4, 2024


class Setting(NamedTuple):
    width: int
    depth: int
    context: int
    batch: int
    target_steps: int
    drafter_steps: int
    texts: int  # held-out texts that are continued
    new: int  # bytes that each is continued by


FULL = Setting(width=160, depth=4, context=128, batch=16, target_steps=2000, drafter_steps=700, texts=48, new=96)
QUICK = Setting(width=64, depth=3, context=64, batch=8, target_steps=150, drafter_steps=50, texts=8, new=24)


# Training


def corpus() -> tuple[Tensor, Tensor]:
    """The bytes to train on and the held-out ones."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [file.read_bytes() for file in files]
    joined = lambda some: torch.frombuffer(bytearray(b"".join(some)), dtype=torch.uint8)
    return joined(text for i, text in enumerate(texts) if i % 10), joined(texts[::10])


def batch(text: Tensor, setting: Setting, stage: str, step: int, device: torch.device) -> Tensor:
    """The windows of one step `(B, context + 1)`: a function of stage and step alone, so that a resumed run sees the same."""
    generator = torch.Generator().manual_seed(hash_of(stage) + step)
    starts = torch.randint(len(text) - setting.context - 1, (setting.batch,), generator=generator)
    return text[starts[:, None] + torch.arange(setting.context + 1)].long().to(device)


def hash_of(stage: str) -> int:
    return int.from_bytes(stage.encode(), "big") % 2**31 * 2**20


class Recipe:
    """What all stages share: the text, the folder with finished and half-finished stages, and a progress bar."""

    def __init__(self, setting: Setting, folder: Path, device: torch.device, progress: Progress):
        self.setting, self.folder, self.device, self.progress = setting, folder, device, progress
        self.text, self.held = corpus()
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, stage: str, module: nn.Module, loss: Callable[[Tensor], Tensor], steps: int, rate: float) -> nn.Module:
        """Minimize `loss(windows)`; what an earlier run has done of this stage is taken up."""
        torch.manual_seed(SEED)
        path, module = self.folder / f"{stage}.pt", module.to(self.device)
        optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
        done = 0
        if path.exists():
            saved = torch.load(path, map_location=self.device)
            if saved["setting"] != list(self.setting):
                raise SystemExit(f"{path} belongs to another setting: name another folder")
            module.load_state_dict(saved["module"])
            optimizer.load_state_dict(saved["optimizer"])
            done = saved["done"]
        task = self.progress.add_task(stage, total=steps, completed=done)
        while done < steps:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (done + 1) / 50) * (1 - 0.9 * done / steps)
            value = loss(batch(self.text, self.setting, stage, done, self.device))
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1)
            optimizer.step()
            done += 1
            self.progress.update(task, completed=done, description=f"{stage}, loss {value.item():.2f}")
            if done % 100 == 0 or done == steps:
                state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "done": done, "setting": list(self.setting)}
                torch.save(state, path.with_suffix(".part"))
                path.with_suffix(".part").replace(path)
        return module.eval().requires_grad_(False)


def soft_cross_entropy(logits: Tensor, laws: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), laws.flatten(0, -2))


class Drafters(NamedTuple):
    target: Transformer
    small: Transformer  # distilled: it has learned the target's laws
    unaided: Transformer  # the same, from the text alone
    medusa: nn.ParameterDict
    eagle: nn.ModuleDict  # trained on true features alone
    rehearsed: nn.ModuleDict  # with the training-time test
    mtp: nn.ModuleDict
    exit: nn.Module
    hydra: nn.ParameterDict


def trained(recipe: Recipe) -> Drafters:
    """All stages, one after another."""
    setting, width = recipe.setting, recipe.setting.width
    torch.manual_seed(SEED)
    target = Transformer(width, setting.depth, heads=4)
    next_byte = lambda windows: F.cross_entropy(target(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    recipe.train("target", target, next_byte, setting.target_steps, 2e-3)
    head, embed = target.head.weight, target.embed.weight

    def law(windows: Tensor) -> Tensor:
        with torch.no_grad():
            return target(windows).softmax(-1)

    def states(windows: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return target.states(windows)

    train = lambda stage, module, loss: recipe.train(stage, module, loss, setting.drafter_steps, 2e-3)
    small = Transformer(width // 2, 1, heads=4)
    train("small", small, lambda windows: soft_cross_entropy(small(windows), law(windows)))

    heads = nn.ParameterDict(
        {"w1": torch.zeros(HEADS, width, width), "b1": torch.zeros(HEADS, width), "w2": head.detach().expand(HEADS, -1, -1).clone()}
    )
    train("medusa", heads, lambda windows: medusa.loss(medusa.heads(states(windows)[-1], heads["w1"], heads["b1"], heads["w2"]), windows))

    def feature_drafter(stage: str, steps: int) -> nn.ModuleDict:
        drafter = nn.ModuleDict({
            "fuse": nn.Linear(3 * width, width, bias=False), "fc": nn.Linear(2 * width, width, bias=False),
            "layer": Layer(width, heads=4), "head": nn.Linear(width, BYTES, bias=False),
        })  # fmt: skip
        drafter["head"].weight.data.copy_(head)

        def loss(windows: Tensor) -> Tensor:
            p, g = law(windows), eagle3.fuse(*fused(states(windows[:, :-1])), drafter["fuse"].weight)
            rows = eagle3.unroll(g, windows, embed, drafter["fc"].weight, drafter["layer"], steps)
            parts = [soft_cross_entropy(drafter["head"](row), p[:, s + 1 : s + 1 + row.shape[1]]) for s, row in enumerate(rows)]
            return sum(0.8**s * part for s, part in enumerate(parts)) / sum(0.8**s for s in range(steps))

        return train(stage, drafter, loss)

    eagle, rehearsed = feature_drafter("eagle", 1), feature_drafter("eagle with training-time test", GAMMA)

    module = nn.ModuleDict({"m": nn.Linear(2 * width, width, bias=False), "layer": Layer(width, heads=4)})

    def further(windows: Tensor) -> Tensor:
        h, T, rows = states(windows[:, :-1])[-1], windows.shape[1] - 1, []
        for k in range(1, GAMMA + 1):
            h = mtp.module(h[:, : T - k], windows[:, k:T], embed, module["m"].weight, module["layer"].plain)
            rows.append(F.pad(F.linear(h, head).softmax(-1), (0, 0, 0, k)))
        return mtp.loss(torch.stack(rows, 1), windows, 1.0)

    train("mtp", module, further)
    adapter = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
    train("exit", adapter, lambda windows: soft_cross_entropy(F.linear(adapter(states(windows)[0]), head), law(windows)))

    unaided = Transformer(width // 2, 1, heads=4)
    by_text = lambda windows: F.cross_entropy(unaided(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    train("small, not distilled", unaided, by_text)

    told = {f"w1_{k}": torch.zeros(width, (k + 2) * width) for k in range(HEADS)}
    informed = nn.ParameterDict({**told, "b1": torch.zeros(HEADS, width), "w2": head.detach().expand(HEADS, -1, -1).clone()})
    weights = hydra_weights(target, informed)
    train("hydra", informed, lambda windows: medusa.loss(hydra.heads(states(windows)[-1], followers(windows), *weights), windows))
    return Drafters(target, small, unaided, heads, eagle, rehearsed, module, adapter, informed)


def hydra_weights(target: Transformer, heads: nn.ParameterDict) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    return target.embed.weight, [heads[f"w1_{k}"] for k in range(HEADS)], heads["b1"], heads["w2"]


def followers(windows: Tensor) -> Tensor:
    """The tokens that the heads of each place are told `(B, T, HEADS)`: those behind it, zeros where the text ends."""
    return torch.stack([F.pad(windows[:, k:], (0, k)) for k in range(1, HEADS + 1)], -1)


def fused(states: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The states that the target's cache keeps for feature drafters: after the first, a middle and the last layer."""
    return states[0], states[len(states) // 2], states[-1]


# Drafting: every function returns a `propose` for `decoding.generate`, given the target's cache of the batch. `law` makes
# probabilities of logits: `soft` where the text is sampled, `likeliest` where it is greedy, and then drafts are certain.


def soft(logits: Tensor, *_) -> Tensor:
    return logits.softmax(-1)


def likeliest(logits: Tensor, *_) -> Tensor:
    return F.one_hot(logits.argmax(-1), BYTES).float()


def chained(draft: Tensor, q: Tensor, law: Callable, ends: Tensor, room: Tensor):
    """A drafted chain as a tree."""
    B, n = draft.shape
    parents, q = torch.arange(-1, n, device=draft.device).expand(B, n + 1), q if law is soft else likeliest(q)
    return F.pad(draft, (1, 0)), parents, room.clamp(0, n) + 1, torch.cat([q, q[:, -1:]], 1)


def small_chain(d: Drafters, cache: list[Tensor], law: Callable, model: Transformer):
    own = model.cache(*cache[0].shape[:2])
    read = lambda *arguments: law(model.read(*arguments))
    return decoding.draft_model(decoding.remembering(read, cache=own), GAMMA)


def exit_chain(d: Drafters, cache: list[Tensor], law: Callable):
    """The target's first layer and the adapter. (An engine would keep the first layer's keys; here the text is read again.)"""

    def model(tokens: Tensor, ends: Tensor) -> Tensor:
        logits = F.linear(d.exit(d.target.layers[0].plain(d.target.embed(tokens.clamp(min=0)))), d.target.head.weight)
        return law(logits.gather(1, (ends - 1)[:, :, None].expand(-1, -1, BYTES)))

    return decoding.draft_model(model, GAMMA)


def guesses(d: Drafters, h: Tensor) -> Tensor:
    """The heads' logits `(..., HEADS, 256)` on the target's last states."""
    return medusa.heads(h, d.medusa["w1"], d.medusa["b1"], d.medusa["w2"])


def medusa_tree(d: Drafters, cache: list[Tensor], law: Callable, choices: list[tuple[int, ...]]):
    def propose(text, ends, room, *, seed, request):
        h = cache[-1][torch.arange(len(text)), ends - 2]  # the state that chose the last written token
        tokens, parents = medusa.candidates(guesses(d, h).topk(RANKS).indices, choices)
        return tokens, parents, torch.full_like(ends, tokens.shape[1]), None

    return propose


def hydra_tree(d: Drafters, cache: list[Tensor], law: Callable, choices: list[tuple[int, ...]]):
    def propose(text, ends, room, *, seed, request):
        here = torch.arange(len(text))
        tokens, parents = hydra.candidates(cache[-1][here, ends - 2], text[here, ends - 1], *hydra_weights(d.target, d.hydra), choices)
        tokens = torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, 1:]], 1)  # the root is no draft
        return tokens, parents, torch.full_like(ends, tokens.shape[1]), None

    return propose


def eagle_chain(d: Drafters, cache: list[Tensor], law: Callable, drafter: nn.ModuleDict):
    def propose(text, ends, room, *, seed, request):
        g, tokens = known(cache, drafter, text, ends)
        draft, q = eagle3.draft(
            g, tokens, d.target.embed.weight, drafter["fc"].weight, drafter["layer"].plain, drafter["head"].weight, GAMMA,
            lengths=ends - 1, seed=seed if law is soft else None, request=request, position=ends,
        )  # fmt: skip
        return chained(draft, q, law, ends, room)

    return propose


def known(cache: list[Tensor], drafter: nn.ModuleDict, text: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Fused features of all written tokens but the last, and the tokens."""
    T = int(ends.max()) - 1
    return eagle3.fuse(*(states[:, :T] for states in cache[-3:]), drafter["fuse"].weight), text[:, : T + 1]


def eagle_tree(d: Drafters, cache: list[Tensor], law: Callable, drafter: nn.ModuleDict, grow: Callable):
    """A tree grown by `grow(expand, batch) -> (tokens, parents)`, with one pass of the drafter per layer of the tree."""

    def propose(text, ends, room, *, seed, request):
        g, tokens = known(cache, drafter, text, ends)
        (B, T, _), lengths, embed, fc = g.shape, ends - 1, d.target.embed.weight, drafter["fc"].weight
        here, places = torch.arange(B, device=g.device), torch.arange(T, device=g.device)
        inside = places < lengths[:, None]
        rows = torch.cat([F.embedding(tokens[:, 1:], embed), g], -1) @ fc.T
        causal = (places <= places[:, None]) & inside[:, None] | torch.eye(T, dtype=torch.bool, device=g.device)
        hidden, state = drafter["layer"](rows, causal, places.expand(B, -1), None)
        hidden, seen = hidden[here, lengths - 1][:, None], inside[:, None]  # of the last layer of nodes: states, and rows that they saw
        depth = 0

        def expand(tokens: Tensor, parents: Tensor) -> Tensor:
            nonlocal hidden, seen, state, depth
            if int(parents.max()) >= 0 or depth:
                at, n = parents.clamp(min=0), tokens.shape[1]
                told = torch.cat([F.embedding(tokens.clamp(min=0), embed), hidden.gather(1, at[..., None].expand(B, n, g.shape[2]))], -1)
                before = seen.gather(1, at[..., None].expand(B, n, seen.shape[2]))
                seen = torch.cat([before, torch.eye(n, dtype=torch.bool, device=g.device).expand(B, n, n)], 2)
                hidden, state = drafter["layer"](told @ fc.T, seen, (lengths + depth - 1)[:, None].expand(B, n), state)
            depth += 1
            return drafter["head"](hidden).softmax(-1)

        tokens, parents = grow(expand, B)
        return tokens, parents, torch.full_like(ends, tokens.shape[1]), None

    return propose


def dynamic(expand, batch):
    tokens, parents, _ = eagle2.grow(expand, RANKS, GAMMA, NODES, batch=batch)
    return tokens, parents


def static(choices: list[tuple[int, ...]]):
    """A tree of fixed ranks: the child of rank r of every node carries its r-th likeliest token."""
    layers = [sorted(node for node in choices if len(node) == depth) for depth in range(1, GAMMA + 1)]

    def grow(expand, batch):
        tokens, parents, layer, place = [torch.full((batch, 1), -1)], [-1], [()], {(): 0}
        asked = (tokens[0], torch.full((batch, 1), -1))
        for nodes in layers:
            if not nodes:
                break
            ranked = expand(*asked).topk(RANKS).indices  # (B, n, RANKS)
            rows = [layer.index(node[:-1]) for node in nodes]
            new = ranked[:, rows, [node[-1] for node in nodes]]
            parents += [place[node[:-1]] for node in nodes]
            place |= {node: len(place) + i for i, node in enumerate(nodes)}
            asked, layer = (new, torch.tensor(rows).expand(batch, -1)), nodes
            tokens.append(new)
        return torch.cat(tokens, 1), torch.tensor(parents).expand(batch, -1)

    return grow


def mtp_chain(d: Drafters, cache: list[Tensor], law: Callable):
    def propose(text, ends, room, *, seed, request):
        T, module = int(ends.max()) - 1, d.mtp
        draft, q = mtp.draft(
            cache[-1][:, :T], text[:, 1 : T + 1], GAMMA, d.target.embed.weight, module["m"].weight, module["layer"].plain,
            d.target.head.weight, lengths=ends - 1, seed=seed if law is soft else None, request=request, position=ends,
        )  # fmt: skip
        return chained(draft, q, law, ends, room)

    return propose


# Counting


@torch.no_grad()
def ranks_right(d: Drafters, text: Tensor, setting: Setting, rows_of: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """How often the guess of each rank is right, by depth `(depth, RANKS)`, on texts to train on."""
    windows = torch.cat([batch(text, setting, "ranks", step, next(d.target.parameters()).device) for step in range(4)])
    return torch.stack([
        (row.topk(RANKS).indices == windows[:, 2 + k : 2 + k + row.shape[1], None]).float().mean((0, 1))
        for k, row in enumerate(rows_of(windows))
    ])  # fmt: skip


def by_match(p, q, tokens, parents, **keywords):
    return match.verify_tree(p, tokens, parents, **keywords)


@torch.no_grad()
def measured(d: Drafters, recipe: Recipe) -> list[dict[str, Any]]:
    """Tokens per pass of the target, for every drafter, shape and verifier, sampled and greedy."""
    setting, device = recipe.setting, recipe.device
    starts = torch.linspace(0, len(recipe.held) - setting.context - 1, setting.texts).long()
    prompt = recipe.held[starts[:, None] + torch.arange(setting.context // 2)].long().to(device)
    rows = setting.context // 2 + setting.new + NODES + 2

    def by_heads(windows: Tensor) -> list[Tensor]:
        rows = guesses(d, d.target.states(windows[:, :-2])[-1]).unbind(2)
        return [row[:, : row.shape[1] - k] for k, row in enumerate(rows)]

    def by_told_heads(windows: Tensor) -> list[Tensor]:
        h = d.target.states(windows[:, :-2])[-1]
        rows = hydra.heads(h, followers(windows)[:, :-2], *hydra_weights(d.target, d.hydra)).unbind(2)
        return [row[:, : row.shape[1] - k] for k, row in enumerate(rows)]

    def by_features(windows: Tensor) -> list[Tensor]:
        g = eagle3.fuse(*fused(d.target.states(windows[:, :-1])), d.rehearsed["fuse"].weight)
        states = eagle3.unroll(g, windows, d.target.embed.weight, d.rehearsed["fc"].weight, d.rehearsed["layer"], GAMMA)
        return [d.rehearsed["head"](row[:, :-1]) for row in states]

    guessed = [ranks_right(d, recipe.text, setting, rows_of) for rows_of in (by_heads, by_told_heads, by_features)]
    heads, informed, ranks = (medusa.choices(right, NODES) for right in guessed)
    by_token, by_block = decoding.on_chain(chain.verify), decoding.on_chain(block.verify)
    straight = [(0,) * depth for depth in range(1, GAMMA + 1)]  # the likeliest guess of each depth: a chain
    ways: list[tuple[str, str, str, Callable, Callable]] = [
        ("nothing", "–", "–", lambda *_: decoding.draft_model(lambda *_: None, 0), by_match),
        ("small model, not distilled", "chain", "token", partial(small_chain, model=d.unaided), by_token),
        ("small model", "chain", "token", partial(small_chain, model=d.small), by_token),
        ("small model", "chain", "block", partial(small_chain, model=d.small), by_block),
        ("early exit", "chain", "token", exit_chain, by_token),
        ("early exit", "chain", "block", exit_chain, by_block),
        ("medusa", "chain", "match", partial(medusa_tree, choices=straight), by_match),
        ("medusa", "static tree", "match", partial(medusa_tree, choices=heads), by_match),
        ("hydra", "chain", "match", partial(hydra_tree, choices=straight), by_match),
        ("hydra", "static tree", "match", partial(hydra_tree, choices=informed), by_match),
        ("mtp", "chain", "token", mtp_chain, by_token),
        ("mtp", "chain", "block", mtp_chain, by_block),
        ("eagle, no rehearsal", "chain", "token", partial(eagle_chain, drafter=d.eagle), by_token),
        ("eagle", "chain", "token", partial(eagle_chain, drafter=d.rehearsed), by_token),
        ("eagle", "chain", "block", partial(eagle_chain, drafter=d.rehearsed), by_block),
        ("eagle", "chain", "match", partial(eagle_tree, drafter=d.rehearsed, grow=static(straight)), by_match),
        ("eagle", "static tree", "match", partial(eagle_tree, drafter=d.rehearsed, grow=static(ranks)), by_match),
        ("eagle", "dynamic tree", "match", partial(eagle_tree, drafter=d.rehearsed, grow=dynamic), by_match),
    ]
    found, plain = [], torch.empty(0)
    task = recipe.progress.add_task("counting", total=2 * len(ways))
    for drafter, shape, rule, make, verify in ways:
        row: dict[str, Any] = {"drafter": drafter, "shape": shape, "verification": rule}
        for law in (soft, likeliest):
            cache = d.target.cache(setting.texts, rows)
            score, keep = decoding.cached(d.target.read, prompt, cache=cache)
            new, passes = decoding.generate(score, make(d, cache, law), verify, prompt, setting.new, warp=law, keep=keep, seed=SEED)
            row["sampled" if law is soft else "greedy"] = round(setting.texts * setting.new / int(passes.sum()), 3)
            recipe.progress.advance(task)
        plain = plain if found else new  # greedy text is the same whoever drafts, but for ties that rounding turns
        row["greedy_texts_as_without"] = round((new == plain).all(1).float().mean().item(), 3)
        found.append(row)
    return found


ORDERINGS = {  # what the papers report, as (the better, the worse)
    "distillation pays": (("small model", "chain", "token"), ("small model, not distilled", "chain", "token")),
    "heads that are told beat heads that are not: a chain": (("hydra", "chain", "match"), ("medusa", "chain", "match")),
    "heads that are told beat heads that are not: a tree": (("hydra", "static tree", "match"), ("medusa", "static tree", "match")),
    "features beat heads": (("eagle", "static tree", "match"), ("medusa", "static tree", "match")),
    "a tree beats a chain: heads": (("medusa", "static tree", "match"), ("medusa", "chain", "match")),
    "a tree beats a chain: features": (("eagle", "static tree", "match"), ("eagle", "chain", "match")),
    "a dynamic tree beats a static one": (("eagle", "dynamic tree", "match"), ("eagle", "static tree", "match")),
    "rehearsal pays": (("eagle", "chain", "token"), ("eagle, no rehearsal", "chain", "token")),
    "a block beats token by token": (("eagle", "chain", "block"), ("eagle", "chain", "token")),
}


def orderings(rows: list[dict[str, Any]]) -> dict[str, bool]:
    tokens = {(row["drafter"], row["shape"], row["verification"]): row["sampled"] for row in rows}
    return {what: tokens[better] > tokens[worse] for what, (better, worse) in ORDERINGS.items()}


def shown(report: dict[str, Any]) -> Table:
    table = Table("drafter", "shape", "verification", "tokens per pass, sampled", "greedy", title="What a pass of the target writes")
    for row in report["rows"]:
        table.add_row(row["drafter"], row["shape"], row["verification"], f"{row['sampled']:.2f}", f"{row['greedy']:.2f}")
    return table


def chart(report: dict[str, Any], path: Path) -> None:
    """Bars by drafter, shape and verification, readable on a light and on a dark page."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    gray, colors = "#7f8790", {"sampled": "#e4572e", "greedy": "#4f8fd6"}
    style = {"svg.fonttype": "none", "svg.hashsalt": "twofold", "font.size": 9}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), gray)
    rows = report["rows"][::-1]
    with plt.rc_context(style):
        figure, panel = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
        for n, (law, color) in enumerate(colors.items()):
            panel.barh([i + 0.2 - 0.4 * n for i in range(len(rows))], [row[law] for row in rows], 0.38, color=color, label=law)
        panel.set_yticks(range(len(rows)), [" · ".join((row["drafter"], row["shape"], row["verification"])) for row in rows])
        panel.set_xlabel("tokens per pass of the target")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="upper right")
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small models, few steps: about two minutes on two cores")
    parser.add_argument("--folder", type=Path, default=Path("drafters"), help="stages, report.json and report.svg (default: drafters)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    setting = QUICK if options.quick else FULL
    if options.quick:
        torch.set_num_threads(1)  # threads would wait for each other longer than they work
    console = Console()
    with Progress(console=console) as progress:
        recipe = Recipe(setting, options.folder, torch.device(options.device), progress)
        rows = measured(trained(recipe), recipe)
    report = {"what": "tokens per pass of the target", "setting": setting._asdict() | {"gamma": GAMMA, "nodes": NODES}, "rows": rows}
    report |= {"claims": orderings(rows)}
    report |= {"python": platform.python_version(), "torch": torch.__version__, "device": options.device}
    (options.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    chart(report, options.folder / "report.svg")
    console.print(shown(report))
    for what, holds in report["claims"].items():
        console.print(f"{'yes' if holds else 'no ':3}  {what}")
    if min(row["greedy_texts_as_without"] for row in rows) < 0.9:
        raise SystemExit("greedy text depends on the drafter: something is wrong")


if __name__ == "__main__":
    main()
