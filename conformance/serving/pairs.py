"""A prompt machine and a token machine for tests: what runs in their processes, and a model that is exact in integers."""

import multiprocessing
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from twofold.conformance import target

__all__ = ["hand_over", "integers", "lose", "written_alone"]

VOCABULARY, WIDTH = 97, 3


def integers(layers, cat, array):
    """(embed, layers, head) whose rows are whole numbers below 97: each layer adds to a row a weighted sum of all rows so far.

    `cat` joins rows, `array` makes an array of a list; so that one text is the model in NumPy and in PyTorch.
    """

    def embed(tokens, position):
        return array([[(int(t) * 7 + (position + i) * j) % VOCABULARY for j in range(WIDTH)] for i, t in enumerate(tokens)])

    def layer(weight):
        def forward(z, cache):
            keys, values = (z, z * weight % VOCABULARY) if cache is None else (cat([cache[0], z]), cat([cache[1], z * weight % VOCABULARY]))
            start = len(keys) - len(z)
            rows = [(z[i] + values[: start + i + 1].sum(0) + keys[(start + i) // 2]) % VOCABULARY for i in range(len(z))]
            return array([[int(x) for x in row] for row in rows]), (keys, values)

        return forward

    return embed, [layer(number + 2) for number in range(layers)], lambda row: int(row.sum()) % VOCABULARY


def written_alone(model, prompt, output):
    """The tokens without any cache: the whole text is read again for each."""
    embed, layers, head = model
    text = list(prompt)
    for _ in range(output):
        z = embed(text, 0)
        for layer in layers:
            z, _ = layer(z, None)
        text.append(head(z[-1]))
    return text[len(prompt) :]


def _model(layers):
    return integers(layers, torch.cat, lambda rows: torch.tensor(rows, dtype=torch.float64))


def hand_over(fast, group, prompt, output, layers, folder):
    """One machine's tokens. The prompt machine does not begin its last layer before the first one has arrived at the token machine."""
    embed, stack, head = _model(layers)
    mark, last = Path(folder, "first-layer-has-arrived"), stack[-1]

    def patient(z, cache):
        patience = time.monotonic() + 30
        while layers > 1 and cache is None and not mark.exists():
            if time.monotonic() > patience:
                raise AssertionError("the first layer did not arrive while later ones were still to be computed")
            time.sleep(0.005)
        return last(z, cache)

    model = embed, [*stack[:-1], patient if dist.get_rank(group) == 0 else last], head
    return fast.run(model, torch.tensor(prompt), output, group=group, arrived=lambda number: mark.touch())


def lose(layers, lost, folder):
    """What the other machine says when machine `lost` dies: the prompt machine in its last layer, the token machine in its first."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    arguments = [(rank, layers, lost, folder, theirs, dict(os.environ)) for rank in range(2)]
    processes = [context.Process(target=_dying, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    try:
        return ours.recv() if ours.poll(90) else "nothing"
    finally:
        for process in processes:
            process.kill()


def _dying(rank, layers, lost, folder, pipe, environment):
    os.environ |= environment | {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    embed, stack, head = _model(layers)
    fatal = layers - 1 if lost == 0 else 0

    def dies(z, cache):
        os._exit(1)

    if rank == lost:
        stack[fatal] = dies
    with target.implementation("serving.splitwise", "torch") as fast:
        try:
            result = fast.run((embed, stack, head), torch.arange(5), 4)
        except Exception as error:  # told to the test
            result = f"{type(error).__name__}: {error}"
    pipe.send(result)


def array(rows):
    return np.array(rows, dtype=float)
