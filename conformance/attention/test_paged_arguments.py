"""PagedAttention: wrong arguments are named; the operator works under torch.compile; inputs are unchanged."""

import pytest
import torch

from twofold.conformance import target

cpu = pytest.mark.skipif(target.device() != "cpu", reason="no GPU: there nobody waits for a kernel to complain")


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).to(target.device(), dtype) for shape in ((2, 3, 4, 16), (5, 8, 2, 16), (5, 8, 2, 8)))
    table = torch.tensor([[3, 1, 4], [2, -1, 77]], dtype=torch.int32, device=q.device)
    return q, k, v, table, torch.tensor([20, 8], dtype=torch.int32, device=q.device)


BAD = [
    ("pool is an array", TypeError, "k_pool", lambda q, k, v, table, length: (q, k.cpu().numpy(), v, table, length)),
    ("pool without pages", ValueError, "v_pool", lambda q, k, v, table, length: (q, k, v[0], table, length)),
    ("pages of no tokens", ValueError, "page", lambda q, k, v, table, length: (q, k[:, :0], v[:, :0], table, length)),
    ("pages of k and v differ", ValueError, "v_pool", lambda q, k, v, table, length: (q, k, v[:, :4], table, length)),
    ("heads do not divide", ValueError, "q", lambda q, k, v, table, length: (q[:, :, :3], k, v, table, length)),
    ("batches differ", ValueError, "q", lambda q, k, v, table, length: (q[:1], k, v, table, length)),
    ("a length too few", ValueError, "length", lambda q, k, v, table, length: (q, k, v, table, length[:1])),
    ("table of floats", TypeError, "table", lambda q, k, v, table, length: (q, k, v, table.float(), length)),
    ("length of floats", TypeError, "length", lambda q, k, v, table, length: (q, k, v, table, length.float())),
    ("dtypes differ", TypeError, "v", lambda q, k, v, table, length: (q, k, v.half(), table, length)),
]


@pytest.mark.parametrize(("error", "name", "change"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_errors_name_the_argument(fast, error, name, change):
    with pytest.raises(error, match=name):
        fast.attention(*change(*tensors()))


@cpu
def test_blocks_and_lengths_out_of_range_are_named_on_the_cpu(fast):
    q, k, v, table, length = tensors()
    for entry in (5, -1):
        wrong = table.clone()
        wrong[0, 2] = entry
        with pytest.raises(ValueError, match=r"table must name blocks .* \(0, 2\)"):
            fast.attention(q, k, v, wrong, length)
        with pytest.raises(ValueError, match="table"):
            fast.gather(k, wrong, length)
    for lengths in ([25, 8], [-1, 8]):
        with pytest.raises(ValueError, match="length"):
            fast.attention(q, k, v, table, torch.tensor(lengths))


def test_what_entries_hold_behind_the_last_token_is_nobody_s_business(fast):
    q, k, v, table, length = tensors()
    first = fast.attention(q, k, v, table, length)
    for garbage in (0, 2**31 - 1, -(2**31)):
        table[1, 1:] = garbage
        for x, y in zip(fast.attention(q, k, v, table.long(), length.long()), first, strict=True):
            assert torch.equal(x, y)


def test_compiled_graph_is_whole_and_equal(fast):
    arguments = tensors()
    attend = lambda *x: fast.attention(*x, window=(9, 0), softcap=2.0, size=16)
    torch._dynamo.reset()
    for x, y in zip(torch.compile(attend, fullgraph=True, backend="aot_eager")(*arguments), attend(*arguments), strict=True):
        assert torch.equal(x, y)


def test_inputs_are_unchanged_and_two_runs_bit_equal(fast):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        arguments = tensors(dtype)
        first, second = fast.attention(*arguments), fast.attention(*arguments)
        assert first[0].dtype == dtype and first[1].dtype == torch.float32
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
        assert all(torch.equal(x, y) for x, y in zip(arguments, tensors(dtype), strict=True))
