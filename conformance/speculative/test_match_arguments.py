"""What a call may not do, what it returns where the spec would raise, and that compilers see through it."""

import pytest
import torch

from twofold.conformance import target
from twofold.fast.kernels.walk_tree import MATCH, walk_tree

HALF = torch.full((2, 3, 4), 0.25, device=target.device())
with torch.device(target.device()):
    TOKENS, PARENTS = torch.tensor([[-1, 0, 1], [-1, 2, 2]]), torch.tensor([[-1, 0, 1], [-1, 0, 0]])


def test_a_draw_on_an_edge_belongs_to_the_later_token(fast):
    p = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]])
    for uniform, kept in ((0.25 - 2.0**-24, 1), (0.25, 0)):
        path, _ = fast.verify_tree(p, torch.tensor([[-1, 0]]), torch.tensor([[-1, 0]]), token=torch.tensor([[uniform, 0.0]]))
        assert (path >= 0).sum() == kept
        assert fast.verify(p, torch.tensor([[0]]), token=torch.tensor([[uniform, 0.0]]))[0].item() == kept


def test_a_coin_on_an_edge_refuses(fast):
    p, drafts, token = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0, 1]]), torch.tensor([0.5])
    for second, expected in ((0.5, (2, False)), (0.5 - 2.0**-24, (1, True))):  # 1/4 of the 1/2 that is left
        drawn, accepted = fast.sequential(p, drafts, accept=torch.tensor([[0.5, second]]), token=token)
        assert (drawn.item(), accepted.item()) == expected


def test_of_equal_children_the_first_is_followed(fast):
    p = torch.tensor([0.0, 1.0]).expand(1, 4, 2)
    path, _ = fast.verify_tree(p, torch.tensor([[-1, 0, 1, 1]]), torch.tensor([[-1, 0, 0, 0]]), token=torch.zeros(1, 4))
    assert path.tolist() == [[2, -1, -1]]


@pytest.mark.parametrize("row", [[float("nan"), 0.5, 0.5], [0.5, float("inf"), 0.5], [0.0, 0.0, 0.0]])
def test_a_row_without_a_law_gives_minus_one_and_never_a_token(fast, row):
    p = torch.tensor([[[0.0, 1.0, 0.0], row]])
    path, token = fast.verify_tree(p, torch.tensor([[-1, 1]]), torch.tensor([[-1, 0]]), token=torch.zeros(1, 2))
    assert (path.tolist(), token.tolist()) == ([[1]], [-1])
    assert [x.tolist() for x in fast.verify(p, torch.tensor([[1]]), token=torch.zeros(1, 2))] == [[1], [-1]]
    for drafts in ([0], [1], [2], [2, 1]):
        token, accepted = fast.sequential(p[:, 1], torch.tensor([drafts]), accept=torch.zeros(1, len(drafts)), token=torch.zeros(1))
        assert (token.tolist(), accepted.tolist()) == ([-1], [False])


def test_what_is_no_row_of_the_tree_is_never_reached(fast):
    p = torch.tensor([1.0, 0.0]).expand(1, 4, 2)
    tokens, token = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4)
    for parents, path in (([-1, 1, 3, 0], [3]), ([-1, 2, 1, 3], []), ([-1, -1, 9, -7], []), ([-1, 0, 2, 1], [1, 3])):
        found, _ = fast.verify_tree(p, tokens, torch.tensor([parents]), token=token)
        assert found[found >= 0].tolist() == path


@pytest.mark.parametrize("draft", [-1, 2, 2**40])
def test_an_id_outside_the_vocabulary_never_matches(fast, draft):
    p, token = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.zeros(1, 2)
    path, drawn = fast.verify_tree(p, torch.tensor([[-1, draft]]), torch.tensor([[-1, 0]]), token=token)
    assert (path.tolist(), drawn.tolist()) == ([[-1]], [1])
    drawn, accepted = fast.sequential(p[:, 0], torch.tensor([[draft, 1, 1]]), accept=torch.zeros(1, 3), token=token[:, 0])
    assert (drawn.tolist(), accepted.tolist()) == ([1], [True])


def test_lengths_are_clamped_and_an_empty_batch_is_empty(fast):
    p, draft = torch.tensor([1.0, 0.0]).expand(2, 3, 2), torch.zeros(2, 2, dtype=torch.int64)
    lengths = torch.tensor([-3, 9])
    assert fast.verify(p, draft, lengths=lengths, seed=1)[0].tolist() == [0, 2]
    path, _ = fast.verify_tree(p, torch.zeros_like(PARENTS), PARENTS.new_tensor([[-1, 0, 1]] * 2), lengths=lengths, seed=1)
    assert path.tolist() == [[-1, -1], [1, 2]]
    _, accepted = fast.sequential(p[:, 0], draft, lengths=lengths, seed=1)
    assert accepted.tolist() == [False, True]
    assert [tuple(x.shape) for x in fast.verify(p[:0], draft[:0], seed=1)] == [(0,), (0,)]
    assert [tuple(x.shape) for x in fast.verify_tree(HALF[:0], TOKENS[:0], PARENTS[:0], seed=1)] == [(0, 2), (0,)]
    assert [tuple(x.shape) for x in fast.sequential(p[:0, 0], draft[:0], seed=1)] == [(0,), (0,)]


def test_a_root_alone_draws_from_its_row(fast):
    path, token = fast.verify_tree(HALF[:, :1], TOKENS[:, :1], PARENTS[:, :1], token=torch.tensor([[0.0], [0.75]]))
    assert (tuple(path.shape), token.tolist()) == ((2, 0), [0, 3])


with torch.device(target.device()):
    WRONG = {
        "p must have shape": dict(p=HALF[0]),
        r"the root counts": dict(p=HALF[:, :0], tokens=TOKENS[:, :0], parents=PARENTS[:, :0]),
        "tokens must have shape": dict(tokens=TOKENS[:1]),
        "parents must have shape": dict(parents=PARENTS[:, :2]),
        "tokens must have dtype": dict(tokens=TOKENS.double()),
        "parents must have the dtype": dict(parents=PARENTS.int()),
        "p must have dtype": dict(p=HALF.double()),
        "lengths must have shape": dict(lengths=torch.zeros(3, dtype=torch.int64)),
        "contiguous along its last axis": dict(p=torch.zeros(2, 4, 3).transpose(1, 2)),
        "token must have shape": dict(token=torch.zeros(2, 2)),
        "token must have dtype": dict(token=torch.zeros(2, 3, dtype=torch.float64)),
        "or a seed": dict(token=None),
        "exclude a seed": dict(seed=1),
    }


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    right = dict(p=HALF, tokens=TOKENS, parents=PARENTS, token=torch.zeros(2, 3))
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify_tree(**right | WRONG[message])


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(p=HALF[:, :2]), r"gamma \+ 1 = 3"), (dict(lengths=torch.zeros(3, dtype=torch.int64)), "lengths must have shape"),
    (dict(draft=TOKENS[:, :2].double()), "draft must have dtype"),
])  # fmt: skip
def test_wrong_chains_are_named(fast, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify(**dict(p=HALF, draft=TOKENS[:, :2], seed=1) | arguments)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(p=HALF), "p must have shape"), (dict(p=HALF[:, 0, :0]), "V at least 1"), (dict(drafts=TOKENS.double()), "drafts must have dtype"),
    (dict(seed=None, accept=torch.zeros(2, 3)), "go together"), (dict(seed=None, token=torch.zeros(2, 1)), "token must have shape"),
])  # fmt: skip
def test_wrong_levels_are_named(fast, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fast.sequential(**dict(p=HALF[:, 0], drafts=TOKENS, seed=1) | arguments)


def test_compilers_see_through(fast):
    lengths = torch.tensor([3, 2])
    torch.library.opcheck(walk_tree, (HALF, None, TOKENS, PARENTS, lengths, HALF[:, 0, :0], HALF[:, :, 0].contiguous(), MATCH))
    for call, arguments in (
        (lambda p, tokens, parents: fast.verify_tree(p, tokens, parents, seed=3), (HALF, TOKENS, PARENTS)),
        (lambda p, draft: fast.verify(p, draft, seed=3), (HALF, TOKENS[:, :2])),
        (lambda p, drafts: fast.sequential(p, drafts, seed=3), (HALF[:, 0], TOKENS)),
    ):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert all(torch.equal(a, b) for a, b in zip(call(*arguments), compiled(*arguments), strict=True))


def test_inputs_stay_as_they_were(fast):
    p, tokens, parents = HALF.clone(), TOKENS.clone(), PARENTS.clone()
    fast.verify_tree(p, tokens, parents, lengths=torch.tensor([1, 7]), seed=1)
    fast.verify(p, tokens[:, :2], seed=1)
    fast.sequential(p[:, 0], tokens, seed=1)
    assert torch.equal(p, HALF) and torch.equal(tokens, TOKENS) and torch.equal(parents, PARENTS)
