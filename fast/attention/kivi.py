"""KIVI's cache of keys and values, for a batch of requests of any lengths. See `twofold.spec.attention.kivi`.

A cache takes tokens (B, T, Hkv, D), of each request as many as its length says, and keeps

- codes, `bits` wide and really packed: of each token and head a stream of 32-bit words (B, N, Hkv, ceil(D bits / 32));
- a scale and a zero per group, in the dtype of the tokens: of keys (B, N / group, Hkv, D), of values (B, N, Hkv, ceil(Dv / group));
- the newest `residual` tokens as a query sees them, token t in slot t mod residual, and one slot more, for the token that `append` is
  asked about.

A query finds what is older than the window as codes, the rest in the ring; what it finds in the two is merged. Lengths are known on the
host, so nothing waits for the device.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention._arguments import scale_or_default, share_heads
from twofold.fast.kernels import kv_formats, quantize_groups, quantized_cache

__all__ = ["Cache", "quantize", "dequantize"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Store(NamedTuple):
    """Codes of the tokens' keys, or values, and the parameters of their groups; there may be room for more tokens than there are."""

    words: Tensor
    scale: Tensor
    zero: Tensor


class Cache:
    """A batch of requests, each with as many tokens as it has been given."""

    def __init__(self, bits: int, group: int, residual: int):
        _check_format(bits, group)
        if residual < group or residual % group:
            raise ValueError(f"residual must be a positive multiple of group = {group}, not {residual}")
        self.bits, self.group, self.residual = bits, group, residual
        self.lengths = torch.zeros(0, dtype=torch.int64)  # (B,), on the host
        self.keys: Any = None  # a Store, once there are tokens

    def prefill(self, k: Tensor, v: Tensor, *, lengths: list[int] | Tensor | None = None) -> None:
        """Take in tokens k (B, T, Hkv, D) and v (B, T, Hkv, Dv): of request b the first lengths[b], the rest is not read (None: all)."""
        b, t = self._open(k, v)
        counts = torch.full((b,), t) if lengths is None else torch.as_tensor(lengths, dtype=torch.int64).cpu()
        if counts.shape != (b,) or not bool(((counts >= 0) & (counts <= t)).all()):
            raise ValueError(f"lengths must be {b} numbers from 0 to T = {t}, not {counts.tolist()}")
        self._take(k, v, counts)

    def append(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> tuple[Tensor, Tensor]:
        """One token of each request, k (B, 1, Hkv, D) and v (B, 1, Hkv, Dv): what its queries (B, Nq, H, D) attend, itself included and
        whole, as (B, Nq, H, Dv) and (B, H, Nq) in float32; then it is taken in."""
        checks.shape(k=(k, "B 1 Hkv D"), q=(q, "B Nq H D"))
        b, _ = self._open(k, v)
        slot = self.lengths.clamp(max=self.residual)  # the first one that holds nothing
        self.recent_k[torch.arange(b), slot], self.recent_v[torch.arange(b), slot] = k[:, 0], v[:, 0]
        found = self._attend(q, slot + 1, scale)
        self._take(k, v, torch.ones(b, dtype=torch.int64))
        return found

    def attend(self, q: Tensor, *, scale: float | None = None) -> tuple[Tensor, Tensor]:
        """What queries (B, Nq, H, D) find that see every token of their request: (B, Nq, H, Dv), and (B, H, Nq) in float32."""
        self._check_open()
        return self._attend(q, self.lengths.clamp(max=self.residual), scale)

    def contents(self) -> tuple[Tensor, Tensor]:
        """Keys (B, N, Hkv, D) and values (B, N, Hkv, Dv) as a query sees them, N being the longest length; 0 behind shorter requests."""
        self._check_open()
        longest, window = int(self.lengths.max()) if len(self.lengths) else 0, self.residual
        request, at = _ranges((self.lengths - window).clamp(min=0), self.lengths)
        behind = (torch.arange(longest) >= self.lengths[:, None])[..., None, None].to(self.recent_k.device)
        both = []
        for store, recent, axis in ((self.keys, self.recent_k, 0), (self.values, self.recent_v, 1)):
            codes = kv_formats.unpack(store.words, self.bits, recent.shape[3])
            whole = dequantize(codes, store.scale, store.zero, self.group, axis)[:, :longest].masked_fill(behind, 0)
            whole[request, at] = recent[request, at % window]
            both.append(whole)
        return both[0], both[1]

    def _attend(self, q, recent, scale):
        """Over what is older than the window, and over the first `recent` slots of the ring, both per request."""
        sizes = checks.shape(cache=(self.recent_k, "B R Hkv D"), q=(q, "B Nq H D"))
        checks.same(cache=self.recent_k, q=q)
        share_heads(sizes, k="cache")
        old = (self.lengths - self.residual).clamp(min=0)
        scale = scale_or_default(scale, sizes["D"])
        old, recent = (lengths.to(q.device, non_blocking=True) for lengths in (old, recent))
        return quantized_cache.attend(q, self.keys, self.values, old, self.recent_k, self.recent_v, recent, self.bits, self.group, scale)

    def _take(self, k, v, counts):
        """Move tokens in. A value becomes codes when `residual` others have come after it, keys do `residual` at a time."""
        before, after, window = self.lengths, self.lengths + counts, self.residual
        self._reserve(int(after.max()) if len(after) else 0)
        leaving = _ranges((before - window).clamp(min=0), (after - window).clamp(min=0))
        filling = _ranges(before - before % window, after - after % window)
        values = _whole(self.recent_v, v, before, *leaving)  # read before the new ones take their slots   (n, Hkv, Dv)
        keys = _whole(self.recent_k, k, before, *filling).unflatten(0, (-1, self.group)).movedim(1, -1)  # (n / group, Hkv, D, group)

        request, at = _ranges(torch.maximum(before, after - window), after)
        for recent, new in ((self.recent_k, k), (self.recent_v, v)):
            recent[request, at % window] = new[request, at - before[request]]
        codes, *parameters = _encode(values, self.bits, self.group)
        _put(self.values, codes, parameters, leaving, leaving, self.bits)
        codes, scale, zero = _encode(keys, self.bits, self.group)
        codes, scale, zero = codes.movedim(-1, 1).flatten(0, 1), scale[..., 0], zero[..., 0]  # (n, Hkv, D), (n / group, Hkv, D)
        groups = filling[0][:: self.group], filling[1][:: self.group] // self.group
        _put(self.keys, codes, [scale, zero], filling, groups, self.bits)
        still = filling[1] >= (after - window)[filling[0]]  # quantized, and yet among the newest: their values are whole
        seen = dequantize(codes[None], scale[None], zero[None], self.group, 0)[0]
        self.recent_k[filling[0][still], filling[1][still] % window] = seen[still]
        self.lengths = after

    def _open(self, k, v):
        """Check a batch of tokens, against the cache if it has any; the first ones give it its shape. Returns B and T."""
        sizes = checks.shape(k=(k, "B T Hkv D"), v=(v, "B T Hkv Dv"))
        checks.same(k=k, v=v)
        checks.dtypes(*FLOATS, k=k)
        if self.keys is None:
            self.lengths = torch.zeros(sizes["B"], dtype=torch.int64)
            self.recent_k, self.recent_v = (x.new_empty(len(x), self.residual + 1, *x.shape[2:]) for x in (k, v))
            self.keys, self.values = self._stores(0)
        checks.shape(cache=(self.recent_k, "B R Hkv D"), k=(k, "B T Hkv D"))
        checks.shape(cache=(self.recent_v, "B R Hkv Dv"), v=(v, "B T Hkv Dv"))
        checks.same(cache=self.recent_k, k=k)
        return sizes["B"], sizes["T"]

    def _check_open(self):
        if self.keys is None:
            raise ValueError("the cache must be given tokens before anything is asked of it")

    def _reserve(self, tokens):
        """Room for this many tokens per request; at least twice as much as before, if it has to grow."""
        room = self.keys.words.shape[1]
        if tokens > room:
            grown = self._stores(max(-(-tokens // self.residual) * self.residual, 2 * room))
            for larger, smaller in zip(grown[0] + grown[1], self.keys + self.values, strict=True):
                larger[:, : smaller.shape[1]] = smaller
            self.keys, self.values = grown

    def _stores(self, room):
        """Empty stores of keys and values for `room` tokens per request."""
        (b, _, heads, d), dv = self.recent_k.shape, self.recent_v.shape[3]
        words = [self.recent_k.new_empty(b, room, heads, -(-n * self.bits // 32), dtype=torch.int32) for n in (d, dv)]
        shapes = (b, room // self.group, heads, d), (b, room, heads, -(-dv // self.group))
        return tuple(Store(each, self.recent_k.new_empty(shape), self.recent_k.new_empty(shape)) for each, shape in zip(words, shapes))


def quantize(x: Tensor, bits: int, group: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (B, T, H, D) in uint8 and, in the dtype of `x`, scale and zero of groups that run along tokens (axis 0) or channels (axis 1).

    Codes are those of the scale as stored. A group that holds NaN or infinity has the scale NaN, and no other group notices.
    """
    checks.shape(x=(x, "B T H D"))
    checks.dtypes(*FLOATS, x=x)
    _check_format(bits, group)
    _check_axis(axis)
    codes, scale, zero = (_innermost(part, axis) for part in _encode(_innermost(x, axis), bits, group))
    return codes, scale, zero


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, group: int, axis: int) -> Tensor:
    """The numbers that the codes stand for, computed in float32 and rounded to the dtype of `scale`."""
    checks.shape(codes=(codes, "B T H D"))
    checks.dtypes(torch.uint8, codes=codes)
    checks.dtypes(*FLOATS, scale=scale)
    checks.same(scale=scale, zero=zero)
    _check_format(8, group)
    b, t, h, d = codes.shape
    _check_axis(axis)
    shape = f"{b} {t} {h} {-(-d // group)}" if axis == 1 else f"{b} {-(-t // group)} {h} {d}"
    checks.shape(scale=(scale, shape), zero=(zero, shape))
    return kv_formats.numbers(codes, scale, zero, *((1, group) if axis == 1 else (group, 1))).to(scale.dtype)


def _encode(x, bits, group):
    """Codes, scale and zero of groups along the last axis."""
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).contiguous()
    return [part.view(*x.shape[:-1], part.shape[1]) for part in quantize_groups.encode(rows, bits, group, "min", x.dtype, True)]


def _innermost(x, axis):
    """(B, T, H, D) with the axis along which groups run in the last place, and back."""
    return x.transpose(1, 3) if axis == 0 else x


def _put(store, codes, parameters, tokens, groups, bits):
    """Write the codes (n, Hkv, D) of these tokens and the parameters of these groups, each a pair of request and position."""
    store.words[tokens] = kv_formats.pack(codes, bits)
    store.scale[groups], store.zero[groups] = parameters


def _whole(ring, new, before, request, at):
    """These tokens in full: out of the ring, or new ones (n, Hkv, D)."""
    offset = at - before[request]
    old = ring[request, at % (ring.shape[1] - 1)]
    if not new.shape[1]:
        return old
    return torch.where((offset >= 0)[:, None, None].to(new.device), new[request, offset.clamp(min=0)], old)


def _ranges(start, stop):
    """Every (request, position) with start <= position < stop, request by request."""
    count = (stop - start).clamp(min=0)
    request = torch.repeat_interleave(torch.arange(len(count)), count)
    first = torch.cumsum(count, 0) - count
    return request, start[request] + torch.arange(len(request)) - first[request]


def _check_axis(axis):
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 (groups run along tokens) or 1 (along channels), not {axis}")


def _check_format(bits, group):
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}")
    if group < 1:
        raise ValueError(f"group must be at least 1, not {group}")
