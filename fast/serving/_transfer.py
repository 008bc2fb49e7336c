"""The two machines of `twofold.fast.serving.splitwise.run`, each a process of a `torch.distributed` group of two."""

import queue
import threading
from collections import deque
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from twofold.fast.attention import flash

__all__ = ["PromptMachine", "TokenMachine", "blocks"]

AHEAD = 2  # caches that are on their way at a time, that of the prompt being read among them
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORM = 6  # numbers that tell what a cache is made of


class PromptMachine:
    """Reads one prompt after the other. What it sends waits for no later layer, and no layer waits for what is sent."""

    def __init__(self, model, prompt, output, group, report):
        (self.embed, self.layers, self.head), self.prompt, self.output = model, prompt, output
        self.group, self.report = group, report
        self.moving = deque()  # one list for each cache on its way: transfers, and messages that must live as long

    @torch.no_grad()
    def run(self):
        for r, tokens in enumerate(self.prompt):
            if len(self.moving) == AHEAD:
                self._settle()
            self.moving.append([])
            position = torch.arange(len(tokens), device=tokens.device)
            z, checksum = self.embed(tokens, position), torch.zeros((), dtype=torch.int64, device=tokens.device)
            for number, layer in enumerate(self.layers):
                attended: list[Tensor] = []
                z = layer(z, position, partial(self._attend, r, number, attended))
                if len(attended) != 1:
                    raise ValueError(f"model must attend once in each layer, not {len(attended)} times in layer {number}")
                checksum = _checksum(checksum, attended[0])
            first = int(self.head(z[-1:]))
            self.report("token", r, 0)
            self._send(torch.tensor([first, int(checksum)]))
            with _peer("token machine"):
                acknowledged = torch.empty(1, dtype=torch.int64)
                self.moving[-1].append((dist.irecv(acknowledged, group=self.group, group_src=1), acknowledged))
        while self.moving:
            self._settle()
        tokens = torch.empty(sum(self.output), dtype=torch.int64)
        with _peer("token machine"):
            dist.recv(tokens, group=self.group, group_src=1)
        return [part.tolist() for part in tokens.split(list(self.output))]

    def _attend(self, r, number, attended, q, k, v, **options):
        """A layer's keys and values leave before its own queries attend them. A request of one token needs none of them elsewhere."""
        message = torch.cat([k, v], -1)  # (n, Hkv, d + dv)
        attended.append(message)
        if self.output[r] > 1:
            if number == 0:
                self._send(torch.tensor(_form(len(self.layers), k, v)))
            self._send(message)
            self.report("sent", r, number)
        return flash.forward(q[None], k[None], v[None], causal=True, **options)[0][0]

    def _send(self, message):
        with _peer("token machine"):
            self.moving[-1].append((dist.isend(message, group=self.group, group_dst=1), message))

    def _settle(self):
        """The oldest cache is acknowledged, and its messages may go."""
        with _peer("token machine"):
            for work, _ in self.moving.popleft():
                work.wait()


class TokenMachine:
    """Caches arrive in a thread, one after the other, while tokens are written; `books` guards what both have to do with the cache.

    A cache bears its request's name when it is whole, not before. It is let in when there is room for all that the request will write.
    """

    def __init__(self, model, prompt, output, cache, group, report):
        (self.embed, self.layers, self.head), self.prompt, self.output = model, prompt, output
        self.cache, self.group, self.report = cache, group, report
        self.books, self.arrivals, self.stopped = threading.Condition(), queue.SimpleQueue(), False
        self.room = len(cache.pool.free)  # blocks that are not promised to anybody
        self.tokens, self.running, self.expected = [[] for _ in prompt], [], len(prompt)
        self.stream = torch.cuda.Stream(cache.k.device) if cache.k.is_cuda else None

    @torch.no_grad()
    def run(self):
        threading.Thread(target=self._fetch_all, daemon=True).start()
        try:
            while self.expected or self.running:
                self._join()
                if self.running:
                    self._step()
            with _peer("prompt machine"):
                dist.send(torch.tensor([token for tokens in self.tokens for token in tokens]), group=self.group, group_dst=0)
        finally:
            with self.books:  # after an error, what is still on its way finds the door closed
                self.stopped = True
                for r in range(len(self.prompt)):
                    for seq in (r, ("arriving", r)):
                        if seq in self.cache.pool.tables:
                            self.cache.release(seq)
                self.books.notify()
        return self.tokens

    def _join(self):
        """Whose cache is whole joins the next step; nobody is waited for while others run."""
        while self.expected and (not self.running or not self.arrivals.empty()):
            arrival = self.arrivals.get()
            if isinstance(arrival, Exception):
                raise arrival
            r, first = arrival
            self.tokens[r].append(first)
            self.expected -= 1
            if self.output[r] > 1:
                self.running.append(r)

    def _step(self):
        """One more token for everybody who runs."""
        with self.books:
            step = self.cache.extend(self.running, 1)
        position = step.length - 1
        z = self.embed(torch.tensor([self.tokens[r][-1] for r in self.running], device=position.device), position)
        for number, layer in enumerate(self.layers):
            z = layer(z, position, partial(self._attend, step, number))
        for r, token in zip(self.running, self.head(z).tolist(), strict=True):
            self.tokens[r].append(token)
            self.report("token", r, len(self.tokens[r]) - 1)
        finished = [r for r in self.running if len(self.tokens[r]) == self.output[r]]
        self.running = [r for r in self.running if r not in finished]
        with self.books:
            for r in finished:
                self.cache.release(r)
                self.room += blocks(self.cache, self.prompt[r], self.output[r])
            self.books.notify()

    def _attend(self, step, number, q, k, v, **options):
        return self.cache.attend(step, q[:, None], k[:, None], v[:, None], layer=number, **options)[0][:, 0]

    @torch.no_grad()
    def _fetch_all(self):
        """The thread's life. Its error is raised where tokens are written."""
        try:
            with torch.cuda.stream(self.stream):
                for r in range(len(self.prompt)):
                    self._fetch(r)
        except Exception as error:
            self.arrivals.put(error)

    def _fetch(self, r):
        """The cache of one request, layer by layer, and its first token."""
        cache, arrived = self.cache, 0
        checksum = torch.zeros((), dtype=torch.int64, device=cache.k.device)
        try:
            if self.output[r] > 1:
                step = self._reserve(r)
                form, expected = self._receive(FORM).tolist(), _form(len(self.layers), cache.k[0, 0], cache.v[0, 0])
                if form[1:] != expected[1:] or form[0] != len(self.prompt[r]):
                    raise ValueError(f"cache must hold (layers, heads, d, dv, dtype) as they are sent, {form[1:]}, not {expected[1:]}")
                heads, d, dv = form[2:5]
                for number in range(len(self.layers)):
                    message = self._receive(form[0], heads, d + dv, dtype=cache.k.dtype, device=cache.k.device)
                    checksum = _checksum(checksum, message)
                    self._store(step, number, *message.split([d, dv], -1))
                    arrived = number + 1
                    self.report("arrived", r, number)
            first, sent = self._receive(2).tolist()
        except ConnectionError as error:
            come = f"{arrived} of {len(self.layers)} layers of request {r} had come"
            raise ConnectionError(f"{error} when {come}; nothing of its cache is kept") from error
        if self.output[r] > 1 and int(checksum) != sent:
            raise ConnectionError(f"the cache of request {r} did not arrive as it was sent; nothing of it is kept")
        self._open(r, first)

    def _reserve(self, r):
        """Places for the prompt, once there is room for the whole request."""
        needed = blocks(self.cache, self.prompt[r], self.output[r])
        with self.books:
            self.books.wait_for(lambda: self.stopped or needed <= self.room)
            self._go_on()
            self.room -= needed
            return self.cache.extend([("arriving", r)], len(self.prompt[r]), new=True)

    def _receive(self, *shape, dtype=torch.int64, device="cpu"):
        message = torch.empty(shape, dtype=dtype, device=device)
        with _peer("prompt machine"):
            dist.recv(message, group=self.group, group_src=0)
        if self.stream:
            self.stream.synchronize()
        return message

    def _store(self, step, number, k, v):
        with self.books:
            self._go_on()
            self.cache.k[number][step.block[0], step.slot[0]] = k
            self.cache.v[number][step.block[0], step.slot[0]] = v
            if self.stream:
                self.stream.synchronize()

    def _open(self, r, first):
        """The cache gets its name, its sender hears of it, and the request may join."""
        with self.books:
            self._go_on()
            if self.output[r] > 1:
                self.cache.fork(("arriving", r), r)
                self.cache.release(("arriving", r))
        with _peer("prompt machine"):
            dist.send(torch.tensor([r]), group=self.group, group_dst=0)
        self.arrivals.put((r, first))
        self.report("whole", r, len(self.layers))

    def _go_on(self):
        if self.stopped:
            raise InterruptedError("the token machine has stopped")


@contextmanager
def _peer(name):
    """Only what the transport raises means that the other machine is lost."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(f"the {name} was lost") from error


def _form(layers, k, v):
    """What is about to move: tokens, layers, heads, d, dv, dtype."""
    return [len(k), layers, *k.shape[1:], v.shape[2], DTYPES.index(k.dtype)]


def _checksum(before, message):
    """All bits of all messages so far, in order, modulo 2^64."""
    bits = message.contiguous().view(-1).view(torch.int16 if message.itemsize == 2 else torch.int32)
    return before * 31 + bits.sum(dtype=torch.int64)


def blocks(cache, prompt, output):
    """What a request will have written at its end: its last token is never read."""
    return -(-(len(prompt) + output - 1) // cache.pool.B)
