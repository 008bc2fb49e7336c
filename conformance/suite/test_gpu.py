"""What only a real device shows: the same bits in every run, CUDA graphs replayed on other inputs, rows beyond 32-bit offsets.

Each operation that a kernel carries is a function of the tensors that `tensors` makes. On a GPU the sizes fill many multiprocessors.
Elsewhere small ones go through the PyTorch twins, so that at least the operations are known to run; the laws of graphs and of far rows
wait for a device.
"""

from typing import Any

import pytest
import torch

from twofold.conformance import target
from twofold.conformance.compare import exactly
from twofold.fast import backend
from twofold.fast.attention import flash
from twofold.fast.linear_attention import gla
from twofold.fast.number_formats import bit_packing
from twofold.fast.quantization import round_to_nearest
from twofold.fast.speculative import block, chain, from_logits, greedy, match, prompt_lookup, specinfer, tree

GPU = torch.cuda.is_available() and target.device() == "cuda"
needs_gpu = pytest.mark.skipif(not GPU, reason="no GPU")
HALF = torch.bfloat16 if GPU else torch.float16


def attention(batch=2 if GPU else 1, t=777 if GPU else 40, heads=8 if GPU else 2, d=128 if GPU else 16):
    return [((batch, t, heads, d), HALF), ((batch, t, heads // 2, d), HALF), ((batch, t, heads // 2, d), HALF)]


def recurrence(batch=2 if GPU else 1, t=777 if GPU else 40, heads=8 if GPU else 2, d=128 if GPU else 16):
    return [*[((batch, t, heads, d), HALF)] * 3, ((batch, t, heads, d), "log-decay")]


def chained(batch=32 if GPU else 2, gamma=5 if GPU else 2, vocabulary=70001 if GPU else 300):
    law = ((batch, gamma, vocabulary), "law")
    return [((batch, gamma + 1, vocabulary), "law"), law, ((batch, gamma), vocabulary), ((batch, gamma), "uniform"), ((batch,), "uniform")]


def grown(batch=16 if GPU else 2, nodes=13 if GPU else 4, vocabulary=70001 if GPU else 300):
    law, uniforms = ((batch, nodes, vocabulary), "law"), [((batch, n), "uniform") for n in (nodes - 1, nodes)]
    return [law, law, ((batch, nodes), vocabulary), *uniforms]


def binary(tokens):
    """Parents of trees in which every node has two children."""
    return ((torch.arange(tokens.shape[1], device=tokens.device) - 1) // 2).expand_as(tokens)


def written(batch=16 if GPU else 2, t=3001 if GPU else 50):
    return [((batch, t), 3)]


def cached(batch=4 if GPU else 2, rows=300 if GPU else 20, heads=8 if GPU else 2, d=128 if GPU else 8):
    return [((batch, rows, heads, d), HALF)]


def committed(cache):
    return tree.commit(cache, torch.arange(2, 12, 3, device=cache.device).expand(len(cache), -1))


def projected(tokens=5, rows=1000 if GPU else 40, columns=1152 if GPU else 96):
    return [((tokens, columns), HALF), ((rows, columns), HALF)]


def gradients(form, options, *inputs):
    """What autograd returns for all floating-point inputs; the gradient that comes in is the output itself."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = form(*inputs, **options)[0]
    return torch.autograd.grad(output, inputs, output.detach())


def end_to_end(q, k, v, g):
    """The rows of a batch as sequences behind one another."""
    sequences, t = q.shape[:2]
    return gla.chunked(*(x.flatten(0, 1)[None] for x in (q, k, v, g)), cu_seqlens=torch.arange(0, sequences * t + 1, t, device=q.device))


def multiplied(x, weight, packed):
    codes, scale, zero = round_to_nearest.encode(weight, 4, 64, "zero_point", dtype=torch.float16)
    words = bit_packing.pack(codes, 4) if packed else codes
    return codes, scale, zero, words, round_to_nearest.matmul(x, words, scale, zero, 4, 64, "zero_point", packed=packed)


def multiplied_int8(x, weight):
    (x_codes, x_scale, _), (codes, scale, _) = (round_to_nearest.encode(values, 8, None, "absmax") for values in (x, weight))
    return round_to_nearest.matmul_int8(x_codes, x_scale, codes, scale)


LIMITED: dict[str, Any] = {"causal": True, "window": (200, 0), "softcap": 20.0}
OPERATIONS = {
    "attention": (attention, lambda q, k, v: flash.forward(q, k, v)),
    "causal attention with a window and a cap": (attention, lambda q, k, v: flash.forward(q, k, v, **LIMITED)),
    "attention's gradients": (attention, lambda q, k, v: gradients(flash.forward, {"causal": True}, q, k, v)),
    "gated linear attention": (recurrence, lambda q, k, v, g: gla.chunked(q, k, v, g)),
    "gated linear attention's gradients": (recurrence, lambda q, k, v, g: gradients(gla.chunked, {}, q, k, v, g)),
    "gated linear attention, packed": (recurrence, end_to_end),
    "verification": (chained, lambda p, q, draft, accept, token: chain.verify(p, q, draft, accept=accept, token=token)),
    "verification, seeded": (chained, lambda p, q, draft, *_: chain.verify(p, q, draft, seed=7)),
    "verification, one-hot": (chained, lambda p, q, draft, accept, token: chain.verify_onehot(p, draft, accept=accept, token=token)),
    "verification as a block": (chained, lambda p, q, draft, accept, token: block.verify(p, q, draft, accept=accept, token=token)),
    "verification, greedy": (chained, lambda p, q, draft, *_: greedy.verify(p, draft)),
    "verification from logits": (
        chained, lambda p, q, draft, accept, token: from_logits.verify(p, draft, q, T=0.01, k=50, mass=0.9, accept=accept, token=token)
    ),  # fmt: skip
    "a tree, by exact match": (grown, lambda p, q, tokens, coins, draws: match.verify_tree(p, tokens, binary(tokens), token=draws)),
    "a tree, by recursive rejection": (
        grown, lambda p, q, tokens, coins, draws: specinfer.verify_tree(p, q, tokens, binary(tokens), accept=coins, token=draws[:, 0])
    ),
    "an n-gram found again": (written, lambda context: prompt_lookup.draft(context, 4, 1, 8)),
    "an accepted path committed": (cached, committed),
    "4-bit product": (projected, lambda x, weight: multiplied(x, weight, packed=False)),
    "4-bit product, packed": (projected, lambda x, weight: multiplied(x, weight, packed=True)),
    "int8 product": (projected, lambda x, weight: multiplied_int8(x, weight)),
}
each_operation = pytest.mark.parametrize("shapes, operation", OPERATIONS.values(), ids=OPERATIONS)


@pytest.fixture(autouse=True)
def side():
    with backend.use("triton" if GPU else "torch"):
        yield


def tensors(shapes, seed):
    """Random tensors on the device under test: normal ones, log-decays, rows of probabilities, uniforms, ids below a number."""
    generator = torch.Generator(target.device()).manual_seed(seed)
    return [_tensor(shape, kind, generator) for shape, kind in shapes]


def _tensor(shape, kind, generator):
    if isinstance(kind, int):
        return torch.randint(kind, shape, generator=generator, device=generator.device)
    if kind == "uniform":
        return torch.rand(shape, generator=generator, device=generator.device)
    x = torch.randn(shape, generator=generator, device=generator.device)
    return x.softmax(-1) if kind == "law" else -x.abs() / 8 if kind == "log-decay" else x.to(kind)


def same(actual, expected, what):
    for i, (one, other) in enumerate(zip(*(x if isinstance(x, tuple) else (x,) for x in (actual, expected)), strict=True)):
        exactly(_bits(one), _bits(other), f"{what}, result {i}")


def _bits(x):
    return x.detach().double().cpu().numpy() if x.is_floating_point() else x.cpu().numpy()


@each_operation
def test_every_run_gives_the_same_bits(shapes, operation):
    inputs = tensors(shapes(), 1)
    first = operation(*inputs)
    for run in range(20 if GPU else 1):
        same(operation(*inputs), first, f"run {run + 2}")


@needs_gpu
@each_operation
def test_a_captured_graph_replays_on_changed_inputs(shapes, operation):
    inputs, others = tensors(shapes(), 1), tensors(shapes(), 2)
    expected = operation(*others)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compilation and the allocator's first blocks belong outside of a graph
        for _ in range(3):
            operation(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operation(*inputs)
    graph.replay()
    same(captured, operation(*inputs), "the inputs of the capture")
    for place, other in zip(inputs, others, strict=True):
        place.copy_(other)
    graph.replay()
    same(captured, expected, "changed inputs")


@needs_gpu
@each_operation
def test_rows_beyond_32_bit_offsets_are_rows_like_others(shapes, operation):
    """The second of two rows starts 2^31 elements after the first: an offset that wraps reads elsewhere. Needs about 30 GB."""
    inputs = tensors([((2, *shape[1:]), kind) for shape, kind in shapes()], 3)
    same(operation(*map(far_apart, inputs)), operation(*inputs), "rows far apart")


def far_apart(x):
    """Both rows of x in one storage, 2^31 elements apart; a few numbers stay where they are."""
    if x.numel() < 64:
        return x
    storage = torch.empty(2**31 + x[0].numel(), dtype=x.dtype, device=x.device)
    return storage.as_strided(x.shape, (2**31, *x[0].stride())).copy_(x)
