"""Pointer offsets that wrap: finds offsets computed as 32-bit products in a kernel's intermediate code, without running it.

A tensor of more than 2**31 elements needs 64-bit offsets. `tl.program_id(0) * stride` is a 32-bit product, and widening it afterwards
is too late; to narrow a wide product again undoes it. This reads the code that Triton makes of a kernel (TTIR) and walks from every pointer
addition back through additions and shape changes to the products that enter it. A product of 32 bits, or narrowed to 32, is an error where

- both factors are unbounded: program ids, loaded numbers, arguments, loop counters, and what is computed from them;
- one factor stems from a program id or a loaded number and the other is a constant (a stride known at compile time). Only quotients and
  remainders, and sums of them, may meet a constant of at most 1024: that is a coordinate along one axis, counted in tiles.

Bounded factors are fine: ranges, constants, remainders, and numbers of 8 or 16 bits. So is an index that is widened before it meets its
stride. Not judged: a range inside a tile times a stride (a stride of 2**31 / tile would wrap, Triton widens arguments only beyond 2**31),
products below another product, and sums of in-range terms.

    python -m twofold.conformance.offsets [PATTERN…]
"""

import re
import sys
from dataclasses import dataclass
from functools import cached_property

__all__ = ["narrow_offsets"]

MOVES = {"splat", "broadcast", "expand_dims", "reshape", "trans", "extsi", "extui", "trunci", "unsplat"}  # the number stays what it is
SUMS = {"addi", "subi", "select", "minsi", "maxsi", "minui", "maxui"} | MOVES
PRODUCTS = {"muli", "shli"}
COORDINATES = {"divsi", "divui", "remsi", "remui"}
ARITHMETIC = SUMS | PRODUCTS | COORDINATES | {"shrsi", "shrui", "andi", "ori", "xori"}
LARGEST_TILE = 1024


@dataclass(eq=False)
class Operation:
    """One line of TTIR. An operand that no operation makes, an argument or a loop counter, is None."""

    name: str  # without its dialect
    operands: list["Operation | None"]
    bits: int  # of the result's elements, 0 where they are no integers
    text: str

    @cached_property
    def bounded(self) -> bool:
        """Whether the number is small whatever the launch was."""
        if self.name in ("constant", "make_range") or self.name.startswith("cmp") or 0 < self.bits < 32:
            return True
        bounded = [operand is not None and operand.bounded for operand in self.operands]
        if self.name in ("remsi", "remui"):
            return bounded[1]
        if self.name in ("minsi", "minui", "andi"):
            return any(bounded)
        return self.name in ARITHMETIC and all(bounded)

    @cached_property
    def index(self) -> bool:
        """Whether a program id or a loaded number is in it."""
        if self.bounded:
            return False
        within = self.name in ARITHMETIC and any(operand is not None and operand.index for operand in self.operands)
        return within or self.name in ("get_program_id", "load")

    @cached_property
    def may_wrap(self) -> bool:
        unbounded = [operand for operand in self.operands if operand is None or not operand.bounded]
        if len(unbounded) == 2 and self.name == "muli":
            return True
        tile = self.name == "muli" and any(operand is not None and operand.tile for operand in self.operands)
        return any(operand is not None and operand.index and not (tile and operand.coordinate) for operand in unbounded)

    @cached_property
    def coordinate(self) -> bool:
        """Whether this counts tiles along one axis, from either end."""
        of_coordinates = [operand is not None and (operand.bounded or operand.coordinate) for operand in self.operands]
        return self.name in COORDINATES or (self.name in SUMS and all(of_coordinates))

    @property
    def tile(self) -> bool:
        """Whether this is a constant that can be the extent of a tile."""
        match = re.search(r"arith\.constant (?:dense<)?(\d+)", self.text)
        return match is not None and int(match[1]) <= LARGEST_TILE

    def wrapping_products(self) -> set["Operation"]:
        """The offending products that enter this number through sums and shape changes."""
        waiting, seen = [(self, False)], set[tuple[Operation, bool]]()
        while waiting:
            operation, narrow = waiting.pop()
            narrow = narrow or operation.bits == 32  # here or later, the upper half is lost
            if (operation, narrow) not in seen:
                seen.add((operation, narrow))
                operands = operation.operands if operation.name in SUMS else []
                waiting += [(operand, narrow) for operand in operands if operand is not None]
        return {operation for operation, narrow in seen if operation.name in PRODUCTS and narrow and operation.may_wrap}


def operations(ttir: str) -> list[Operation]:
    """Every operation with its operands resolved. Sibling regions may use a name twice: the latest definition counts."""
    found, named = [], dict[str, Operation]()
    for line in ttir.splitlines():
        if match := re.match(r"\s*(%\w+)(?::\d+)?(?:, %\w+)* = \"?(?:\w+\.)*(\w+)\"?(.*)", line):
            value, name, rest = match.groups()
            types = re.search(r"i(\d+)>*$", rest.partition(" loc(")[0].rpartition(" : ")[2].strip())
            operation = Operation(name, [named.get(x) for x in re.findall(r"%\w+", rest)], int(types[1]) if types else 0, line)
            found.append(operation)
            named[value] = operation
        if re.search(r"\bscf\.|\^bb", line):  # loop counters, carried values and block arguments are new names
            for value in re.findall(r"(%\w+)(?: =|:)", line.partition(" = scf.")[2] or line):
                named.pop(value, None)
    return found


def narrow_offsets(ttir: str) -> list[str]:
    """Where a 32-bit product becomes a pointer offset, as `file.py:line:column`."""
    offsets = [operation.operands[1] for operation in operations(ttir) if operation.name == "addptr"]
    products = [product for offset in offsets if offset is not None for product in offset.wrapping_products()]
    locations = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))
    return sorted({_source(product, locations) for product in products})


def _source(operation: Operation, locations: dict[str, str]) -> str:
    """The line of Python that an operation came from: locations refer to each other."""
    text = operation.text
    for _ in range(20):
        if match := re.search(r'"([^"]*)":(\d+):(\d+)', text):
            return f"{match[1].rpartition('/')[2]}:{match[2]}:{match[3]}"
        names = re.findall(r"#loc\d*", text)
        text = locations.get(names[0], "") if names else ""
    return operation.text.strip()


def main(patterns: list[str]) -> int:
    from twofold.conformance import compile_report

    compile_report.demand_a_compiler()
    count, faults = 0, 0
    for kernel, variant in compile_report.variants(patterns):
        found = narrow_offsets(compile_report.compiled(variant, compile_report.architectures(variant)[0]).asm["ttir"])
        count, faults = count + 1, faults + bool(found)
        for place in found:
            print(f"{kernel}/{variant.name}: a pointer offset is a 32-bit product at {place}")
    print(f"{count} variants, {faults} with offsets that can wrap")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
