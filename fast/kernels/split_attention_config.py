"""Tile sizes, warps and stages of `split_attention`: a pure function of architecture, rows and widths, none of which spills registers."""

__all__ = ["FEW", "configuration"]

FEW = 16  # rows of queries per sequence up to which callers decode: a head's rows fill the smallest tile, and its keys are read once


def configuration(
    architecture: int | str, rows: int, d_pad: int, dv_pad: int, rest_pad: int, size: int, paged: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Tile, and warps and stages, for `rows` query rows per key head, heads this wide and elements of `size` bytes."""
    width = max(d_pad, dv_pad)
    if architecture == "interpreter":
        return {"BLOCK_M": 16, "BLOCK_N": 16}, {}
    if size == 4:  # float32 products run on the ordinary cores
        warps = 4 if width <= 64 or architecture == "gfx942" else 8 if width != 256 else 16
        return {"BLOCK_M": 16, "BLOCK_N": 16}, {"num_warps": warps, "num_stages": 1}
    widest = 64 if width <= 128 else 32
    if architecture == "gfx942" and width > 256:
        widest = 16
    block_m = min(widest, max(16, 1 << (rows - 1).bit_length()))
    stages = 3 if width <= 128 and not (architecture == "gfx942" and width > 64) else 2
    if paged and stages > 2:  # the table is read ahead of the keys
        stages = 5
    elif paged:
        stages = 3
    warps = 4 if architecture == "gfx942" or (width <= 256 and block_m < 64) else 8
    return {"BLOCK_M": block_m, "BLOCK_N": 64 if width <= 128 else 32}, {"num_warps": warps, "num_stages": stages}
