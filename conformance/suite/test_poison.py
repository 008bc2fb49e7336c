"""Each kind of poison catches its planted offender, and leaves the innocent alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs
from twofold.conformance.compare import exactly
from twofold.conformance.poison import guarded, nan_outside, poison_of, poisoned_empty

FLOATS, INTEGERS = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], [torch.int8, torch.int32, torch.int64, torch.bool]
dtypes = st.sampled_from(FLOATS + INTEGERS)


@given(dtypes, st.sampled_from(["contiguous", "transposed", "sliced", "offset", "empty"]))
def test_an_innocent_block_passes_and_its_writes_arrive(dtype, layout):
    x = inputs.tensor(torch.arange(24).view(2, 3, 4).numpy(), layout=layout) if layout != "empty" else torch.zeros(2, 0, 4)
    x = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x.to(dtype))
    expected = x.flip(0).clone()
    with guarded(x) as inside:
        assert inside.stride() == x.stride() and inside.dtype == dtype
        exactly(inside.float().cpu().numpy(), x.float().cpu().numpy(), "values inside")
        inside.copy_(expected)
    exactly(x.float().cpu().numpy(), expected.float().cpu().numpy(), "values copied back")


@pytest.mark.parametrize("offset, words", [(-1, "4 bytes before its start"), (24, "96 bytes after its start")])
def test_a_write_beside_the_tensor_is_caught(offset, words):
    with pytest.raises(AssertionError, match=words), guarded(torch.zeros(2, 3, 4)) as inside:
        inside.as_strided((1,), (1,), inside.storage_offset() + offset).fill_(1)


def test_a_write_between_the_rows_is_caught():
    with pytest.raises(AssertionError, match="16 bytes after its start"), guarded(torch.zeros(3, 8)[:, :4]) as inside:
        inside.as_strided((5,), (1,), inside.storage_offset()).fill_(1)


def test_an_error_inside_is_not_hidden():
    with pytest.raises(ZeroDivisionError), guarded(torch.zeros(4)):
        raise ZeroDivisionError


def forgets_the_last_row(x):
    out = torch.empty_like(x)
    out[:-1] = x[:-1]
    return out


def test_an_output_that_was_never_written_is_poison():
    with poisoned_empty():
        out = forgets_the_last_row(torch.ones(3, 4))
        made = [torch.empty(3), torch.ones(2).new_empty(3), torch.empty_strided((3,), (1,)), torch.empty_like(torch.ones(3)).bfloat16()]
        whole = torch.empty(3, dtype=torch.int32)
    assert out[-1].isnan().all() and (out[:-1] == 1).all()
    assert all(x.isnan().all() for x in made)
    assert (whole == torch.iinfo(torch.int32).max).all()


@pytest.mark.parametrize("before", [False, True])
def test_the_mode_is_given_back(before):
    torch.use_deterministic_algorithms(before)
    try:
        with pytest.raises(ZeroDivisionError), poisoned_empty():
            raise ZeroDivisionError
        assert torch.are_deterministic_algorithms_enabled() is before
    finally:
        torch.use_deterministic_algorithms(False)


@given(dtypes)
def test_what_is_outside_is_poison_and_the_rest_is_as_it_was(dtype):
    x = torch.arange(24).view(2, 3, 4).transpose(1, 2).to(dtype)
    valid = torch.tensor([[True, True, False, True], [False, True, True, True]])
    poisoned = nan_outside(x, valid)
    assert poisoned.stride() == x.stride() and poisoned.dtype == dtype
    exactly(poisoned[valid].float().numpy(), x[valid].float().numpy(), "valid")
    bad = poisoned[~valid].float()
    assert bad.isnan().all() if dtype.is_floating_point else (bad == float(poison_of(dtype))).all()


def test_a_reader_of_the_padding_is_caught():
    x, valid = torch.ones(4, 2), torch.tensor([True, True, True, False])
    poisoned = nan_outside(x, valid)
    assert poisoned.mean().isnan()  # reads all four rows
    assert torch.where(valid[:, None], poisoned, 0.0).sum() / 6 == 1  # reads three
