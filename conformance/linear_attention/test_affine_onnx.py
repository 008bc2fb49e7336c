"""The core beside a text that nobody here wrote: the reference evaluator of ONNX's `LinearAttention` (operator set 27), for its four rules.

ONNX names the rules "linear", "gated", "delta" and "gated_delta"; its decays are logarithms, one per head and token or one per channel.
The evaluator computes in the format of its inputs, float32 here, step by step: so it is held to the spec within the rounding errors of the
spec's own steps, and is an implementation under test like any other.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.compare import agree, exactly
from twofold.conformance.linear_attention.battery import few
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.linear_attention import affine

RULES = "linear", "gated", "delta", "gated_delta"

pytestmark = pytest.mark.skipif(target.device() != "cpu", reason="the reference evaluator runs on the CPU")


def evaluated(rule, q, k, v, S0, g, beta, heads):
    """What ONNX makes of float32 arrays `(B, T, heads * width)`, states `(B, heads, K, V)`: outputs and final states."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    given = {"query": q, "key": k, "value": v, "past_state": S0}
    given |= {"decay": g} if rule.startswith("gated") else {}
    given |= {"beta": beta} if rule.endswith("delta") else {}
    names = [name if name in given else "" for name in ("query", "key", "value", "past_state", "decay", "beta")]
    options = {"update_rule": rule, "q_num_heads": heads, "kv_num_heads": heads, "scale": 1.0}
    node = helper.make_node("LinearAttention", names, ["output", "present_state"], **options)
    info = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "rule", [info(name) for name in given], [info("output"), info("present_state")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)])
    return ReferenceEvaluator(model).run(None, {name: x.astype(np.float32) for name, x in given.items()})


def core(rule, q, k, v, g, beta):
    """The rule as a row of the core: write keys, values, log-decays, and what the transition reads and where it writes."""
    g = g if rule.startswith("gated") else np.zeros(k.shape)
    if not rule.endswith("delta"):
        return q, k, v, g, 0 * k, 0 * k
    return q, beta * k, v, g, np.exp(g) * k, -(beta * k)


def drawn(seed, T, K, V, heads, per_channel):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: inputs.rounded(rng.standard_normal(shape), "float32")
    q, k, v, S0 = draw(T, heads, K), draw(T, heads, K), draw(T, heads, V), draw(heads, K, V)
    k = inputs.rounded(k / np.linalg.norm(k, axis=2, keepdims=True), "float32")
    g = -np.abs(draw(T, heads, K if per_channel else 1))
    return q, k, v, S0, g, inputs.rounded(rng.uniform(0, 2, (T, heads, 1)), "float32")


def flat(x):
    return x.reshape(1, len(x), -1)


@pytest.mark.parametrize("rule", RULES)
@few
@given(inputs.seeds, st.sampled_from([1, 2, 19]), st.booleans())
def test_onnx_computes_the_same_recurrence(rule, seed, T, per_channel):
    heads, K, V = 2, 5, 3
    q, k, v, S0, g, beta = drawn(seed, T, K, V, heads, per_channel)
    o, states = evaluated(rule, *map(flat, (q, k, v)), S0[None], flat(g), flat(beta), heads)
    for h in range(heads):
        rows = [x[:, h] for x in (q, k, v, np.broadcast_to(g, (T, heads, K)), beta)]
        expected = bounded(lambda *x: affine.recurrent(*core(rule, *x[:-1]), x[-1]), *rows, S0[h], precision=Precision("float32"))
        agree(o[0].reshape(T, heads, V)[:, h], expected[0], f"outputs of head {h}", independent=True)
        agree(states[0, h], expected[1], f"state of head {h}", independent=True)


@pytest.mark.parametrize("rule", RULES)
@few
@given(inputs.seeds, st.sampled_from([1, 17, 35]))
def test_on_integers_onnx_and_the_kernels_give_the_same_bits(fast, rule, seed, T):
    """Keys e_i, strengths 0, 1 and 2, gates shut or open: every sum is an integer, so that three texts have no room to differ."""
    rng, (K, V) = np.random.default_rng(seed), (5, 3)
    q, v, S0 = (rng.integers(-2, 3, shape).astype(float) for shape in ((T, K), (T, V), (K, V)))
    k, beta = np.eye(K)[rng.integers(0, K, T)], rng.integers(0, 3, (T, 1)).astype(float)
    g = np.where(rng.random((T, K)) < 0.1, -np.inf, 0.0)
    o, states = evaluated(rule, *map(flat, (q, k, v)), S0[None, None], flat(g), flat(beta), 1)
    q, write, v, g, a, b = core(rule, q, k, v, g, beta)
    rows = [inputs.tensor(x[None, :, None], "float32") for x in (q, write, v, g, a, b)]
    with torch.no_grad():
        ours = fast.chunked(*rows, inputs.tensor(S0[None, None], "float32"), 16)
    exactly(ours[0][0, :, 0], o[0], "outputs")
    exactly(ours[1][0, 0], states[0, 0], "final state")
