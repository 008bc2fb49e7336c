"""Counter-based uniforms (Philox 4x32-10, Salmon et al., 2011): every draw of every request has a number of its own, in whatever batch.

The contract. Key: the 64-bit seed. Counter, four 32-bit words: the position in the text at which the round begins, the request id's low
and high half, and the role in the low byte of the last word with the ordinal above it: the how-manieth draw of that role in that round.
The first output word gives u = (word >> 8) * 2^-24, one of 2^24 equally spaced numbers in [0, 1). Two draws share a number only if all of
seed, role, request, position and ordinal are the same; the batch row has no part in it.

A round emits at least one token, so no two rounds of a request begin at one position, and no draw is ever used twice. (A counter of the
drafted token's own position would not do: a coin of a refused round would come up again in the next, and where the refusal depended on
it, as in block verification, the text would lose the target's law.)

Noise that drafter and target share is the exception, since sharing is its point: it belongs to the absolute position of the token that it
picks, whatever round that is in, and its ordinal is the vocabulary id. (`gumbel_argmax` takes two output words for one number.)
"""

import torch
import triton
import triton.language as tl

from twofold.fast import backend, checks
from twofold.fast.kernels.variant import Variant

__all__ = ["ACCEPT", "DRAFT", "NOISE", "TOKEN", "tape", "uniform", "variants"]

DRAFT, ACCEPT, TOKEN, NOISE = 0, 1, 2, 3  # a draft token; keeping or refusing one; the target's own tokens; noise that both sides share

BLOCK = 256


def uniform(seed: int, role: int, request: torch.Tensor, position: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` uniforms `(B, count)`, float32, of a role in the rounds of `request` that begin at `position`; int64 `(B,)`."""
    return _uniform(seed - (1 << 64) if seed >= 1 << 63 else seed, role, request, position, count)


def tape(like, seed, request, position, *, accept, token):
    """The uniforms of a batch of rounds, `(B, n)` each: those given as `accept` and `token`, or those that the contract draws.

    `accept` and `token` are pairs (tensor `(B, n)` in float32 or None, n); `like` is a tensor of B rows on the device that is wanted.
    Request ids `(B,)` default to 0 … B - 1, and positions `(B,)` to 0.
    """
    B, device = len(like), like.device
    checks.dtypes(torch.int64, torch.int32, request=request, position=position)
    for name, (tensor, count) in (("accept", accept), ("token", token)):
        if tensor is not None:
            checks.shape(**{name: (tensor, f"{B} {count}")})
            checks.dtypes(torch.float32, **{name: tensor})
            if tensor.device != device:
                raise ValueError(f"{name} must be on the device of the rows, {device}, not on {tensor.device}")
    for name, tensor in (("request", request), ("position", position)):
        if tensor is not None:
            checks.shape(**{name: (tensor, f"{B}")})
    given = [tensor for tensor, _ in (accept, token) if tensor is not None]
    if given and (len(given) == 1 or seed is not None):
        raise ValueError("accept and token go together, and exclude a seed")
    if given:
        return accept[0], token[0]
    if seed is None:
        raise ValueError("give either the uniforms accept and token, or a seed")
    request = torch.arange(B, device=device) if request is None else request.to(device, torch.int64)
    position = torch.zeros(B, dtype=torch.int64, device=device) if position is None else position.to(device, torch.int64)
    return uniform(seed, ACCEPT, request, position, accept[1]), uniform(seed, TOKEN, request, position, token[1])


@triton.jit(do_not_specialize=["seed", "role"])
def _uniform_kernel(request, position, out, total, count, seed, role, BLOCK: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = n < total
    row = n // count
    who = tl.load(request + row, mask=inside, other=0)
    where = tl.load(position + row, mask=inside, other=0)
    what = role + ((n % count) << 8)
    low, high = (who & 0xFFFFFFFF).to(tl.uint32), ((who >> 32) & 0xFFFFFFFF).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, (where & 0xFFFFFFFF).to(tl.uint32), low, high, what.to(tl.uint32))
    tl.store(out + n, (word >> 8).to(tl.float32) * 5.9604644775390625e-08, mask=inside)  # 2^-24


@torch.library.custom_op("twofold::philox_uniform", mutates_args=())
def _uniform(seed: int, role: int, request: torch.Tensor, position: torch.Tensor, count: int) -> torch.Tensor:
    out = torch.empty(len(request), count, device=request.device)
    if not out.numel():
        return out
    if backend.triton(request):
        grid = (triton.cdiv(out.numel(), BLOCK),)
        _uniform_kernel[grid](request.contiguous(), position.contiguous(), out, out.numel(), count, seed, role, BLOCK, num_warps=4)
        return out
    what = (role + (torch.arange(count, device=request.device) << 8)).expand(len(request), count)  # (B, count)
    where, who = position[:, None].expand_as(what), request[:, None].expand_as(what)
    word = philox(seed, where, who, who >> 32, what)[0]
    return (word >> 8).float() * 2.0**-24


@_uniform.register_fake
def _(seed, role, request, position, count):
    return request.new_empty(request.shape[0], count, dtype=torch.float32)


def philox(seed: int, *counter: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The twin: ten rounds over four counter words, each a tensor of int64 of which the low 32 bits count."""
    c0, c1, c2, c3 = (word & 0xFFFFFFFF for word in counter)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high1, low1 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _product(word: torch.Tensor, constant: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low half of a 32 by 32-bit product, without passing 2^63."""
    upper, lower = word * (constant >> 16), word * (constant & 0xFFFF)  # below 2^48
    total = upper + (lower >> 16)
    return total >> 16, ((total & 0xFFFF) << 16) | (lower & 0xFFFF)


def variants():
    """Every configuration that the launcher can pick, for the ahead-of-time compile report."""
    signature = {"request": "*i64", "position": "*i64", "out": "*fp32", "total": "i32", "count": "i32", "seed": "i64", "role": "i32"}
    pointers = ("request", "position", "out")
    yield Variant("uniform", _uniform_kernel, signature | {"BLOCK": "constexpr"}, {"BLOCK": BLOCK}, {"num_warps": 4}, pointers)
