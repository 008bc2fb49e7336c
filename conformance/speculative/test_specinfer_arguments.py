"""What a call may not do, what it returns where the spec would raise, and that compilers see through it."""

import pytest
import torch

from twofold.conformance import target
from twofold.fast.kernels.walk_tree import REPLACE, walk_tree

NAN, INF, LAST = float("nan"), float("inf"), 1 - 2.0**-24
with torch.device(target.device()):
    HALF, TOKENS, PARENTS = torch.full((2, 3, 4), 0.25), torch.tensor([[-1, 0, 1], [-1, 2, 2]]), torch.tensor([[-1, 0, 1], [-1, 0, 0]])


def walk(fast, p, q, drafts, accept, token=0.0):
    """One request, one level: the index of the draft that is kept, or None, and the token that is drawn after it."""
    k = len(drafts)
    rows = lambda row: torch.tensor(row, dtype=torch.float32).expand(1, k + 1, len(row))
    uniforms = {"accept": torch.tensor([accept], dtype=torch.float32), "token": torch.tensor([token])}
    path, drawn = fast.verify_tree(rows(p), rows(q), torch.tensor([[-1, *drafts]]), torch.tensor([[-1] + [0] * k]), **uniforms)
    return (path[0, 0].item() - 1 if path[0, 0] >= 0 else None), drawn.item()


def select(fast, p, q, drafts, accept, token=0.0):
    rows = torch.tensor([q]).expand(1, len(drafts), len(q))
    uniforms = {"accept": torch.tensor([accept], dtype=torch.float32), "token": torch.tensor([token])}
    drawn, accepted = fast.select(torch.tensor([p]), rows, torch.tensor([drafts]), **uniforms)
    return drawn.item(), accepted.item()


def test_a_coin_on_an_edge_refuses(fast):
    p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    assert walk(fast, p, q, [1], [0.5 - 2.0**-24])[0] == 0 and walk(fast, p, q, [1], [0.5]) == (None, 0)
    assert select(fast, p, q, [1], [0.5 - 2.0**-24]) == (1, True) and select(fast, p, q, [1], [0.5]) == (0, False)


def test_a_coin_of_zero_keeps_nothing_impossible(fast):
    assert walk(fast, [0.0, 1.0], [0.5, 0.5], [0, 0], [0.0, 0.0]) == (None, 1)
    assert select(fast, [0.0, 1.0], [0.5, 0.5], [0, 0], [0.0, 0.0]) == (1, False)


def test_a_repeated_draft_is_refused_again(fast):
    assert walk(fast, [0.25, 0.75], [0.5, 0.5], [0, 0, 1], [0.5, 0.0, LAST])[0] == 2
    assert select(fast, [0.25, 0.75], [0.5, 0.5], [0, 0, 1], [0.5, 0.0, LAST]) == (1, True)


@pytest.mark.parametrize("strange", [-1, 3, 2**40, 2])
def test_a_draft_that_q_cannot_have_drawn_is_as_if_it_were_not_there(fast, strange):
    """It takes no coin either: the first one decides about the draft after it."""
    p, q = [0.25, 0.5, 0.25], [0.75, 0.25, 0.0]
    assert walk(fast, p, q, [strange, 0], [0.0, LAST])[0] == 1 and walk(fast, p, q, [strange, 0], [LAST, 0.0]) == (None, 1)
    assert select(fast, p, q, [strange, 0], [0.0, LAST]) == (0, True) and select(fast, p, q, [strange, 0], [LAST, 0.0]) == (1, False)


@pytest.mark.parametrize(("p", "q"), [
    ([NAN, 0.25, 0.5], [0.5, 0.25, 0.25]), ([0.25, NAN, 0.5], [0.5, 0.25, 0.25]), ([0.25, 0.25, 0.5], [NAN, 0.25, 0.25]),
    ([0.25, 0.25, 0.5], [0.5, NAN, 0.25]), ([0.25, INF, 0.5], [0.5, 0.25, 0.25]), ([0.0, 0.0, 0.0], [0.5, 0.25, 0.25]),
])  # fmt: skip
def test_a_row_without_a_law_gives_minus_one_and_never_a_token(fast, p, q):
    assert walk(fast, p, q, [0, 0], [LAST, LAST], 0.5) == (None, -1)
    assert select(fast, p, q, [0, 0], [LAST, LAST], 0.5) == (-1, False)


def test_a_refusal_that_leaves_nothing_changes_nothing(fast):
    p, q = [0.5, 0.5], [0.5 + 2.0**-12, 0.5 + 2.0**-12]
    assert walk(fast, p, q, [0], [LAST], 0.75) == (None, 1) and walk(fast, p, q, [0, 1], [LAST, 0.5])[0] == 1
    assert select(fast, p, q, [0], [LAST], 0.75) == (1, False) and select(fast, p, q, [0, 1], [LAST, 0.5]) == (1, True)
    qs = torch.tensor([[[0.0, 0.0, 1.0], [0.5 + 2.0**-12, 0.5 + 2.0**-12, 0.0]]])  # with laws of their own, after a true refusal too
    uniforms = {"accept": torch.tensor([[0.5, LAST]]), "token": torch.tensor([0.75])}
    drawn, accepted = fast.select(torch.tensor([[0.5, 0.5, 0.0]]), qs, torch.tensor([[2, 0]]), **uniforms)
    assert (drawn.item(), accepted.item()) == (1, False)


def test_lengths_are_clamped_and_an_empty_batch_is_empty(fast):
    p = torch.tensor([1.0, 0.0]).expand(2, 3, 2)
    path, _ = fast.verify_tree(p, p, torch.zeros_like(TOKENS), TOKENS.new_tensor([[-1, 0, 1]] * 2), lengths=torch.tensor([-3, 9]), seed=1)
    assert path.tolist() == [[-1, -1], [1, 2]]
    _, accepted = fast.select(p[:, 0], p, torch.zeros_like(TOKENS), lengths=torch.tensor([0, 9]), seed=1)
    assert accepted.tolist() == [False, True]
    assert [tuple(x.shape) for x in fast.verify_tree(HALF[:0], HALF[:0], TOKENS[:0], PARENTS[:0], seed=1)] == [(0, 2), (0,)]
    assert [tuple(x.shape) for x in fast.select(p[:0, 0], p[:0], TOKENS[:0], seed=1)] == [(0,), (0,)]


def test_a_root_alone_draws_from_its_row(fast):
    root = HALF[:, :1], HALF[:, :1], TOKENS[:, :1], PARENTS[:, :1]
    path, token = fast.verify_tree(*root, accept=HALF[:, 0, :0], token=torch.tensor([0, 0.75]))
    assert (tuple(path.shape), token.tolist()) == ((2, 0), [0, 3])


with torch.device(target.device()):
    WRONG = {
        "p must have shape": dict(p=HALF[0]),
        "q must have shape": dict(q=HALF[:, :2]),
        "q must have the dtype": dict(q=HALF.half()),
        "tokens must have shape": dict(tokens=TOKENS[:1]),
        "parents must have the dtype": dict(parents=PARENTS.int()),
        "p must have dtype": dict(p=HALF.double(), q=HALF.double()),
        "lengths must have shape": dict(lengths=torch.zeros(3, dtype=torch.int64)),
        "q must be contiguous along its last axis": dict(q=torch.zeros(2, 4, 3).transpose(1, 2).expand(2, 3, 4)),
        "accept must have shape": dict(accept=torch.zeros(2, 3)),
        "token must have shape": dict(token=torch.zeros(2, 1)),
        "go together": dict(accept=None),
        "or a seed": dict(accept=None, token=None),
        "exclude a seed": dict(seed=1),
    }


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    right = dict(p=HALF, q=HALF, tokens=TOKENS, parents=PARENTS, accept=torch.zeros(2, 2), token=torch.zeros(2))
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify_tree(**right | WRONG[message])


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(qs=HALF[:, :2]), "drafts must have shape"), (dict(p=HALF), "p must have shape"), (dict(qs=HALF.half()), "qs must have the dtype"),
    (dict(drafts=TOKENS.double()), "drafts must have dtype"), (dict(p=HALF[:, 0, :0], qs=HALF[:, :, :0]), "V at least 1"),
    (dict(seed=None, accept=torch.zeros(2, 3)), "go together"), (dict(seed=None, token=torch.zeros(2, 1)), "token must have shape"),
])  # fmt: skip
def test_wrong_levels_are_named(fast, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.select(**dict(p=HALF[:, 0], qs=HALF, drafts=TOKENS, seed=1) | arguments)


def test_compilers_see_through(fast):
    coins = HALF[:, 0, :2].contiguous(), HALF[:, 0, :1].contiguous()
    torch.library.opcheck(walk_tree, (HALF, HALF, TOKENS, PARENTS, torch.tensor([3, 2]), *coins, REPLACE))
    for call, arguments in (
        (lambda *rows: fast.verify_tree(*rows, seed=3), (HALF, HALF, TOKENS, PARENTS)),
        (lambda *rows: fast.select(*rows, seed=3), (HALF[:, 0], HALF, TOKENS)),
    ):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert all(torch.equal(a, b) for a, b in zip(call(*arguments), compiled(*arguments), strict=True))


def test_inputs_stay_as_they_were(fast):
    p, q, tokens, parents = HALF.clone(), HALF.clone(), TOKENS.clone(), PARENTS.clone()
    fast.verify_tree(p, q, tokens, parents, lengths=torch.tensor([1, 7]), seed=1)
    fast.select(p[:, 0], q, tokens, seed=1)
    assert torch.equal(p, HALF) and torch.equal(q, HALF) and torch.equal(tokens, TOKENS) and torch.equal(parents, PARENTS)
