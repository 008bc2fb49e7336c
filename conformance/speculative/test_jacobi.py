"""Jacobi decoding: whatever the guess, its only fixed point is the greedy text, and every iteration makes one more token final."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array, seeds
from twofold.conformance.law import Model, models
from twofold.conformance.prove import Claim
from twofold.conformance.speculative import rounds
from twofold.spec.speculative import jacobi

V, N = 3, 4
targets = models(V, N, greatest=2)  # small weights: ties are common
guesses = st.tuples(*[st.integers(0, V - 1)] * N)


def greedy(target, prompt, n):
    """One token after another: the text that Jacobi decoding must find."""
    text = list(prompt)
    for _ in range(n):
        text.append(int(np.argmax(target(text))))
    return text[len(prompt) :]


def decoded(n, target, drafter):
    """There is no drafter: guesses are zeros."""
    return lambda rng: tuple(jacobi.decode(target, [], n)[0])


greedy_text = lambda target, _: rounds.greedily(target)
CLAIMS = [Claim(f"{n} tokens", partial(decoded, n), n, claimed=greedy_text, reference=n == 2) for n in (2, 1, 3)]


def iterates(target, prompt, guess, times):
    found = [list(guess)]
    for _ in range(times):
        found.append(jacobi.iterate(target, prompt, found[-1]))
    return found


@given(targets, guesses)
def test_after_t_iterations_from_any_guess_the_first_t_tokens_are_final(target, guess):
    expected = greedy(target, [], N)
    for t, tokens in enumerate(iterates(target, [], guess, N)):
        assert tokens[:t] == expected[:t]


@given(targets)
def test_the_greedy_text_is_the_only_fixed_point(target):
    fixed = [list(guess) for guess in product(range(V), repeat=N) if jacobi.iterate(target, [], guess) == list(guess)]
    assert fixed == [greedy(target, [], N)]


@given(models(V, N + 1, greatest=2), st.integers(0, N), st.lists(st.integers(0, V - 1), max_size=1))
def test_decoding_writes_the_greedy_text_in_at_most_n_iterations(target, n, prompt):
    tokens, iterations = jacobi.decode(target, prompt, n)
    assert tokens == greedy(target, prompt, n)
    assert (iterations == 0) if n == 0 else 1 <= iterations <= n


@given(targets)
def test_a_decoded_text_is_read_off_the_iterates(target):
    """It is the first iterate of which nothing has changed but its last token; no later one differs from it."""
    tokens, iterations = jacobi.decode(target, [], N)
    found = iterates(target, [], [0] * N, N + 1)
    assert all(later == tokens for later in found[iterations:])
    assert iterations == min(t for t in range(1, N + 1) if found[t][:-1] == found[t - 1][:-1])


def test_a_right_guess_is_confirmed_at_once_and_the_worst_case_takes_n_iterations():
    zeros = lambda context: np.array([1, 0, 0])
    assert jacobi.decode(zeros, [], 5) == ([0] * 5, 1)
    cycle = lambda context: np.eye(3)[(context[-1] + 1) % 3]
    assert jacobi.decode(cycle, [0], 5) == ([1, 2, 0, 1, 2], 5)


def test_a_token_that_is_right_behind_a_wrong_one_is_not_final():
    """0 follows anything but (1, 1): the guess is right in its last place, leaves it, and comes back."""
    rows = {context: np.eye(2)[0] for n in range(3) for context in product(range(2), repeat=n)}
    target = Model(rows | {(): np.eye(2)[1], (0,): np.eye(2)[1], (1, 1): np.eye(2)[1]})
    assert greedy(target, [], 3) == [1, 0, 0]
    assert iterates(target, [], (0, 0, 0), 3) == [[0, 0, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]]


@given(models(V, N, greatest=2), st.integers(0, V - 1))
def test_the_text_ends_at_the_first_eos_of_the_greedy_text_and_at_no_other(target, eos):
    expected = greedy(target, [], N)
    tokens, iterations = jacobi.decode(target, [], N, eos=eos)
    assert tokens == (expected[: expected.index(eos) + 1] if eos in expected else expected)
    assert iterations <= len(tokens)


def test_a_nan_is_an_error_and_never_a_token():
    with pytest.raises(ValueError, match="not nan"):
        jacobi.decode(lambda context: np.array([0.0, np.nan]), [], 1)


def batched(model, vocabulary, length):
    """A model in the form that `fast` calls, rows after `tokens[b, : ends[b, i]]`, with a record of how many rows each call asked for.

    A context is a number: its tokens in base V behind a leading 1.
    """
    table = torch.full((2 * vocabulary**length, vocabulary), torch.nan)
    for context in (context for n in range(length) for context in product(range(vocabulary), repeat=n)):
        number = int("".join(map(str, (1, *context))), vocabulary) if vocabulary > 1 else len(context)
        table[number] = torch.tensor([float(x) for x in model(context)])

    def call(tokens, ends):
        number = torch.ones_like(ends)
        for place in range(tokens.shape[1]):
            number = torch.where(place < ends, number * vocabulary + tokens[:, place, None], number)
        call.asked.append(tuple(ends.shape))
        return table.to(tokens.device)[number]

    call.asked = []
    return call


@given(models(V, N + 2, greatest=2), st.integers(0, N), seeds, st.sampled_from([None, 1]))
@example(Model({c: np.eye(3)[len(c) % 3] for n in range(N + 2) for c in product(range(V), repeat=n)}), N, 1, None)
def test_texts_and_iterations_are_the_specs(fast, target, n, seed, eos):
    rng, B = np.random.default_rng(seed), 3
    prompt, lengths = rng.integers(0, V, (B, 2)), rng.integers(0, 3, B)
    texts = [prompt[b, :length].tolist() for b, length in enumerate(lengths)]
    model = batched(target, V, N + 2)
    tokens, iterations = fast.decode(model, torch.tensor(prompt), n, eos=eos, lengths=torch.tensor(lengths))
    expected = [jacobi.decode(target, text, n, eos) for text in texts]
    exactly(array(tokens), np.array([text + [-1] * (n - len(text)) for text, _ in expected], dtype=int).reshape(B, n), "tokens")
    exactly(array(iterations), np.array([count for _, count in expected]), "iterations")
    assert len(model.asked) == max(count for _, count in expected), "one call per iteration"
    for t, (rows, columns) in enumerate(model.asked):
        assert rows == sum(count > t for _, count in expected), "finished requests take no part"
        assert columns <= n - t, "what is final in every request is not computed again"
    guess = rng.integers(0, V, (B, n))
    once = fast.iterate(model, torch.tensor(prompt), torch.tensor(guess), lengths=torch.tensor(lengths))
    exactly(array(once), np.array([jacobi.iterate(target, text, guess[b]) for b, text in enumerate(texts)], dtype=int).reshape(B, n))


@given(models(2, 5), seeds)
def test_a_request_alone_is_the_request_in_a_batch(fast, target, seed):
    prompt = torch.tensor(np.random.default_rng(seed).integers(0, 2, (3, 1)))
    together = fast.decode(batched(target, 2, 5), prompt, 4)
    for b in range(3):
        alone = fast.decode(batched(target, 2, 5), prompt[b : b + 1], 4)
        assert torch.equal(alone[0][0], together[0][b]) and torch.equal(alone[1][0], together[1][b])


def test_padding_behind_a_prompt_is_never_read(fast):
    cycle = lambda tokens, ends: torch.eye(3)[(tokens.gather(1, ends - 1) + 1) % 3]
    prompt = torch.tensor([[0, 10**15], [2, 0]])
    tokens, iterations = fast.decode(cycle, prompt, 3, lengths=torch.tensor([1, 2]))
    assert tokens.tolist() == [[1, 2, 0], [1, 2, 0]] and iterations.tolist() == [3, 3]
    assert prompt.tolist() == [[0, 10**15], [2, 0]]
    assert fast.decode(cycle, prompt[:0], 3)[0].shape == (0, 3) and fast.decode(cycle, prompt, 0)[0].shape == (2, 0)
    assert fast.iterate(cycle, prompt[:, :1], torch.tensor([[1], [1]], dtype=torch.int32)).dtype == torch.int32


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(n=-1), "n must be at least 0"), (dict(prompt=torch.zeros(2)), "prompt must have shape"),
    (dict(prompt=torch.zeros(1, 1)), "prompt must have dtype"), (dict(lengths=torch.tensor([1, 2])), "lengths must have shape"),
    (dict(lengths=torch.tensor([2])), "lengths must lie in"),
    (dict(target=lambda tokens, ends: torch.full((*ends.shape, 3), torch.nan)), "holds a NaN"),
])  # fmt: skip
def test_wrong_arguments_are_named(fast, arguments, message):
    right = dict(target=lambda tokens, ends: torch.zeros(*ends.shape, 3), prompt=torch.tensor([[0]]), n=2)
    with pytest.raises((ValueError, TypeError), match=message):
        fast.decode(**right | arguments)
