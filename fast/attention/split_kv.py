"""Flash-Decoding on tensors (B, T, H, D): few query rows, many keys, cut into chunks. See `twofold.spec.attention.split_kv`.

Query head h reads key head h // (H / Hkv), and all heads of a group are one tile: keys and values are read once. `length` (B,), int32 or
int64, is how many of the Tk keys each sequence has, all of them if left out; what lies behind is never read. Rows are aligned to the end of
the keys: row i stands at position i + length - N. A row that sees no key has output 0 and log-sum-exp -inf.

Keys are cut every `size` tokens, so that a sequence's result has the same bits in any batch; `splits` cuts the room for keys into so many
equal parts instead, `bounds` cuts anywhere. Lengths that do not fit are an error on the CPU and clamped on a GPU, which cannot raise
without being waited for. There are no gradients: this is for decoding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twofold.fast import checks
from twofold.fast.attention._arguments import places, scale_or_default, sink_per_head, three, widths, window_bounds
from twofold.fast.kernels.combine_splits import combine_splits
from twofold.fast.kernels.split_attention import SIZE, split_attention, split_partials

__all__ = ["attention", "partials", "combine", "fixed", "occupancy"]

MULTIPLE = 64  # equal parts are multiples of the longest tile


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, bounds: Sequence[int] | None = None, size: int = SIZE, splits: int | None = None,
    length: Tensor | None = None, causal: bool = False, window: tuple[int | None, int | None] | None = None,
    scale: float | None = None, softcap: float | None = None, sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q (B, N, H, D) -> the output (B, N, H, Dv) in the dtype of `q` and the natural log-sum-exp (B, H, N) in float32.

    `causal` forbids keys behind a row's own position; `window` = (left, right) allows the positions p - left … p + right, None being no
    bound; `sink` (H,) is one logit per head that takes attention and gives nothing.
    """
    options = _options(q, k, v, bounds, size, splits, length, causal, window, scale, softcap)
    return split_attention(q, k, v, sink=sink_per_head(q, sink), length=length, **options)


def partials(
    q: Tensor, k: Tensor, v: Tensor, *, bounds: Sequence[int] | None = None, size: int = SIZE, splits: int | None = None,
    length: Tensor | None = None, causal: bool = False, window: tuple[int | None, int | None] | None = None,
    scale: float | None = None, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Every chunk apart: outputs (S, B, N, H, Dv) and log-sum-exps (S, B, H, N), float32."""
    return split_partials(q, k, v, length=length, **_options(q, k, v, bounds, size, splits, length, causal, window, scale, softcap))


def combine(o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge outputs (S, B, N, H, Dv) and log-sum-exps (S, B, H, N): (B, N, H, Dv) in the dtype of `o` and (B, H, N) in float32.

    A chunk whose log-sum-exp is -inf adds nothing, whatever its output holds.
    """
    checks.shape(o=(o, "S B N H Dv"), lse=(lse, "S B H N"))
    checks.same_device(o=o, lse=lse)
    checks.dtypes(torch.float32, torch.float16, torch.bfloat16, o=o)
    checks.dtypes(torch.float32, lse=lse)
    return combine_splits(o, lse)


def fixed(n: int, size: int) -> list[int]:
    """Bounds of chunks of constant size: where a sequence is cut depends on its own length only."""
    if n < 0 or size < 1:
        raise ValueError(f"n must be at least 0 and size at least 1, not {n} and {size}")
    return [0, *range(size, n, size), n]


def occupancy(tiles: int, blocks: int, sms: int, max_splits: int = 128) -> int:
    """Into how many chunks to cut: the fewest whose waves of programs are nearly as full as the fullest waves possible.

    `tiles` programs without splitting, each walking over `blocks` tiles of keys, on `sms` processors. Thresholds are met in whole numbers.
    """
    if tiles < 1 or blocks < 0 or sms < 1 or max_splits < 1:
        raise ValueError(f"tiles, sms and max_splits must be at least 1, blocks 0, not {tiles}, {sms}, {max_splits} and {blocks}")
    if 5 * tiles >= 4 * sms:
        return 1
    chunks = {splits: -(-blocks // splits) for splits in range(1, min(max_splits, sms, blocks) + 1)}  # tiles per chunk
    useful = [splits for splits in chunks if chunks[splits] != chunks.get(splits - 1)]
    filled = {splits: (tiles * splits, sms * -(-tiles * splits // sms)) for splits in useful}  # programs, and room in the waves they take
    best = max(filled.values(), key=lambda wave: wave[0] / wave[1], default=(0, 1))
    return next((splits for splits, (programs, room) in filled.items() if 20 * programs * best[1] >= 17 * best[0] * room), 1)


def checked_options(q, k, v, capacity, size, splits, length, causal, window, scale, softcap) -> dict:
    """What rows of keys and pools of blocks have in common; `k` and `v` are (·, ·, Hkv, ·). Returns the kernel's options."""
    sizes = three(q, k, v, rows="B N H D", keys="rows T Hkv")
    widths(sizes, q="D", v="Dv")
    checks.contiguous(q=q, k=k, v=v)
    places(q, length)
    checks.positive(softcap=softcap)
    checks.at_least(1, size=size, splits=splits)
    if splits is not None:
        size = max(-(-capacity // (splits * MULTIPLE)) * MULTIPLE, 1)
    left, right = window_bounds(causal, window)
    scale = scale_or_default(scale, sizes["D"])
    return {"size": size, "left": left, "right": right, "scale": scale, "softcap": softcap}


def _options(q, k, v, bounds, size, splits, length, causal, window, scale, softcap):
    checks.shape(q=(q, "B N H D"), k=(k, "B Tk Hkv D"), v=(v, "B Tk Hkv Dv"))
    keys = k.shape[1]
    options = checked_options(q, k, v, keys, size, splits, length, causal, window, scale, softcap)
    if bounds is None:
        return options
    bounds = list(bounds)
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != keys or any(a > b for a, b in zip(bounds, bounds[1:])):
        raise ValueError(f"bounds must rise from 0 to the {keys} keys, not be {bounds}")
    return options | {"bounds": torch.tensor(bounds, dtype=torch.int32, device=q.device)}
