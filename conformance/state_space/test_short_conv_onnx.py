"""The short convolution beside a text that nobody here wrote: the reference evaluator of ONNX's `CausalConvWithState` (operator set 27)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.state_space import short_conv

pytestmark = pytest.mark.skipif(target.device() != "cpu", reason="the reference evaluator runs on the CPU")


def evaluated(x, w, b, tail):
    """What ONNX makes of rows `(T, D)`, a filter `(W, D)`, a bias and a tail `(W - 1, D)`: outputs and tail, in float32."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    given = {"input": x.T[None], "weight": w.T[:, None], "bias": b, "past_state": tail.T[None]}
    info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    node = helper.make_node("CausalConvWithState", list(given), ["output", "present_state"])
    graph = helper.make_graph([node], "conv", [info(name) for name in given], [info("output"), info("present_state")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)])
    y, tail = ReferenceEvaluator(model).run(None, {name: x.astype(np.float32) for name, x in given.items()})
    return y[0].T, tail[0].T


@few
@given(inputs.seeds, st.sampled_from([1, 2, 3, 9]), st.sampled_from([2, 3, 4]))
def test_onnx_computes_the_same_convolution_and_tail(seed, T, W):
    x, w, b, tail = inputs.values("normal", [(T, 6), (W, 6), (6,), (W - 1, 6)], seed, "float32")
    expected = bounded(short_conv.causal, x, w, b, tail, precision=Precision("float32"))
    for actual, bound, what in zip(evaluated(x, w, b, tail), expected, ("outputs", "tail"), strict=True):
        agree(actual, bound, what, independent=True)


@few
@given(inputs.seeds, st.sampled_from([1, 2, 3, 9, 40]), st.sampled_from([2, 3, 4]))
def test_on_integers_onnx_and_the_kernel_give_the_same_bits(fast, seed, T, W):
    rng = np.random.default_rng(seed)
    x, w, b, tail = (rng.integers(-3, 4, shape).astype(float) for shape in ((T, 6), (W, 6), (6,), (W - 1, 6)))
    ours = fast.causal(*(inputs.tensor(y, "float32") for y in (x[None], w, b, tail[None])))
    for actual, expected, what in zip(ours, evaluated(x, w, b, tail), ("outputs", "tail"), strict=True):
        exactly(actual[0], expected, what)
