"""What a call may not do, what it returns where the spec would raise, and that compilers see through it."""

import pytest
import torch

from twofold.conformance import target
from twofold.conformance.compare import exactly
from twofold.conformance.inputs import array
from twofold.fast.kernels.row_cutoff import row_cutoff
from twofold.fast.kernels.row_stats import row_stats

with torch.device(target.device()):
    LOGITS = torch.tensor([[0.0, 2.0, 1.0, 2.0], [1.0, 0.0, 3.0, -1.0]])
    LAWLESS = torch.tensor([[torch.nan, 0.0, 1.0], [0.0, torch.nan, -torch.inf], [-torch.inf] * 3, [0.0, torch.inf, 1.0]])
    ONES = torch.ones(2)


@pytest.mark.parametrize("setting", [{}, {"T": 0}, {"k": 2, "mass": 0.5, "ratio": 0.1}])
def test_a_row_without_a_law_has_no_id_and_no_probability(fast, setting):
    for logits in (LAWLESS, torch.cat([LAWLESS, torch.full((4, 4096), -torch.inf, device=LAWLESS.device)], 1)):
        _, greatest, cut, last, total = law = fast.row(logits, **setting)
        assert last.tolist() == [-1] * 4 and all(number.isnan().all() for number in (greatest, cut, total))
        assert fast.restore(logits, law).isnan().all()
        assert fast.probability(logits, law, torch.tensor([[1, -1]] * 4, device=logits.device)).isnan().tolist() == [[True, False]] * 4
        greatest, mass, first, entropy = fast.statistics(logits)
        assert first.tolist() == [-1] * 4 and all(number.isnan().all() for number in (greatest, mass, entropy))


def test_settings_that_are_off_cut_nothing(fast):
    bare = fast.row(LOGITS)
    tensors = {"T": ONES, "k": torch.tensor([0, -1]), "mass": torch.tensor([1.0, 1.5]), "ratio": torch.tensor([0.0, -1.0])}
    for setting in (tensors, {"k": 4}, {"k": 100, "mass": 2}, {"k": torch.tensor([2**40, 4])}):
        for number, expected in zip(fast.row(LOGITS, **setting), bare, strict=True):
            exactly(array(number), array(expected))
    assert bare[2].tolist() == [-torch.inf] * 2 and bare[3].tolist() == [3, 3]


def test_settings_out_of_range_in_a_tensor_are_the_nearest_in_range(fast):
    for name, outside, nearest in (("T", -1.0, 0), ("mass", -0.5, 0), ("ratio", 1.5, 1)):
        for number, expected in zip(fast.row(LOGITS, **{name: outside * ONES}), fast.row(LOGITS, **{name: nearest}), strict=True):
            exactly(array(number), array(expected))


def test_greedy_and_sampled_rows_share_a_batch(fast):
    T = torch.tensor([0.0, 2.0], device=LOGITS.device)
    together, (greedy, sampled) = fast.row(LOGITS, T=T, k=2), (fast.row(LOGITS, T=t, k=2) for t in (0, 2))
    for number, zero, two in zip(together, greedy, sampled, strict=True):
        exactly(array(number), [array(zero)[0], array(two)[1]])
    assert [number[0].item() for number in together] == [1, 2, 2, 1, 1]


def test_an_empty_batch_is_empty(fast):
    for shape in ((0,), (0, 3), (2, 0)):
        logits = LOGITS.new_zeros(*shape, 4)
        law = fast.row(logits, T=0.5, k=2)
        assert all(number.shape == shape for number in law) and fast.restore(logits, law).shape == logits.shape
        assert all(number.shape == shape for number in fast.statistics(logits))


def test_inputs_stay_as_they_were(fast):
    logits, setting = LOGITS.clone(), {"T": ONES.clone(), "k": torch.tensor([2, 9]), "mass": ONES / 2, "ratio": ONES / 4}
    before = {name: each.clone() for name, each in setting.items()}
    law = fast.row(logits, **setting)
    kept = [number.clone() for number in law]
    fast.restore(logits, law), fast.probability(logits, law, torch.tensor([[0], [7]])), fast.statistics(logits)
    assert torch.equal(logits, LOGITS) and all(torch.equal(setting[name], before[name]) for name in setting)
    assert all(torch.equal(number, each) for number, each in zip(law, kept, strict=True))


WRONG = {
    "logits must be a tensor of shape": ("row", (LOGITS[0],)),
    "logits must have dtype": ("row", (LOGITS.double(),)),
    "V of 1": ("row", (LOGITS[:, :0],)),
    "contiguous along its last axis": ("statistics", (LOGITS.T,)),
    r"T must lie in \[0, inf\)": ("row", (LOGITS, float("inf"))),
    r"T must lie in \[0, inf\), not -1": ("row", (LOGITS, -1)),
    "k must lie": ("row", (LOGITS, 1, -1)),
    "mass must lie": ("row", (LOGITS, 1, 0, float("nan"))),
    "ratio must lie": ("row", (LOGITS, 1, 0, 1, 1.5)),
    "T must be a number or have one value per row": ("row", (LOGITS, torch.ones(3))),
    "k must be a number or have one value per row": ("row", (LOGITS, 1, torch.ones(2, 1))),
    "law must hold one number per row": ("restore", (LOGITS, (ONES, ONES, ONES, ONES, torch.ones(3)))),
    "ids must have shape": ("probability", (LOGITS, (ONES,) * 5, torch.zeros(2, dtype=torch.int64))),
    "ids must have dtype": ("probability", (LOGITS, (ONES,) * 5, torch.zeros(2, 1))),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(fast, message):
    form, arguments = WRONG[message]
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(fast, form)(*arguments)


def test_compilers_see_through(fast):
    rows = LOGITS[:, None]
    torch.library.opcheck(row_stats, (rows, ONES[:, None]))
    torch.library.opcheck(row_cutoff, (rows, ONES[:, None], torch.tensor([[2], [3]], device=rows.device), ONES[:, None] / 2, None))

    def call(logits, ids):
        law = fast.row(logits, T=0.7, k=3, mass=0.9)
        return *law, fast.probability(logits, law, ids), fast.restore(logits, law), *fast.statistics(logits)

    arguments = LOGITS, torch.tensor([[0, 3], [1, -1]], device=LOGITS.device)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(call(*arguments), compiled(*arguments), strict=True))
