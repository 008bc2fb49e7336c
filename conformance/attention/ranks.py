"""Real processes on this machine, joined by gloo on CPU tensors, for tests of what runs over `torch.distributed`.

    with Ranks("attention.ring", side) as ranks:
        results = ranks.run(attend, [arguments of rank 0, arguments of rank 1])

A task is a function of a module, called in each process with the implementation under test and a group of as many ranks as there are
arguments: the last ones of all, so that a rank in the group is not a rank of the world. A rank that fails ends the run with its error; the
processes are started anew for the next.
"""

import multiprocessing
import os
import tempfile
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from twofold.conformance import inputs, target

__all__ = ["Ranks", "attend", "cut", "refuse", "stripes"]

MOST, SECONDS = 4, 60


def cut(x, lengths, axis=0):
    """Contiguous shards of these lengths."""
    return np.split(x, np.cumsum(lengths)[:-1], axis)


def stripes(x, size, axis=0):
    return [np.take(x, np.arange(r, x.shape[axis], size), axis) for r in range(size)]


def attend(fast, group, form, arrays, dtype, options):
    """One rank's results of `fast.ring`: output, log-sum-exp, and the gradients, by autograd and by `backward`; all float64 arrays."""
    *given, do, dlse = (inputs.tensor(x, d, device="cpu") for x, d in zip(arrays, [dtype] * 4 + ["float32"], strict=True))
    leaves = [x.requires_grad_() for x in given]
    before = [x.detach().clone() for x in leaves]
    o, lse = getattr(fast, form)(*leaves, group=group, **options)
    by_autograd = torch.autograd.grad([o, lse], leaves, [do, dlse])
    stored = [x.detach() for x in (*leaves, o, lse)]
    layout = options if form == "forward" else options | {"stripes": True}
    gradients = fast.backward(*stored, do, dlse_shards=dlse, group=group, **layout)
    unchanged = all(torch.equal(x, y) for x, y in zip(leaves, before))
    return [inputs.array(x) for x in (o, lse, *gradients, *by_autograd)], str(o.dtype), unchanged


def refuse(fast, group, shapes, options):
    """The error that one rank's call raises, as text."""
    try:
        fast.forward(*(torch.zeros(shape) for shape in shapes), group=group, **options)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Ranks:
    """Up to four processes, started when they are first needed."""

    def __init__(self, chapter, side):
        self.chapter, self.side, self.pipes, self.processes = chapter, side, [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(1)
            process.kill()  # if it still waits for another
        if self.processes:
            self.folder.cleanup()
        self.pipes, self.processes = [], []

    def run(self, task, arguments):
        """The results of all ranks of a group of `len(arguments)`, in their order."""
        if not self.processes:
            self._start()
        pipes = self.pipes[MOST - len(arguments) :]
        for pipe, mine in zip(pipes, arguments, strict=True):
            pipe.send((task, len(arguments), mine))
        results = []
        for rank, pipe in enumerate(pipes):
            try:
                problem, result = pipe.recv() if pipe.poll(SECONDS) else (f"no answer for {SECONDS} seconds", None)
            except EOFError:
                problem, result = "the process died", None
            if problem:
                self.__exit__()
                raise AssertionError(f"rank {rank} of {len(arguments)}: {problem}")
            results.append(result)
        return results

    def _start(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "triton", "hypothesis"])  # nothing that a test may have changed
        self.folder = tempfile.TemporaryDirectory(prefix="twofold-ranks-", ignore_cleanup_errors=True)
        for rank in range(MOST):
            ours, theirs = context.Pipe()
            arguments = rank, f"file://{self.folder.name}/store", self.chapter, self.side, theirs, dict(os.environ)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)


def _serve(rank, store, chapter, side, pipe, environment):
    """One process: run tasks until the other end of the pipe is closed."""
    os.environ |= environment | {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if interpreted:
        from twofold.conformance import interpreter

        interpreter.install()
    side = side if interpreted or target.target() != target.OURS else "torch"  # no kernel runs on CPU tensors elsewhere
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=MOST, timeout=timedelta(seconds=SECONDS))
    groups = {size: dist.new_group(range(MOST - size, MOST)) for size in range(1, MOST)} | {MOST: None}  # all ranks are the default
    with target.implementation(chapter, side) as fast:
        while True:
            try:
                task, size, arguments = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(("", task(fast, groups[size], *arguments)))
            except Exception as error:  # told to the test, which raises it
                pipe.send((f"{type(error).__name__}: {error}", None))
