"""One configuration of a kernel, as the launcher would compile it: what the ahead-of-time report needs to know."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Variant"]


@dataclass(frozen=True)
class Variant:
    """A `@triton.jit` function with the types and constants of one launch.

    `signature` maps every argument to its Triton type (`"*bf16"`, `"i32"`, `"fp32"`, `"constexpr"`), `constexprs` gives the constants,
    `divisible` names the arguments that are multiples of 16 (pointers and strides, as a rule), `options` holds num_warps and num_stages,
    `architectures` limits where this configuration is ever picked (empty: everywhere).
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()
    architectures: tuple[int | str, ...] = ()
