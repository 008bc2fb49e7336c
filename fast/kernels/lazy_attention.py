"""Tiled attention that rescales late and may take its exponentials from multiplications: Triton kernels and their PyTorch twins.

The walk over tiles is that of `tiled_attention`. A row keeps its reference while its maximum runs at most tau powers of two ahead, and a
tile in which every row does so leaves the output alone. Keys come in stretches of STRETCH; in every n-th of them, counted from key 0,
exponentials are polynomials. A tile lies within one stretch, so that a program goes one way or the other for all of it, and which way is a
matter of the key's position only: not of the tile's mask, nor of how many queries there are.

The integer part of an exponent is added to the exponent field of the polynomial. For -127 that leaves a field of 0, and 0 for anything that
is not above -127: a masked logit needs no special case.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from twofold.fast import backend
from twofold.fast.kernels import tiled_attention as tiled
from twofold.fast.kernels.tiled_attention import LN2, _allowed, _part, _program, _reach, _tile
from twofold.fast.kernels.tiled_attention_config import configuration
from twofold.fast.kernels.tiled_attention_torch import _as, _blocks, _heads_first, _rows, _scores, _tiles
from twofold.fast.kernels.variant import Variant

__all__ = ["POLYNOMIALS", "STRETCH", "exp2", "exp2_polynomial", "forward", "variants"]

STRETCH = tl.constexpr(128)
BLOCK = 1024
POLYNOMIALS = {  # from the highest power to the first; 2^0 is 1
    1: (0.922497093677520751953125,),
    2: (0.330107033252716064453125, 0.6657850742340087890625),
    3: (0.077119089663028717041015625, 0.227564394474029541015625, 0.695146143436431884765625),
    4: (0.013434938155114650726318359375, 0.052225358784198760986328125, 0.2412912547588348388671875, 0.693042695522308349609375),
    5: (0.00186810153536498546600341796875, 0.00901452265679836273193359375, 0.055802188813686370849609375, 0.24016360938549041748046875,
        0.693151414394378662109375),
}  # fmt: skip
A3, B3, C3 = (tl.constexpr(c) for c in POLYNOMIALS[3])


@triton.jit
def exp2_polynomial(x, DEGREE: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr, E: tl.constexpr):
    """2^x for x up to 127; A … are the coefficients of the DEGREE-th power, the one below it, ….."""
    x = tl.maximum(x, -127.0)
    n = tl.floor(x)
    f = x - n
    p = f * A
    if DEGREE > 1:
        p = (p + B) * f
    if DEGREE > 2:
        p = (p + C) * f
    if DEGREE > 3:
        p = (p + D) * f
    if DEGREE > 4:
        p = (p + E) * f
    return ((p + 1.0).to(tl.int32, bitcast=True) + (n.to(tl.int32) << 23)).to(tl.float32, bitcast=True)


@triton.jit
def _exp2_kernel(
    x, y, count, DEGREE: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + index, mask=index < count, other=0.0)
    tl.store(y + index, exp2_polynomial(value, DEGREE, A, B, C, D, E), mask=index < count)


@triton.jit
def _exponential(x, at, EVERY: tl.constexpr):
    """2^x for the logits of a tile that begins at key `at`."""
    if EVERY == 0:
        return tl.exp2(x)
    elif EVERY == 1:
        return exp2_polynomial(x, 3, A3, B3, C3, 0.0, 0.0)
    else:
        if at // STRETCH % EVERY == 0:
            p = exp2_polynomial(x, 3, A3, B3, C3, 0.0, 0.0)
        else:
            p = tl.exp2(x)
        return p


@triton.jit
def _absorb(
    m, l, acc, q, position, k, v, stride_kt, stride_vt, start, stop, seen, t_k, left, right, factor, tau,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, EVERY: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys start … stop: reference, sum and unnormalized output."""
    lane = tl.arange(0, BLOCK_K)
    for at in range(start, stop, BLOCK_K):
        keys = _tile(k, stride_kt, at, lane, seen, t_k, tl.arange(0, D_PAD), D, D_PAD, EDGE)  # (BLOCK_K, D)
        s = tl.dot(q, tl.trans(keys), input_precision="ieee")  # (BLOCK_Q, BLOCK_K)
        if EDGE:
            s = tl.where(_allowed(position[:, None], (at + lane)[None, :], t_k, left, right, LEFT, RIGHT), s, float("-inf"))
        highest = tl.maximum(m, tl.max(s, 1))
        ahead = (m - tl.where(highest == float("-inf"), 0.0, highest)) * factor  # at most 0; -inf where nothing has been seen yet
        keeps = ahead >= -tau
        m_new = tl.where(keeps, m, highest)
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = _exponential(s * factor - (m_safe * factor)[:, None], at, EVERY)
        rescale = tl.exp2(m * factor - m_safe * factor)
        l = l * rescale + tl.sum(p, 1)
        if tl.min(keeps.to(tl.int32), 0) == 0:
            acc = acc * rescale[:, None]
        values = _tile(v, stride_vt, at, lane, seen, t_k, tl.arange(0, DV_PAD), DV, DV_PAD, EDGE)  # (BLOCK_K, DV)
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision="ieee")
        m = m_new
    return m, l, acc


@triton.jit
def _forward_kernel(
    q, k, v, o, lse,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, t_q, t_k, left, right, factor, tau,
    D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr, DV_PAD: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    b, h, block, _, _, _, _ = _program(None, t_q, t_k, t_q, heads, BLOCK_Q, True, False)
    k += b * stride_kb + h // group * stride_kh
    v += b * stride_vb + h // group * stride_vh
    lane = tl.arange(0, BLOCK_Q)
    row = block * BLOCK_Q + lane
    offset = t_k - t_q
    seen = tl.maximum(offset - left, 0) if LEFT else 0  # the first key that any row of the sequence sees
    queries = _tile(
        q + b * stride_qb + h * stride_qh, stride_qt, block * BLOCK_Q, lane, 0, t_q, tl.arange(0, D_PAD), D, D_PAD, True
    )  # (BLOCK_Q, D)
    first = block * BLOCK_Q + offset
    last = tl.minimum(block * BLOCK_Q + BLOCK_Q, t_q) - 1 + offset
    begin, full, cease, end = _reach(first, last, left, right, t_k, LEFT, RIGHT, BLOCK_K)
    m = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, DV_PAD), tl.float32)
    for part in tl.static_range(0 if LEFT else 1, 3):
        start, stop = _part(part, begin, full, cease, end)
        m, l, acc = _absorb(
            m, l, acc, queries, row + offset, k, v, stride_kt, stride_vt, start, stop, seen, t_k, left, right, factor, tau,
            D, DV, D_PAD, DV_PAD, BLOCK_K, LEFT, RIGHT, EVERY, part != 1,
        )  # fmt: skip
    empty = l == 0  # a row without keys: output 0, log-sum-exp -inf
    l = tl.where(empty, 1.0, l)
    natural = tl.where(empty, float("-inf"), (m * factor + tl.log2(l)) * LN2)
    dim = tl.arange(0, DV_PAD)
    row_wide = block.to(tl.int64) * BLOCK_Q + lane
    target = o + ((b * t_q + row_wide) * heads + h)[:, None] * DV + dim[None, :]
    tl.store(target, (acc / l[:, None]).to(o.dtype.element_ty), mask=(row < t_q)[:, None] & (dim < DV)[None, :])
    tl.store(lse + (b * heads + h) * t_q + row_wide, natural, mask=row < t_q)


def exp2(x: Tensor, degree: int) -> Tensor:
    """2^x of float32 numbers up to 127, by the polynomial of this degree."""
    return _exp2(x, degree)


def forward(
    q: Tensor, k: Tensor, v: Tensor, left: int | None, right: int | None, scale: float, tau: float, every: int
) -> tuple[Tensor, Tensor]:
    """q (B, Tq, H, D), k (B, Tk, Hkv, D), v (B, Tk, Hkv, DV) -> o (B, Tq, H, DV), lse (B, H, Tq); every 0: no polynomials."""
    return _forward(q, k, v, left, right, scale, tau, every)


@torch.library.custom_op("twofold::lazy_attention_exp2", mutates_args=())
def _exp2(x: Tensor, degree: int) -> Tensor:
    if not backend.triton(x):
        return _exp2_torch(x, degree)
    x = x.contiguous()
    y, count = torch.empty_like(x), x.numel()
    if count:
        coefficients = POLYNOMIALS[degree] + (0.0,) * (5 - degree)
        with torch.cuda.device_of(x):
            _exp2_kernel[(triton.cdiv(count, BLOCK),)](x, y, count, degree, *coefficients, BLOCK=BLOCK)
    return y


@_exp2.register_fake
def _(x, degree):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("twofold::lazy_attention_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, left: int | None, right: int | None, scale: float, tau: float, every: int
) -> tuple[Tensor, Tensor]:
    run = _forward_triton if backend.triton(q) else _forward_torch
    return run(q, k, v, left, right, scale, tau, every)


@_forward.register_fake
def _(q, k, v, left, right, scale, tau, every):
    b, t_q, heads, _ = q.shape
    return q.new_empty(b, t_q, heads, v.shape[3]), q.new_empty(b, heads, t_q, dtype=torch.float32)


def _forward_triton(q, k, v, left, right, scale, tau, every):
    q, k, v = tiled._addressable(q, k, v)
    (b, t_q, heads, _), dv = q.shape, v.shape[3]
    o, lse = q.new_empty(b, t_q, heads, dv), q.new_empty(b, heads, t_q, dtype=torch.float32)
    if lse.numel():
        sizes, window = tiled._sizes(q, k, v, left, right), tiled._windowed(q, v, left, right)
        tile, options = tiled._configuration("forward", q, v)
        grid = (b * heads * triton.cdiv(t_q, tile["BLOCK_Q"]),)
        with torch.cuda.device_of(q):
            _forward_kernel[grid](q, k, v, o, lse, *sizes, scale * tiled.LOG2E.value, tau, **window, **tile, EVERY=every, **options)
    return o, lse


def _exp2_torch(x, degree):
    x = x.clamp(min=-127)
    n = x.floor()
    f = x - n
    leading, *rest = POLYNOMIALS[degree]
    p = leading * f
    for coefficient in rest:
        p = p.add_(coefficient).mul_(f)
    return p.add_(1).view(torch.int32).add_(n.to(torch.int32) << 23).view(torch.float32)


def _forward_torch(q, k, v, left, right, scale, tau, every):
    (b, t_q, heads, _), (_, t_k, kv_heads, dv) = q.shape, v.shape
    group, tau = heads // kv_heads, tau * math.log(2)
    o, lse = q.new_empty(b, t_q, heads, dv), q.new_empty(b, heads, t_q, dtype=torch.float32)
    keys, values = _heads_first(k), _heads_first(v)  # (B Hkv, Tk, D)
    for rows in _blocks(t_q, 128):
        queries = _rows(q, rows, kv_heads)  # (B Hkv, group rows, D)
        m = queries.new_full(queries.shape[:2], -math.inf)
        l, acc = torch.zeros_like(m), queries.new_zeros(*queries.shape[:2], dv)
        for columns, mask in _tiles(rows, t_q, t_k, left, right, q.device):
            s = _scores(queries, keys[:, columns], scale, None)
            if mask is not None:
                s.unflatten(1, (group, -1)).masked_fill_(~mask, -math.inf)
            highest = torch.maximum(m, s.amax(-1))
            keeps = m - torch.where(highest == -math.inf, 0, highest) >= -tau
            m_new = torch.where(keeps, m, highest)
            m_safe = torch.where(m_new == -math.inf, 0, m_new)
            p = _exponentials_torch(s.sub_(m_safe[..., None]), columns.start, every)
            rescale = torch.exp(m - m_safe)
            l = l * rescale + p.sum(-1)
            acc = acc.mul_(rescale[..., None]).baddbmm_(_as(p, q.dtype), values[:, columns])
            m = m_new
        total = torch.where(l == 0, 1, l)
        o[:, rows] = acc.div_(total[..., None]).view(b, heads, -1, dv).transpose(1, 2)
        lse[:, :, rows] = torch.where(l == 0, -math.inf, m + total.log()).view(b, heads, -1)
    return o, lse


def _exponentials_torch(s, first, every):
    """e^s in place, for the logits of keys `first` and on."""
    if not every:
        return s.exp_()
    polynomial = _exp2_torch(s * (1 / math.log(2)), 3)
    if every == 1:
        return polynomial
    key = torch.arange(first, first + s.shape[-1], device=s.device)
    return torch.where(key // STRETCH.value % every == 0, polynomial, s.exp_())


def variants() -> Iterator[Variant]:
    """Every configuration that the launcher can pick, with every switch on."""
    for dtype, width in itertools.product(("bf16", "fp32"), (64, 128, 256)):
        picked: dict[str, list[int | str]] = {}
        size = 2 if dtype == "bf16" else 4
        for target in (80, 90, 100, 120, "gfx942"):
            picked.setdefault(str(configuration("forward", target, width, width, size)), []).append(target)
        for targets in picked.values():
            tile, options = configuration("forward", targets[0], width, width, size)
            constants = {"D": width, "DV": width, "D_PAD": width, "DV_PAD": width, **tile, "LEFT": True, "RIGHT": True, "EVERY": 4}
            types = {"lse": "*fp32"} | dict.fromkeys(("factor", "tau"), "fp32") | dict.fromkeys(("q", "k", "v", "o"), f"*{dtype}")
            types |= dict.fromkeys(constants, "constexpr")
            signature = {name: types.get(name, "i32") for name in _forward_kernel.arg_names}
            divisible = tuple(name for name in signature if signature[name].startswith("*") or name.startswith("stride"))
            tag = f"lazy-{dtype}-d{width}-{tile['BLOCK_Q']}x{tile['BLOCK_K']}-w{options['num_warps']}-s{options['num_stages']}"
            yield Variant(tag, _forward_kernel, signature, constants, options, divisible, tuple(targets))
    cubic = zip("ABCDE", POLYNOMIALS[3] + (0.0, 0.0), strict=True)
    constants = {"DEGREE": 3, "BLOCK": BLOCK} | dict[str, Any](cubic)
    types = {"x": "*fp32", "y": "*fp32", "count": "i32"} | dict.fromkeys(constants, "constexpr")
    yield Variant("lazy-exp2", _exp2_kernel, types, constants, {"num_warps": 4}, ("x", "y"))
