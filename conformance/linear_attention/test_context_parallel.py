"""Context parallelism: any partition of a sequence gives what one device computes, in the simulation and in real processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.attention.ranks import Ranks, cut
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.test_affine import NAMES, exact_tokens
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine, context_parallel

few = settings(max_examples=max(settings().max_examples // 4, 3))  # processes wait for each other
cuts = st.sampled_from([[5], [4, 9], [1, 0, 7], [17, 18], [3, 17, 0, 2], [0, 1, 0, 1], [0, 0]])
GRADIENTS = (*(f"d{name}" for name in NAMES), "dS0")


def problem(seed, lengths, low_rank=True, per_channel=True):
    """Tokens, S0, d outputs and d last state, small integers."""
    rng, T = np.random.default_rng(seed), sum(lengths)
    tokens = exact_tokens(rng, T, 5, 3)
    tokens |= {} if low_rank else {"a": 0 * tokens["a"], "b": 0 * tokens["b"]}
    tokens |= {} if per_channel else {"g": np.repeat(tokens["g"][:, :1], 5, axis=1)}
    S0, dS = rng.integers(-2, 3, (2, 5, 3)).astype(float)
    return tokens, S0, rng.integers(-1, 2, (T, 3)).astype(float), dS


@given(inputs.seeds, cuts)
def test_any_partition_is_the_whole(seed, lengths):
    """Outputs, last state, the state before each piece, and all gradients, exactly; pieces may be empty."""
    tokens, S0, do, dS = problem(seed, lengths)
    whole, shards = [tokens[name] for name in NAMES], [cut(tokens[name], lengths) for name in NAMES]
    outputs, state = context_parallel.forward(*shards, S0)
    expected, last = affine.recurrent(*whole, S0)
    exactly(np.concatenate(outputs), expected, "outputs")
    exactly(state, last, "last state")
    for length, before in zip(np.cumsum([0, *lengths]), context_parallel.incoming(*shards[1:], S0), strict=True):
        exactly(before, affine.recurrent(*(x[:length] for x in whole), S0)[1], f"state after {length} tokens")
    *gradients, dS0 = context_parallel.backward(*shards, cut(do, lengths), dS, S0)
    for name, actual, value in zip(GRADIENTS, [*map(np.concatenate, gradients), dS0], affine.backward(*whole, do, dS, S0), strict=True):
        exactly(actual, value, name)


@pytest.fixture(scope="module")
def ranks(fast):
    with Ranks(fast.chapter, fast.side) as ranks:
        yield ranks


def work(fast, group, arrays, given, S0, do, dS, options):
    """One rank: outputs and last state, gradients of its rows and of S0."""
    tensor = lambda x: inputs.tensor(x, "float32", device="cpu")
    rows = [tensor(x[None, :, None]).requires_grad_() if name in given else None for name, x in zip(NAMES, arrays, strict=True)]
    first = tensor(S0[None, None]).requires_grad_()
    leaves = [x for x in (*rows, first) if x is not None]
    o, state = fast.forward(*rows, first, group=group, **options)
    gradients = torch.autograd.grad([o, state], leaves, [tensor(do[None, :, None]), tensor(dS[None, None])])
    return [inputs.array(x) for x in (o, state, *gradients)]


@few
@given(inputs.seeds, cuts, st.booleans(), st.sampled_from(["vector", "scalar", "none"]))
def test_ranks_compute_the_whole(ranks, seed, lengths, low_rank, decay):
    """Every structure of the transition. All ranks' gradients of the last state add up, and the gradient of S0 is the same on all."""
    tokens, S0, do, _ = problem(seed, lengths, low_rank, decay == "vector")
    if decay == "none":
        tokens["g"] = 0 * tokens["k"]
    narrow = tokens | {"g": tokens["g"][:, : 5 if decay == "vector" else 1]}
    present = [name for name in NAMES if not (name == "g" and decay == "none") and (low_rank or name not in "ab")]
    dS = np.random.default_rng(seed).integers(-1, 2, (len(lengths), 5, 3)).astype(float)
    shards = list(zip(*(cut(narrow[name], lengths) for name in NAMES), strict=True))
    tasks = [(list(x), present, S0, d, own, {"chunk": 16}) for x, d, own in zip(shards, cut(do, lengths), dS, strict=True)]
    results = ranks.run(work, tasks)
    whole = [tokens[name] for name in NAMES]
    expected, last = affine.recurrent(*whole, S0)
    gradients = dict(zip(GRADIENTS, affine.backward(*whole, do, dS.sum(0), S0), strict=True))
    gradients["dg"] = gradients["dg"] if decay == "vector" else gradients["dg"].sum(1, keepdims=True)
    for r, (o, state, *found) in enumerate(results):
        exactly(o[0, :, 0], cut(expected, lengths)[r], f"outputs of rank {r}")
        exactly(state[0, 0], last, f"last state on rank {r}")
        exactly(found[-1][0, 0], gradients["dS0"], f"dS0 on rank {r}")
        for name, x in zip(present, found, strict=False):
            exactly(x[0, :, 0], cut(gradients[f"d{name}"], lengths)[r], f"d{name} of rank {r}")


@pytest.mark.parametrize("low_rank", [False, True], ids=["diagonal", "with a low-rank part"])
def test_ranks_agree_on_real_values_and_a_second_run_has_the_same_bits(ranks, low_rank):
    """The bound is that of the simulation: summaries, their composition, and each piece from where it begins."""
    rng = np.random.default_rng(0)
    pieces = slice(0, 9), slice(9, 9), slice(9, 22)
    draw = lambda *shape: inputs.rounded(rng.standard_normal(shape) / 2, "float32")
    a, do, dS = draw(22, 5), draw(22, 3), draw(5, 3)
    a = inputs.rounded(a / np.linalg.norm(a, axis=1, keepdims=True), "float32") * low_rank
    whole, S0 = [draw(22, 5), draw(22, 5), draw(22, 3), -np.abs(draw(22, 5)), a, -a / 2], draw(5, 3)
    given = NAMES if low_rank else NAMES[:4]
    tasks = [([x[piece] for x in whole], given, S0, do[piece], dS, {"chunk": 16}) for piece in pieces]
    results, again = ranks.run(work, tasks), ranks.run(work, tasks)
    for one, two in zip(results, again, strict=True):
        for x, y in zip(one, two, strict=True):
            exactly(x, y, "a second run")

    def text(*rows):
        *rows, S0 = rows
        outputs, state = context_parallel.forward(*([x[piece] for piece in pieces] for x in rows), S0)
        return np.concatenate(outputs), state

    expected = bounded(text, *whole, S0, precision=Precision("float32", operand="tf32x3"))
    for bound, value in zip(expected, affine.recurrent(*whole, S0), strict=True):
        bound.value = value
    agree(np.concatenate([o[0, :, 0] for o, *_ in results]), expected[0], "outputs")
    for _, state, *_ in results:
        agree(state[0, 0], expected[1], "last state")


def refuse(fast, group, shapes, low_rank):
    k, v = (torch.zeros(shape) for shape in shapes)
    try:
        fast.incoming(k, v, None, *([k, k] if low_rank else [None, None]), group=group)
    except ValueError as error:
        return str(error)
    return "nothing"


def test_ranks_that_do_not_fit_are_told(ranks):
    narrow, wide = ((1, 3, 1, 5), (1, 3, 1, 3)), ((1, 3, 1, 5), (1, 3, 1, 4))
    for tasks in ([(narrow, False), (wide, False)], [(narrow, False), (narrow, True)]):
        for answer in ranks.run(refuse, tasks):
            assert answer.startswith("k_shards and v_shards must differ"), answer


def test_without_processes_the_error_says_what_is_missing(fast):
    x = torch.zeros(1, 3, 1, 5)
    with pytest.raises(RuntimeError, match="init_process_group"):
        fast.forward(x, x, x, None, None, None)
