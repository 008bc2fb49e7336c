"""Read prompts in one process and write their tokens in another, over gloo on this machine: `python examples/disaggregated.py`.

A byte-level transformer with seeded, untrained weights is made anew in both processes, so what it writes is noise; what matters is that
it is the noise that one process writes alone. For each request the table tells when its first token was there, all requests having come
at once; when its cache was whole on the other side, and how much of it was before the prompt was read to its end; and the time per token.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
import torch.nn.functional as F
from byte_transformer import Layer, Transformer, _turned
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from twofold.fast.serving import splitwise
from twofold.fast.serving.kv_cache import Cache

SEED, PAGE, SECONDS = 2024, 16, 120
PROMPTS = [
    ("A prompt machine reads. " * 16, 24),
    ("A token machine writes.", 48),
    ("What lies between them is a cache. " * 8, 32),
    ("One byte?", 1),
    ("The first layer is on its way while the second one computes. " * 6, 16),
]
Moment = tuple[str, int, int, float]  # event, request, number, when


def made(width: int, depth: int, heads: int) -> Transformer:
    torch.manual_seed(SEED)
    return Transformer(width, depth, heads).eval()


def packed(model: Transformer) -> tuple:
    """The transformer as `splitwise.run` wants it: rows of any requests, attended by whoever keeps their keys."""

    def layer(block: Layer):
        def forward(z, position, attend):
            q, k, v = (x.unflatten(-1, (block.heads, -1)) for x in block.qkv(block.before(z)).chunk(3, -1))  # (n, H, d)
            q, k = (_turned(x.transpose(0, 1)[None], position[None])[0].transpose(0, 1).contiguous() for x in (q, k))
            z = z + block.out(attend(q, k, v.contiguous()).flatten(1))
            gate, value = block.up(block.between(z)).chunk(2, -1)
            return z + block.down(F.silu(gate) * value)

        return forward

    embed = lambda tokens, position: model.embed(tokens)
    return embed, [layer(block) for block in model.layers], lambda z: model.head(model.norm(z)).argmax(-1)


def machine(rank: int, folder: str, sizes: tuple[int, int, int], pipe: Connection) -> None:
    """One process of two: its tokens, and what happened when."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store, patience = f"file://{folder}/store", timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=patience)
    model, (width, depth, heads), moments = made(*sizes), sizes, list[Moment]()
    cache = Cache(1 + sum(-(-(len(prompt) + new) // PAGE) for prompt, new in PROMPTS), PAGE, heads, width // heads, layers=depth)
    splitwise.run(packed(model), [encoded("Once, before the clock runs.")], [2], cache=cache)
    dist.barrier()
    moments.append(("start", 0, 0, time.monotonic()))
    prompts, new = [encoded(prompt) for prompt, _ in PROMPTS], [new for _, new in PROMPTS]
    told = lambda event, request, number: moments.append((event, request, number, time.monotonic()))
    tokens = splitwise.run(packed(model), prompts, new, cache=cache, report=told)
    pipe.send((tokens, moments))
    dist.destroy_process_group()


def split(sizes: tuple[int, int, int]) -> tuple[list[list[int]], list[Moment]]:
    """The requests served by two processes: their tokens, and the moments of both."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        machines = [context.Process(target=machine, args=(rank, folder, sizes, pipes[rank][1])) for rank in range(2)]
        for each in machines:
            each.start()
        for _, theirs in pipes:
            theirs.close()
        (tokens, reading), (same, writing) = (ours.recv() for ours, _ in pipes)
        for each in machines:
            each.join()
    assert tokens == same
    return tokens, reading + writing


@torch.no_grad()
def alone(model: Transformer) -> list[list[int]]:
    """The tokens that one process writes, which reads the whole text anew for each and knows no cache."""
    written = []
    for prompt, new in PROMPTS:
        text = encoded(prompt)
        for _ in range(new):
            text = torch.cat([text, model(text[None])[:, -1].argmax(-1)])
        written.append(text[len(encoded(prompt)) :].tolist())
    return written


def encoded(text: str) -> Tensor:
    return torch.tensor(list(text.encode()))


def shown(moments: list[Moment]) -> Table:
    """One row per request, times in milliseconds."""
    title = "Read in one process, written in another"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("", "prompt", "new", "first token", "cache whole", "layers before", "per token"):
        table.add_column(name, justify="right", no_wrap=True)
    start = max(when for event, *_, when in moments if event == "start")
    after = {(event, request, number): 1000 * (when - start) for event, request, number, when in moments}
    for r, (prompt, new) in enumerate(PROMPTS):
        first, last = after["token", r, 0], after["token", r, new - 1]
        layers = [when for (event, request, _), when in after.items() if (event, request) == ("arrived", r)]
        whole = next(when for (event, request, _), when in after.items() if (event, request) == ("whole", r))
        early = f"{sum(when < first for when in layers)} of {len(layers)}" if layers else "none moves"
        tail = f"+{whole - first:.1f} ms" if layers else ""
        rate = f"{(last - whole) / (new - 1):.2f} ms" if new > 1 else ""
        table.add_row(str(r), str(len(prompt)), str(new), f"{first:.1f} ms", tail, early, rate)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("--width", 192), ("--depth", 6), ("--heads", 6)):
        parser.add_argument(name, type=int, default=value)
    options = parser.parse_args()
    sizes = options.width, options.depth, options.heads
    console = Console()
    tokens, moments = split(sizes)
    console.print(shown(moments))
    torch.set_num_threads(1)
    if tokens != alone(made(*sizes)):
        raise SystemExit("the tokens are not those of one process")
    console.print(f"All {sum(map(len, tokens))} tokens are those that one process writes, which reads the whole text for each.")


if __name__ == "__main__":
    main()
