"""What a compiled kernel needs and uses, read from its machine code: registers, spills, shared memory, instructions."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["ARCHITECTURES", "resources"]

ARCHITECTURES: tuple[int | str, ...] = (80, 90, 100, 120, "gfx942")
SHARED_PER_BLOCK = {80: 166912, 90: 232448, 100: 232448, 120: 101376, "gfx942": 65536}  # bytes
SHARED_PER_UNIT = {80: 167936, 90: 233472, 100: 233472, 120: 102400, "gfx942": 65536}  # of a multiprocessor or compute unit
WARPS_PER_UNIT = {80: 64, 90: 64, 100: 64, 120: 48, "gfx942": 32}


def resources(program: Any, arch: int | str) -> dict[str, Any]:
    """The measurements of one compiled program, the same names for both makers."""
    warps, shared = program.metadata.num_warps, program.metadata.shared
    found = _amd(program.asm["amdgcn"]) if isinstance(arch, str) else _nvidia(program.asm)
    resident = min(found.pop("blocks_by_registers")(warps), _by_shared(shared, arch), WARPS_PER_UNIT[arch] // warps)
    return found | {
        "shared": shared,
        "shared_limit": SHARED_PER_BLOCK[arch],
        "tensor_memory": getattr(program.metadata, "tmem_size", 0) or 0,
        "warps": warps,
        "occupancy": round(max(resident, 0) * warps / WARPS_PER_UNIT[arch], 3),
    }


def _by_shared(shared: int, arch: int | str) -> int:
    reserved = 0 if isinstance(arch, str) else 1024  # CUDA keeps 1 KiB of every block for itself
    return SHARED_PER_UNIT[arch] // (shared + reserved) if shared else WARPS_PER_UNIT[arch]


def _nvidia(asm: dict[str, Any]) -> dict[str, Any]:
    ptx = asm["ptx"]
    registers, stack = _usage(asm["cubin"])
    tensor_cores = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma.sync": "mma.sync"}
    loads = [_width(m) for m in re.findall(r"\bld\.global\S*?((?:\.v\d)?\.[bfsu]\d+)", ptx)]
    loads += [8 * int(size, 0) for size in re.findall(r"cp\.async\.c[ag]\S*[^;]*?\], (0x[0-9a-f]+|\d+)", ptx)]
    stores = [_width(m) for m in re.findall(r"\bst\.global\S*?((?:\.v\d)?\.[bfsu]\d+)", ptx)]
    bulk_load, bulk_store = "cp.async.bulk.tensor" in ptx and ".shared" in ptx, "cp.async.bulk.tensor" in ptx and ".global.shared" in ptx
    allocated = -(-registers * 32 // 256) * 256  # per warp, in units of 256
    return {
        "registers": registers,
        "spills": _local_accesses(asm["cubin"]) if stack else 0,
        "stack": stack,
        "tensor_cores": next((name for name, text in tensor_cores.items() if text in ptx), "none"),
        "load_bits": max([*loads, 128 * bulk_load], default=0),
        "store_bits": max([*stores, 128 * bulk_store], default=0),
        "blocks_by_registers": lambda warps: 65536 // (allocated * warps) if allocated else 64,
    }


def _width(suffix: str) -> int:
    """`.v4.b32` is 128 bits."""
    lanes, bits = re.fullmatch(r"(?:\.v(\d))?\.[bfsu](\d+)", suffix).groups()  # type: ignore[union-attr]
    return int(lanes or 1) * int(bits)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of stack, as `cuobjdump` reads them."""
    match = re.search(r"REG:(\d+) STACK:(\d+)", _tool("cuobjdump", "-res-usage", cubin=cubin))
    if match is None:
        raise RuntimeError("cuobjdump no longer reports register usage as REG:n STACK:n")
    return int(match[1]), int(match[2])


def _local_accesses(cubin: bytes) -> int:
    return len(re.findall(r"\b(?:LDL|STL)\b", _tool("nvdisasm", "-c", cubin=cubin)))


def _tool(name: str, option: str, cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def _amd(assembly: str) -> dict[str, Any]:
    def number(key: str) -> int:
        match = re.search(rf"\.{key}:\s+(\d+)", assembly)
        if match is None:
            raise RuntimeError(f"the assembly for AMD no longer names .{key}")
        return int(match[1])

    registers = number("vgpr_count")  # vector and accumulation registers share one file of 512 per lane
    loads, stores = (re.findall(rf"\b(?:global|buffer|flat)_{verb}_[us]?(byte|short|dwordx?\d?)", assembly) for verb in ("load", "store"))
    widths = {"byte": 8, "short": 16, "dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}
    return {
        "registers": registers,
        "spills": number("vgpr_spill_count"),  # scalars spill into lanes of vectors first; where they reach memory, it is stack
        "stack": number("private_segment_fixed_size"),
        "tensor_cores": "mfma" if "v_mfma" in assembly else "none",
        "load_bits": max(map(widths.__getitem__, loads), default=0),
        "store_bits": max(map(widths.__getitem__, stores), default=0),
        "blocks_by_registers": lambda warps: 4 * (512 // (-(-max(registers, 1) // 8) * 8)) // warps,  # four units share the waves
    }
