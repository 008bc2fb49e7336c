"""Chunked prefill: every size of chunk is one causal attention, exactly so without rounding; and no batch lets anybody starve."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from twofold.conformance import inputs, target
from twofold.conformance.attention import field
from twofold.conformance.attention.problems import HEADS, visible
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense
from twofold.spec.serving import chunked_prefill as spec

chunks = st.sampled_from([5, 15, 16, 17, 32, 100])  # the interpreter's tiles have 32 rows and 16 keys


@st.composite
def prompts(draw, dtypes=("float32", "bfloat16", "float16")):
    """q, k and v (B, T, H, D), rounded to their dtype: fewer queries than keys, as many, or more; and heads that share keys."""
    heads, kv_heads = draw(st.sampled_from(HEADS))
    dtype, t_q, cached = draw(st.sampled_from(dtypes)), draw(inputs.sizes(16)), draw(st.sampled_from([-5, 0, 0, 1, 18]))
    t_k = max(t_q + cached, 0)
    shapes = [(1, t_q, heads, 12), (1, t_k, kv_heads, 12), (1, t_k, kv_heads, 7)]
    return dtype, inputs.values(draw(inputs.regimes), shapes, draw(inputs.seeds), dtype)


def causal(t_q, t_k):
    return visible(t_q, t_k, causal=True)


@given(inputs.seeds, st.integers(0, 7), st.integers(-2, 3), st.integers(1, 8))
@example(0, 5, 0, 4)
def test_chunks_are_one_causal_attention_without_rounding(seed, n_q, cached, chunk):
    """Over a prime field, the last chunk of one row, chunks of one row, and rows without keys included."""
    n_k = max(n_q + cached, 0)
    q, k, v = field.problem(seed, n_q, n_k, 2)
    field.exactly(spec.prefill(q, k, v, chunk=chunk, scale=1), dense.attention(q, k, v, mask=causal(n_q, n_k), scale=1))


@given(prompts(("float32",)), st.sampled_from([1, 2, 15, 16, 17, 32, 100]))
def test_chunks_of_the_spec_agree_with_the_definition(prompt, chunk):
    q, k, v = (x[0, :, 0] for x in prompt[1])
    expected = bounded(dense.attention, q, k, v, precision=Precision("float64", "float64"), mask=causal(len(q), len(k)))
    for actual, bound, what in zip(spec.prefill(q, k, v, chunk=chunk), expected, ("output", "log-sum-exp"), strict=True):
        agree(actual, bound, what)


@given(prompts(), chunks, inputs.layouts)
def test_chunks_agree_with_the_definition(fast, prompt, chunk, layout):
    dtype, (q, k, v) = prompt
    o, lse = fast.prefill(*(inputs.tensor(x, dtype, layout) for x in (q, k, v)), chunk=chunk)
    for h in range(q.shape[2]):
        head = h // (q.shape[2] // k.shape[2])
        mask = causal(q.shape[1], k.shape[1])
        arrays = q[0, :, h], k[0, :, head], v[0, :, head]
        expected = bounded(dense.attention, *arrays, precision=Precision(dtype), outputs=(dtype, "float32"), mask=mask)
        agree(o[0, :, h], expected[0], "output")
        agree(lse[0, h], expected[1], "log-sum-exp")


@given(inputs.sizes(16, low=1), st.sampled_from([0, 3, 20]), chunks)
@example(33, 0, 16)
@example(4, 2, 1)
def test_each_row_reads_each_key_up_to_its_own_once(fast, t_q, cached, chunk):
    """q = 0 makes every logit 0; one-hot values then show which keys a row read, and the log-sum-exp how many."""
    t_k = t_q + cached
    device = target.device()
    q, k, v = torch.zeros(1, t_q, 1, 16), torch.ones(1, t_k, 1, 16), torch.eye(t_k)[None, :, None]
    o, lse = fast.prefill(*(x.to(device).contiguous() for x in (q, k, v)), chunk=chunk)
    seen = causal(t_q, t_k)
    exactly(np.rint(inputs.array(o[0, :, 0]) * seen.sum(1, keepdims=True)), seen.astype(float), "keys")
    exactly(np.rint(np.exp(inputs.array(lse[0, 0]))), seen.sum(1).astype(float), "number of keys")


@given(prompts(), chunks)
def test_exact_sums_are_the_same_bits_for_every_chunk(fast, prompt, chunk):
    """Equal weights on small integers: every order of summation gives the same."""
    dtype, (q, k, v) = prompt
    tensors = [inputs.tensor(x, dtype) for x in (0 * q, k, np.rint(4 * np.tanh(v)))]
    for x, y in zip(fast.prefill(*tensors, chunk=chunk), fast.prefill(*tensors, chunk=1000), strict=True):
        exactly(x, y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_aligned_chunks_are_the_bits_of_one_call(fast, dtype):
    """Tiles of keys begin at position 0 in every chunk, and 128 rows are whole tiles of rows: the same sums in the same order."""
    tensors = [inputs.tensor(x, dtype) for x in inputs.values("normal", [(1, 150, 2, 12), (1, 159, 1, 12), (1, 159, 1, 7)], 5, dtype)]
    for x, y in zip(fast.prefill(*tensors, chunk=128), fast.prefill(*tensors, chunk=1000), strict=True):
        exactly(x, y)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("chunk", [4, 16])
def test_what_follows_a_chunk_is_not_read(fast, chunk):
    """NaN behind the second chunk: its rows and those before do not change by one bit."""
    shapes = [(1, 2 * chunk + 3, 2, 16), (1, 2 * chunk + 8, 1, 16), (1, 2 * chunk + 8, 1, 16)]
    q, k, v = (inputs.tensor(x, "float32") for x in inputs.values("normal", shapes, chunk))
    before = fast.prefill(q, k, v, chunk=chunk)
    end = 2 * chunk  # rows 0 … end - 1 see the keys 0 … end + 4: five more keys than queries
    k[:, end + 5 :], v[:, end + 5 :] = torch.nan, torch.nan
    after = fast.prefill(q, k, v, chunk=chunk)
    exactly(after[0][:, :end], before[0][:, :end], "output")
    exactly(after[1][..., :end], before[1][..., :end], "log-sum-exp")


@pytest.mark.parametrize(("t", "chunk", "stop"), [(4, 1, 3), (17, 8, 8), (33, 16, 32), (5, 16, 0)])
def test_a_prefill_can_be_left_after_any_chunk_and_taken_up_again(fast, t, chunk, stop):
    """Also after every token: chunks of one row are decoding."""
    q, k, v = (inputs.tensor(x, "float32") for x in inputs.values("normal", [(2, t, 2, 16), (2, t, 1, 16), (2, t, 1, 16)], t))
    first = fast.prefill(q[:, :stop], k[:, :stop], v[:, :stop], chunk=chunk)
    rest = fast.prefill(q[:, stop:], k, v, chunk=chunk)
    whole = fast.prefill(q, k, v, chunk=chunk)
    exactly(torch.cat([first[0], rest[0]], 1), whole[0], "output")
    exactly(torch.cat([first[1], rest[1]], 2), whole[1], "log-sum-exp")


def test_gradients_flow_through_chunks(fast):
    shapes = [(1, 9, 1, 8), (1, 12, 1, 8), (1, 12, 1, 8), (1, 9, 1, 8)]
    q, k, v, do = inputs.values("normal", shapes, 3, "float32")
    leaves = [inputs.tensor(x, "float32").requires_grad_() for x in (q, k, v)]
    o, _ = fast.prefill(*leaves, chunk=4)
    gradients = torch.autograd.grad(o, leaves, inputs.tensor(do, "float32"))
    arrays = [x[0, :, 0] for x in (q, k, v, do)]
    expected = bounded(dense.backward, *arrays, precision=Precision("float32"), mask=causal(9, 12))
    for gradient, bound, what in zip(gradients, expected, "qkv"):
        agree(gradient[0, :, 0], bound, f"gradient of {what}")


def test_a_compiled_prefill_is_whole_and_equal(fast):
    q, k, v = (inputs.tensor(x, "float32") for x in inputs.values("normal", [(1, 9, 2, 16), (1, 9, 1, 16), (1, 9, 1, 16)], 0))
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: fast.prefill(q, k, v, chunk=4), fullgraph=True, backend="aot_eager")
    for x, y in zip(compiled(q, k, v), fast.prefill(q, k, v, chunk=4), strict=True):
        exactly(x, y)


@pytest.mark.parametrize(
    ("error", "name", "change"),
    [
        (ValueError, "chunk", lambda q, k, v: ((q, k, v), {"chunk": 0})),
        (ValueError, "k", lambda q, k, v: ((q, k[..., :4], v), {})),
        (ValueError, "v", lambda q, k, v: ((q, k, v[:, :3]), {})),
        (TypeError, "q", lambda q, k, v: ((None, k, v), {})),
        (ValueError, "scale", lambda q, k, v: ((q, k, v), {"scale": 0.0})),
    ],
)
def test_errors_name_the_argument(fast, error, name, change):
    arguments, options = change(*(torch.ones(1, 5, 1, 8, device=target.device()) for _ in range(3)))
    with pytest.raises(error, match=name):
        fast.prefill(*arguments, **({"chunk": 2} | options))
