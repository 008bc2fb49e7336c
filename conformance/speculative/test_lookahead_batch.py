"""Lookahead on a batch: window, pool and text of every request are the spec's, step by step, greedy and on the same uniforms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.evalue import consistent
from twofold.conformance.inputs import array, seeds, tensor
from twofold.conformance.law import TARGET, autoregressive, models
from twofold.conformance.speculative.test_lookahead import V, anything, short, sizes
from twofold.conformance.tape import Certified
from twofold.fast import backend
from twofold.fast.kernels import philox
from twofold.spec.speculative import lookahead


def masked(model):
    """A spec's model in the form that `fast` calls: each token's row, from the text and the tokens that it sees; counts its calls."""

    def call(context, ends, tokens, places, mask):
        call.batches.append(len(tokens))
        context, ends, tokens, places, mask = (x.tolist() for x in (context, ends, tokens, places, mask))
        rows = []
        for b, end in enumerate(ends):
            for s, sees in enumerate(mask):
                text = context[b][:end] + [token for token, seen in zip(tokens[b], sees) if seen]
                assert places[b][s] == len(text) - 1, "a token stands behind all that it sees"
                rows.append([float(x) for x in model(text)])
        return torch.tensor(rows).view(len(ends), len(mask), -1)

    call.batches = []
    return call


def as_tensors(states, N):
    """Windows and pools of the spec as a batch; pools padded with -1."""
    windows = torch.tensor(np.array([window for window, _ in states]))
    rows = [[[first, *ngram] for first in sorted(pool) for ngram in pool[first]] for _, pool in states]
    longest = max(map(len, rows))
    padded = [each + [[-1] * N] * (longest - len(each)) for each in rows]
    return windows, torch.tensor(padded, dtype=torch.int64).view(len(states), longest, N)


def as_dictionary(pool):
    found = {}
    for first, *ngram in pool.tolist():
        if first >= 0:
            found.setdefault(first, []).append(ngram)
    return found


@given(models(V, 4, greatest=2), sizes, seeds)
def test_greedy_steps_are_the_specs(fast, target, size, seed):
    (W, N, G), target, rng, B = size, short(target), np.random.default_rng(seed), 3
    context, lengths = rng.integers(0, V, (B, 2)), rng.integers(1, 3, B)
    texts = [context[b, :length].tolist() for b, length in enumerate(lengths)]
    states = [anything(rng, W, N, G, text[-1]) for text in texts]
    model, (windows, pools) = masked(target), as_tensors(states, N)
    for steps in range(1, 4):
        width = max(map(len, texts))
        context = torch.tensor([text + [10**12] * (width - len(text)) for text in texts])  # what stands behind a text is not read
        emitted, windows, pools = fast.step(model, context, windows, pools, G, lengths=torch.tensor([len(text) for text in texts]))
        for b, text in enumerate(texts):
            new, *states[b] = lookahead.step(target, text, *states[b], G)
            exactly(array(emitted[b]), np.array(new + [-1] * (N - len(new))), "emitted")
            exactly(array(windows[b]), states[b][0], "window")
            assert as_dictionary(pools[b]) == {first: ngrams for first, ngrams in states[b][1].items() if ngrams}
            texts[b] = text + new
        assert len(model.batches) == steps, "one pass per step"


@given(sizes)
def test_the_mask_is_the_specs(fast, size):
    exactly(array(fast.mask(*size)), lookahead.mask(*size), "mask")


class Counters(Certified):
    """A tape whose uniforms are those that the contract gives to a request's position in the text."""

    def __init__(self, seed, request):
        super().__init__()
        self.seed, self.request = seed, request

    def stand_at(self, position, coins):
        uniform = lambda role, count: philox.uniform(self.seed, role, torch.tensor([self.request]), torch.tensor([position]), count)
        with backend.use("torch"):  # one position at a time is a slow way to launch a kernel
            tapes = uniform(philox.ACCEPT, coins)[0].tolist(), uniform(philox.TOKEN, 1)[0].tolist()
        fresh = Certified(*tapes)
        self.accept, self.token = fresh.accept, fresh.token


@given(models(V, 4), st.sampled_from([(1, 2, 2), (1, 3, 3)]), seeds)
def test_sampled_steps_are_the_specs_on_the_uniforms_of_each_position(fast, target, size, seed):
    (W, N, G), target, rng, B = size, short(target), np.random.default_rng(seed), 2
    texts, requests = [[int(token)] for token in rng.integers(0, V, B)], [5, 2**40]
    states = [anything(rng, W, N, G, text[-1]) for text in texts]
    windows, pools = as_tensors(states, N)
    emitted, windows, _ = fast.step(masked(target), torch.tensor(texts), windows, pools, G, seed=seed, request=torch.tensor(requests))
    for b, text in enumerate(texts):
        tape = Counters(seed, requests[b])

        def standing(context, tape=tape):  # the last row asked for before a draw is the one that is drawn from
            tape.stand_at(len(context), G)
            return target(context)

        new, window, _ = lookahead.step(standing, text, *states[b], G, tape)
        if tape.sure:
            exactly(array(emitted[b]), np.array(new + [-1] * (N - len(new))), "emitted")
            exactly(array(windows[b]), window, "window")


def test_sampled_text_follows_the_exact_law(fast):
    B = 5_000 if fast.side == "torch" else 15  # the interpreter takes a millisecond per program
    table = torch.tensor(np.array([TARGET((x,)) for x in range(3)], dtype=float), dtype=torch.float32)
    markov = lambda context, ends, tokens, places, mask: table[tokens]
    new, _ = fast.decode(markov, torch.zeros(B, 1, dtype=torch.int64), 2, 3, 2, 3, seed=8)
    consistent([tuple(text) for text in new.tolist()], autoregressive(lambda text: TARGET((0, *text)), 3))
    if B >= 5_000:
        with pytest.raises(AssertionError, match="do not follow the law"):
            consistent([tuple(text) for text in new.tolist()], autoregressive(lambda text: TARGET((0, *text[:1])), 3))


@given(models(V, 4, greatest=2), sizes, st.integers(0, 4), st.booleans(), seeds)
def test_text_and_calls_do_not_depend_on_the_batch(fast, target, size, n, sampled, seed):
    rng, keywords, n = np.random.default_rng(seed), {"seed": seed} if sampled else {}, min(n, 2) if sampled else n
    prompt, lengths, request = torch.tensor(rng.integers(0, V, (3, 2))), torch.tensor([1, 2, 1]), torch.tensor([4, 2**40, 0])
    run = lambda model, b: fast.decode(model, prompt[b], *size, n, lengths=lengths[b], request=request[b], **keywords)
    model = masked(short(target))
    new, calls = run(model, slice(None))
    assert new.shape == (3, n) and model.batches == [int((calls > t).sum()) for t in range(int(calls.max()))], "who is done takes no part"
    for b in range(3):
        alone = run(masked(short(target)), slice(b, b + 1))
        exactly(array(alone[0][0]), array(new[b]), "text")
        assert int(alone[1]) == int(calls[b])
        if not sampled:
            expected = lookahead.decode(short(target), prompt[b, : lengths[b]].tolist(), *size, n)
            assert (new[b].tolist(), int(calls[b])) == expected


def test_rows_of_candidates_that_do_not_exist_are_not_needed(fast):
    def cycle(context, ends, tokens, places, mask):
        p = torch.eye(5)[(tokens + 1) % 5]
        p[:, 4:] = torch.nan  # window 2 x 2, then the candidates
        return p

    window, pool = torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[1, 2, 3]]])
    for keywords in ({}, {"seed": 3}):
        emitted, moved, pools = fast.step(cycle, torch.tensor([[0]]), window, pool, 2, **keywords)
        assert emitted.tolist() == [[1, -1, -1]] and moved.tolist() == [[[1, 2], [3, 3]]]
        assert as_dictionary(pools[0]) == {0: [[2, 3]], 1: [[2, 3]]}
    assert window.tolist() == [[[0, 1], [2, 2]]] and pool.tolist() == [[[1, 2, 3]]]
    with pytest.raises(ValueError, match="holds a NaN"):
        fast.step(cycle, torch.tensor([[1]]), torch.tensor([[[1, 1], [2, 2]]]), pool, 2)  # now the candidate's rows count


def test_no_request_no_token_and_no_candidate_are_no_error(fast):
    model = masked(lambda context: np.array([0.0, 1.0]))
    assert fast.decode(model, torch.zeros(0, 1, dtype=torch.int64), 2, 3, 1, 4)[0].shape == (0, 4)
    assert fast.decode(model, torch.zeros(2, 1, dtype=torch.int64), 2, 3, 1, 0)[0].shape == (2, 0) and model.batches == []
    new, calls = fast.decode(model, torch.zeros(2, 1, dtype=torch.int32), 1, 2, 0, 3)
    assert new.tolist() == [[1, 1, 1]] * 2 and calls.tolist() == [3, 3]


RIGHT = dict(context=torch.tensor([[1]]), window=torch.tensor([[[1, 0]]]), pool=torch.zeros(1, 0, 2, dtype=torch.int64), G=1)
WRONG = {
    "context must have dtype": dict(context=torch.ones(1, 1)),
    "lengths must lie in": dict(lengths=torch.tensor([0])),
    "lengths must have shape": dict(lengths=torch.tensor([1, 1])),
    "request must have dtype": dict(request=torch.ones(1)),
    r"window\[b, 0, 0\]": dict(context=torch.tensor([[0]])),
    "window must have N - 1": dict(pool=torch.zeros(1, 0, 3, dtype=torch.int64)),
    "pool must have shape": dict(pool=torch.zeros(2, 0, 2, dtype=torch.int64)),
    "window must have dtype": dict(window=torch.ones(1, 1, 2)),
    "G at least 0": dict(G=-1),
    "holds a NaN": dict(target=lambda *arguments: torch.full((*arguments[2].shape, 3), torch.nan)),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.step(**dict(target=masked(lambda context: np.eye(3)[0]), **RIGHT) | WRONG[message])
    with pytest.raises(ValueError, match="n must be at least 0"):
        fast.decode(None, tensor(np.array([[1]])), 1, 2, 1, -1)
