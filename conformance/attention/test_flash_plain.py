"""FlashAttention-2 as most models call it, no window and no cap, heads as wide as their values: what libraries have a kernel for."""

import numpy as np
import pytest

from twofold.conformance import inputs
from twofold.conformance.attention.problems import Problem
from twofold.conformance.attention.test_flash_backward import expected, run, stored
from twofold.conformance.compare import agree, exactly
from twofold.spec.attention import dense

SIZES = [(33, 33, True), (33, 33, False), (1, 40, True), (20, 33, False), (20, 33, True), (33, 20, True), (130, 130, True)]


def problem(t_q, t_k, causal, sink, dtype, heads=(4, 2)):
    shapes = [(2, t_q, heads[0], 16), (2, t_k, heads[1], 16), (2, t_k, heads[1], 16), (2, t_q, heads[0], 16), (2, heads[0], t_q)]
    arrays = inputs.values("normal", shapes, t_q + t_k, dtype)
    (z,) = inputs.values("normal", [(heads[0],)], 1, "float32")
    return Problem(*arrays, z if sink else None, dtype, {"causal": causal, "window": None, "softcap": None})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sink", [False, True], ids=["", "sink"])
@pytest.mark.parametrize(("t_q", "t_k", "causal"), SIZES)
def test_results_and_gradients_agree_with_the_definition(fast, t_q, t_k, causal, sink, dtype):
    case = problem(t_q, t_k, causal, sink, dtype)
    o, lse = stored(fast, case)
    dq, dk, dv, _, dsink = run(fast, case, o, lse, dlse=False)
    reference = expected(case, o, lse, dlse=False)
    for b, h, _ in case.heads:
        bounds = case.bounds(dense.attention, b, h, h // 2, outputs=(dtype, "float32"))
        agree(o[b, :, h], bounds[0], "output")
        agree(lse[b, h], bounds[1], "log-sum-exp")
        agree(dq[b, :, h], reference[0][b, h], "dq")
        if sink:
            agree(dsink[h], reference[2][h], "dsink")
    for b in range(2):
        for h in range(2):
            agree(dk[b, :, h], reference[1][b, h][0], "dk")
            agree(dv[b, :, h], reference[1][b, h][1], "dv")


@pytest.mark.parametrize(("t_q", "t_k", "causal"), SIZES)
def test_rows_are_blind_to_what_they_may_not_see(fast, t_q, t_k, causal):
    """Keys behind a row may be NaN and their values anything finite: not one bit of the row changes."""
    case = problem(t_q, t_k, causal, False, "float32")
    before = stored(fast, case)
    for row in (0, t_q // 2):
        unseen = ~case.mask[row]
        case = problem(t_q, t_k, causal, False, "float32")
        case.k[:, unseen], case.v[:, unseen] = np.nan, 2.0**100
        after = stored(fast, case)
        exactly(after[0][:, row], before[0][:, row], "output")
        exactly(after[1][:, :, row], before[1][:, :, row], "log-sum-exp")
