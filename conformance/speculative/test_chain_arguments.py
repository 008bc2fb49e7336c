"""What a call may not do, what it returns where the spec would raise, and that compilers see through it."""

import numpy as np
import pytest
import torch

from twofold.conformance import target
from twofold.conformance.inputs import tensor
from twofold.fast.kernels import philox
from twofold.fast.kernels.verify_chain import verify_chain

HALF = torch.full((2, 3, 4), 0.25, device=target.device())


def uniforms(accept=0.5, token=0.5, B=2, gamma=2):
    return {"accept": torch.full((B, gamma), float(accept)), "token": torch.full((B,), float(token))}


@pytest.mark.parametrize(("form", "coin", "kept"), [
    ("verify", 0.5, 0), ("verify", 0.5 - 2.0**-24, 1),  # p / q = 1/4 over 1/2: a coin on the edge refuses
    ("verify_lenient", 0.75, 1), ("verify_lenient", 1 - 2.0**-24, 1),  # p / (l q) = 1
    ("verify_onehot", 0.25, 0), ("verify_onehot", 0.25 - 2.0**-24, 1),
])  # fmt: skip
def test_a_coin_decides_as_written(fast, form, coin, kept):
    p, q, draft = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]), torch.tensor([[[0.5, 0.5]]]), torch.tensor([[0]])
    arguments = {"verify": (p, q, draft), "verify_lenient": (p, q, draft, 0.5), "verify_onehot": (p, draft)}[form]
    assert getattr(fast, form)(*arguments, **uniforms(coin, 0.75, 1, 1))[0].item() == kept


def test_a_coin_of_zero_keeps_nothing_impossible(fast):
    p, q = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[0.5, 0.5]]])
    assert [x.item() for x in fast.verify(p, q, torch.tensor([[0]]), **uniforms(0.0, 0.0, 1, 1))] == [0, 1]


@pytest.mark.parametrize("rows", ["p at the token", "p elsewhere", "q at the token", "q elsewhere", "bonus", "infinity", "no mass"])
def test_a_row_without_a_law_gives_minus_one_and_never_a_token(fast, rows):
    p, q, draft = HALF[:1].clone(), HALF[:1, :2].clone(), torch.tensor([[1, 2]])
    accept = 0.5 if rows == "bonus" else 1 - 2.0**-24
    p[0, 1, 2], p[0, 1, 3] = 0.125, 0.375  # refused at position 1, unless the coin is small
    if rows == "bonus":
        p[0, 2, 0], accept = torch.nan, 0.0
    elif rows == "infinity":
        p[0, 1, 3] = torch.inf
    elif rows == "no mass":
        p[0, 1] = 0
    else:
        (p if rows[0] == "p" else q)[0, 1, 2 if "at" in rows else 0] = torch.nan
    kept, token = fast.verify(p, q, draft, **uniforms(accept, B=1))
    assert (kept.item(), token.item()) == (2 if rows == "bonus" else 1, -1)


@pytest.mark.parametrize("token", [1, -1, 4, 2**40])
def test_a_token_that_q_cannot_have_drawn_is_refused(fast, token):
    q = torch.tensor([[[0.5, 0.0, 0.25, 0.25]]])
    p = torch.tensor([[[0.25, 0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    kept, drawn = fast.verify(p, q, torch.tensor([[token]]), **uniforms(0.0, 0.9, 1, 1))
    assert (kept.item(), drawn.item()) == (0, 1)
    if token not in (1,):
        assert fast.verify_onehot(p, torch.tensor([[token]]), **uniforms(0.0, 0.9, 1, 1))[0].item() == 0


def test_a_refusal_that_leaves_nothing_draws_from_the_target(fast):
    p, q = torch.full((1, 2, 2), 0.5), torch.full((1, 1, 2), 0.5 + 2.0**-12)
    kept, token = fast.verify(p, q, torch.tensor([[0]]), **uniforms(1 - 2.0**-24, 0.75, 1, 1))
    assert (kept.item(), token.item()) == (0, 1)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-24])
def test_a_token_of_probability_zero_never_comes(fast, uniform):
    p = torch.zeros(4, 1, 5000)
    for b, places in enumerate([[0], [4999], [2048, 2050], [1, 4096]]):
        p[b, 0, places] = 1 / len(places)
    kept, token = fast.verify_onehot(p, torch.zeros(4, 0, dtype=torch.int64), **uniforms(0, uniform, 4, 0))
    assert kept.tolist() == [0] * 4 and all(p[b, 0, v] > 0 for b, v in enumerate(token.tolist()))


def test_lengths_are_clamped_and_an_empty_batch_is_empty(fast):
    p, draft = HALF.expand(2, 3, 4), torch.zeros(2, 2, dtype=torch.int64)
    kept, _ = fast.verify(p, p[:, :2], draft, lengths=torch.tensor([-3, 9]), **uniforms())
    assert kept.tolist() == [0, 2]
    kept, token = fast.verify(p[:0], p[:0, :2], draft[:0], seed=1)
    assert kept.shape == token.shape == (0,)


with torch.device(target.device()):
    WRONG = {
        r"gamma \+ 1 = 3": dict(p=HALF[:, :2]),
        "q must have shape": dict(q=HALF[:1, :2]),
        "q must have dtype|q must have the dtype": dict(q=HALF[:, :2].half()),
        "p must have dtype": dict(p=HALF.double(), q=HALF[:, :2].double()),
        "draft must have shape": dict(draft=torch.zeros(2, dtype=torch.int64)),
        "draft must have dtype": dict(draft=torch.zeros(2, 2)),
        "lengths must have shape": dict(lengths=torch.zeros(3, dtype=torch.int64)),
        "accept must have shape": dict(accept=torch.zeros(2, 3)),
        "accept must have dtype": dict(accept=torch.zeros(2, 2, dtype=torch.float64)),
        "token must have shape": dict(token=torch.zeros(3)),
        "contiguous along its last axis": dict(p=torch.zeros(2, 4, 3).transpose(1, 2)),
        "go together": dict(token=None),
        "or a seed": dict(accept=None, token=None),
        "exclude a seed": dict(seed=1),
    }


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    right = dict(p=HALF, q=HALF[:, :2], draft=torch.zeros(2, 2, dtype=torch.int64), **uniforms())
    with pytest.raises((ValueError, TypeError), match=message):
        fast.verify(**right | WRONG[message])


@pytest.mark.parametrize("lenience", [0, 1.5, float("nan")])
def test_lenience_lies_in_its_range(fast, lenience):
    with pytest.raises(ValueError, match="lenience must lie in"):
        fast.verify_lenient(HALF, HALF[:, :2], torch.zeros(2, 2, dtype=torch.int64), lenience, seed=1)


def test_compilers_see_through(fast):
    draft, lengths = torch.tensor([[0, 1], [2, 3]]), torch.tensor([2, 1])
    arguments = (HALF, HALF[:, :2], draft, lengths, *uniforms().values(), 0.5)
    torch.library.opcheck(verify_chain, arguments)
    torch.library.opcheck(verify_chain, (HALF, None, draft, None, *uniforms().values(), 1.0))
    torch.library.opcheck(philox._uniform, (5, 1, lengths, lengths, 3))
    call = lambda p, q, draft: fast.verify(p, q, draft, seed=3)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(call(*arguments[:3]), compiled(*arguments[:3]), strict=True))


def test_inputs_stay_as_they_were(fast):
    p, q, draft = HALF.clone(), HALF[:, :2].clone(), torch.zeros(2, 2, dtype=torch.int64)
    fast.verify(p, q, draft, lengths=torch.tensor([1, 7]), seed=1)
    assert torch.equal(p, HALF) and torch.equal(q, HALF[:, :2]) and not draft.any()


# Philox 4x32-10: the known answers of Random123's kat_vectors (counter, key, output)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_uniforms_are_philox_of_position_request_role_and_ordinal(fast, counter, key, output):
    assert tuple(int(word) for word in philox.philox(key[0] | key[1] << 32, *(torch.tensor([c]) for c in counter))) == output
    position, low, high, role = counter
    request = np.array([(high << 32 | low)], dtype=np.uint64).astype(np.int64)
    uniform = philox.uniform(key[0] | key[1] << 32, role - (2 << 8), tensor(request), tensor(np.array([position])), 3)  # ordinal 2
    assert uniform.shape == (1, 3) and uniform[0, 2].item() == (output[0] >> 8) / 2**24
