"""Tile sizes, warps and stages of `tiled_attention`: a pure function of architecture, form and width, none of which spills registers."""

import torch

__all__ = ["architecture", "configuration"]


def architecture(tensor: torch.Tensor) -> int | str:
    """What the configuration depends on: the family of compute capabilities (80, 90, 100, 120), "gfx942" or "interpreter"."""
    if not tensor.is_cuda:
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    return {9: 90, 10: 100, 12: 120}.get(torch.cuda.get_device_capability(tensor.device)[0], 80)


def configuration(form: str, architecture: int | str, d_pad: int, dv_pad: int, size: int) -> tuple[dict[str, int], dict[str, int]]:
    """Tile, and warps and stages, of a form ("forward", "query", "key") for heads this wide and elements of `size` bytes."""
    width = max(d_pad, dv_pad)
    if architecture == "interpreter":  # few elements, and no two sizes alike
        tile, options = ((16, 32) if form == "key" else (32, 16)), {}
    elif size == 4:  # float32 products run on the ordinary cores
        warps = 16 if width > 128 and form == ("forward" if architecture == 100 else "query") else 8
        if architecture == "gfx942" or width <= (64 if form == "forward" else 128):
            warps = 4
        stages = 2 if form == "key" and width <= 64 and architecture != "gfx942" else 1
        tile, options = (16, 16), {"num_warps": warps, "num_stages": stages}
    else:
        roomy = architecture in (90, 100) and width <= 128
        if form == "forward":
            tile = (128 if roomy or width <= 128 else 64, 64 if roomy else 32)
        elif form == "query":
            tile = (128 if width <= 64 else 64, 64) if roomy else (64, 32)
        else:
            tile = (32, 64 if width <= 128 else 32)
        if architecture == "gfx942" and form == "key":  # masks live in scalar registers there, of which there are few
            tile = (32 if width <= 128 else 16, 32)
        stages = 3 if form == "forward" and roomy and architecture == 90 else 2
        if architecture == "gfx942" or (width > 128 and (form == "key" or architecture == 120)):
            stages = 1
        options = {"num_warps": 4 if architecture == "gfx942" else 8, "num_stages": stages}
    return {"BLOCK_Q": tile[0], "BLOCK_K": tile[1]}, options
