"""Attention in models of the transformers library: who sees whom is what the library's own masks say, and models say the same."""

import copy

import numpy as np
import pytest
import torch
import transformers as library
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import masking_utils as masking

import twofold.transformers as ours
from twofold.conformance import inputs, target
from twofold.conformance.compare import agree, exactly
from twofold.conformance.rounding import Precision, bounded
from twofold.spec.attention import dense

ours.register()

LOCAL = 6  # of windows and chunks
SMALL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
PLAIN = {"experts_implementation": "eager"}  # which float64 passes through
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
KINDS = {
    "grouped heads": lambda: library.LlamaConfig(**SMALL),
    "windows": lambda: library.MistralConfig(**SMALL, sliding_window=LOCAL),
    "windows and caps": lambda: library.Gemma2Config(**SMALL, sliding_window=LOCAL, attn_logit_softcapping=1.5, query_pre_attn_scalar=16),
    "windows and sinks": lambda: library.GptOssConfig(**SMALL, **EXPERTS, sliding_window=LOCAL),
    "chunks": lambda: library.Llama4TextConfig(**SMALL, **EXPERTS, intermediate_size_mlp=48, attention_chunk_size=LOCAL),
}


def definition(module, q, k, v, mask, scaling, softcap=None, s_aux=None, **ignored):
    """Attention as it is written, in the dtype of the model; the library's own takes exponentials in float32."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    s = scaling * q @ k.mT
    s = (s if softcap is None else softcap * torch.tanh(s / softcap)).masked_fill(~mask, -torch.inf)
    rest = torch.full_like(s[..., :1], -torch.inf) if s_aux is None else s_aux.to(s.dtype)[:, None, None].expand(*s.shape[:3], 1)
    p = torch.softmax(torch.cat([s, rest], 3), 3)[..., :-1]
    return torch.where(mask, p, 0).matmul(v).transpose(1, 2), None


def definition_mask(*sizes, allow_is_causal_skip=False, allow_is_bidirectional_skip=False, **options):
    return masking.sdpa_mask(*sizes, allow_is_causal_skip=False, allow_is_bidirectional_skip=False, **options)


library.AttentionInterface.register("definition", definition)
library.AttentionMaskInterface.register("definition", definition_mask)


def model(kind):
    """A small random model whose logits are not all alike."""
    torch.manual_seed(0)
    network = library.AutoModelForCausalLM.from_config(KINDS[kind](), attn_implementation="eager", **PLAIN).eval()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3 if weight.ndim > 1 else 1.0)
    return network.to(target.device())


def logits(network, implementation, tokens, dtype=torch.float32, **options):
    network = copy.deepcopy(network).to(dtype)
    network.set_attn_implementation(implementation)
    with torch.no_grad():
        return network(tokens, **options).logits.double()


def demand_close(actual, wide, narrow):
    """Our float32 is at most 8 times as far from the definition in float64 as the library's eager attention, which rounds as often."""
    error, usual = (actual - wide).abs().max(), (narrow - wide).abs().max()
    assert usual < 1e-3 * wide.abs().max(), "the comparison has no teeth"
    assert error <= 8 * usual, f"{error:.2e} from the definition, where eager attention is {usual:.2e} away"


def tokens_and_padding(seed=0, batch=3, n=17, left=True):
    """Random tokens (B, T), and which of them are real."""
    rng = np.random.default_rng(seed)
    real = np.arange(n)[None, :] >= np.array([0, 5, 11])[:batch, None]
    real = real if left else real[:, ::-1].copy()
    tokens = np.where(real, rng.integers(1, 61, (batch, n)), 0)
    return inputs.tensor(tokens), inputs.tensor(real)


@st.composite
def passes(draw):
    """One forward pass: how many tokens a cache has seen, for how many sequences how many are new, which are padding, where a second
    sequence begins in the same row, and for how many more tokens a cache has room (None: it grows)."""
    past, new, batch = draw(st.integers(0, 15)), draw(st.sampled_from([1, 2, 7, 15, 20])), draw(st.integers(1, 2))
    padding = draw(st.sampled_from([None, "left", "right", "anywhere", "none"]))
    start = draw(st.integers(1, 14)) if padding is None and past == 0 and draw(st.booleans()) else None
    real = np.ones((batch, past + new), dtype=bool)
    for row in real if padding not in (None, "none") else ():
        n = draw(st.integers(0, past + new - 1))
        row[slice(0, n) if padding == "left" else slice(past + new - n, None) if padding == "right" else slice(n, n + 2)] = False
    return past, batch, new, None if padding is None else real, start, draw(st.sampled_from([None, None, 0, 4])) if start is None else None


WAYS = {  # to make a mask, and whether there is a window in it, and whether rows see what comes behind them
    "create_causal_mask": (False, False),
    "create_sliding_window_causal_mask": (True, False),
    "create_chunked_causal_mask": (False, False),
    "create_bidirectional_mask": (False, True),
    "create_bidirectional_sliding_window_mask": (True, True),
}


def mask_of(implementation, way, step):
    """What the library hands to attention."""
    past, batch, new, real, start, room = step
    windowed, two_sided = WAYS[way]
    config = KINDS["windows" if windowed else "chunks" if "chunked" in way else "grouped heads"]()
    config.is_causal, config._attn_implementation = not two_sided, implementation
    options = {"attention_mask": None if real is None else inputs.tensor(real), "cache": None}
    if past or room is not None:
        static = {} if room is None else {"max_cache_len": past + new + room}
        options["cache"] = cache = (library.DynamicCache if room is None else library.StaticCache)(config=config, **static)
        if past:
            cache.update(*torch.zeros(2, batch, 2, past, 16), 0)
    if not two_sided:
        position = np.arange(past, past + new)
        options["position_ids"] = inputs.tensor(np.where(start is not None and position >= start, position - (start or 0), position)[None])
    return getattr(masking, way)(config, torch.zeros(batch, new, 32, device=target.device()), **options)


@given(st.sampled_from(list(WAYS)), passes())
@example("create_chunked_causal_mask", (9, 1, 1, None, None, None))
@example("create_chunked_causal_mask", (5, 1, 1, None, None, None))
@example("create_sliding_window_causal_mask", (9, 1, 1, None, None, None))
@example("create_sliding_window_causal_mask", (0, 1, 20, None, None, None))
@example("create_causal_mask", (3, 2, 4, np.arange(7) >= np.array([[0], [5]]), None, None))
@example("create_causal_mask", (0, 1, 20, None, None, None))
@example("create_causal_mask", (7, 1, 20, None, None, None))
@example("create_causal_mask", (0, 1, 7, None, 4, None))
@example("create_causal_mask", (0, 1, 7, None, None, 4))
@example("create_causal_mask", (3, 1, 7, None, None, 4))
@example("create_bidirectional_mask", (0, 1, 20, None, None, None))
@example("create_bidirectional_sliding_window_mask", (0, 1, 7, None, None, None))
def test_who_sees_whom_is_what_the_librarys_masks_say(fast, way, step):
    """Tomography, through both functions: equal logits and values that name their key. Caches may forget what no window reaches."""
    windowed, two_sided = WAYS[way]
    step = (0, step[1], step[2], None if step[3] is None else step[3][:, step[0] :], None, None) if two_sided else step
    past, batch, new, *_ = step
    eager, own = (mask_of(name, way, step) for name in ("eager", "twofold"))
    keys = past + new if eager is None else eager.shape[-1]
    allowed = np.ones((batch, new, keys)) if eager is None else inputs.array(eager[:, 0] == 0).astype(float)
    q, k, v = np.zeros((batch, 1, new, 16)), np.zeros((batch, 1, keys, 16)), np.tile(np.eye(keys), (batch, 1, 1, 1))
    tensors = [inputs.tensor(x, "float32") for x in (q, k, v)]
    o, _ = ours.attention(torch.nn.Identity(), *tensors, own, sliding_window=LOCAL if windowed else None, is_causal=not two_sided)
    exactly(np.rint(inputs.array(o[:, :, 0]) * allowed.sum(2, keepdims=True)), allowed, "keys read")


@given(st.integers(0, 1000), st.sampled_from([(1, 9), (7, 7), (20, 33)]), st.booleans(), st.sampled_from(["float32", "bfloat16"]))
def test_a_call_computes_what_the_definition_says(fast, seed, sizes, masked, dtype):
    """Each head against dense attention, with the cap, the sink and the scale of the caller."""
    n_q, n_k = sizes
    arrays = inputs.values("normal", [(1, 4, n_q, 16), (1, 2, n_k, 16), (1, 2, n_k, 8)], seed, dtype)
    (sinks,) = inputs.values("normal", [(4,)], seed + 1, "float32")
    distance = np.arange(n_q)[:, None] + n_k - n_q - np.arange(n_k)
    seen = np.random.default_rng(seed).random((n_q, n_k)) < 0.5 if masked else (distance >= 0) & (distance < 5)
    mask = inputs.tensor(seen[None, None]) if masked else None
    options = {"scaling": 0.4, "softcap": 1.5, "s_aux": inputs.tensor(sinks, "float32"), "sliding_window": 5}
    o, _ = ours.attention(torch.nn.Identity(), *(inputs.tensor(x, dtype) for x in arrays), mask, **options)
    for h in range(4):
        head = arrays[0][0, h], arrays[1][0, h // 2], arrays[2][0, h // 2]
        options = {"mask": seen, "scale": 0.4, "softcap": 1.5, "sink": float(sinks[h]), "precision": Precision(dtype)}
        agree(o[0, :, h], bounded(dense.attention, *head, outputs=(dtype, "float32"), **options)[0], f"head {h}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_models_give_the_logits_of_eager_attention(fast, kind, left):
    """Padded batches; only at tokens that are real, since rows of padding see nothing and may say anything."""
    network, (tokens, real) = model(kind), tokens_and_padding(left=left)
    options = {"attention_mask": real.long()}
    wide = logits(network, "definition", tokens, torch.float64, **options)[real]
    narrow, own = (logits(network, name, tokens, **options)[real] for name in ("eager", "twofold"))
    demand_close(own, wide, narrow)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_models_write_the_same_text(fast, kind, cache):
    """Greedy, from a batch padded on the left, past the end of every window and chunk."""
    network, (tokens, real) = model(kind), tokens_and_padding()
    texts = []
    for name in ("eager", "twofold"):
        network.set_attn_implementation(name)
        how = {"max_new_tokens": 9, "do_sample": False, "cache_implementation": cache, "disable_compile": True}
        texts.append(inputs.array(network.generate(tokens, attention_mask=real.long(), **how)))
    exactly(texts[1], texts[0], "text")
    assert len({tuple(row) for row in texts[0][:, 17:]}) == 3 and len(np.unique(texts[0][:, 17:])) > 4, "the comparison has no teeth"


def test_pieces_of_a_prompt_give_the_logits_of_the_whole(fast):
    """A cache filled in pieces of 1, 5 and 11: rows stand at the end of the keys, not at their beginning."""
    network, (tokens, _) = model("windows and caps"), tokens_and_padding(batch=1)
    wide = logits(network, "definition", tokens, torch.float64)
    narrow = logits(network, "eager", tokens)
    network.set_attn_implementation("twofold")
    cache, parts = library.DynamicCache(config=network.config), []
    for part in tokens.split([1, 5, 11], 1):
        with torch.no_grad():
            parts.append(network(part, cache=cache, use_cache=True).logits.double())
    demand_close(torch.cat(parts, 1), wide, narrow)


@pytest.mark.parametrize("kind", ["grouped heads", "windows and sinks"])
def test_gradients_of_models_are_those_of_eager_attention(fast, kind):
    """Of all weights at once, in a batch with padding."""
    network, (tokens, real) = model(kind), tokens_and_padding()
    labels, gradients = tokens.masked_fill(~real | ~real.roll(1, 1), -100), []  # no row of padding is to foretell a token
    for name, dtype in (("definition", torch.float64), ("eager", torch.float32), ("twofold", torch.float32)):
        one = copy.deepcopy(network).to(dtype)
        one.set_attn_implementation(name)
        one(tokens, attention_mask=real.long(), labels=labels).loss.backward()
        gradients.append(torch.cat([weight.grad.double().flatten() for weight in one.parameters() if weight.grad is not None]))
    wide, narrow, own = gradients
    demand_close(own, wide, narrow)


def test_what_is_not_supported_is_refused():
    q = torch.zeros(1, 2, 3, 16)
    call = lambda **options: ours.attention(torch.nn.Identity(), q, q, q, **options)
    for options, error, name in (
        ({"dropout": 0.1}, ValueError, "dropout"),
        ({"position_bias": torch.zeros(1, 2, 3, 3)}, ValueError, "position_bias"),
        ({"output_attentions": True}, ValueError, "output_attentions"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, TypeError, "attention_mask"),
        ({"attention_mask": torch.ones(1, 1, 3, 2, dtype=torch.bool)}, ValueError, "attention_mask"),
        ({"attention_mask": torch.ones(1, 3, dtype=torch.bool)}, ValueError, "attention_mask"),
    ):
        with pytest.raises(error, match=name):
            call(**options)
