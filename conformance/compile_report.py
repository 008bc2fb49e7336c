"""Static evidence without a GPU: every kernel configuration, compiled ahead of time for every architecture and held to budgets.

    python -m twofold.conformance.compile_report [--check | --write] [--json] [PATTERN…]

A configuration is what a module of `twofold.fast.kernels` yields from `variants()`; PATTERN is `kernel` or `kernel/variant`, wildcards
welcome. Reported are registers, spills, shared memory, occupancy, tensor-core instructions and the widest global loads and stores.

Hard limits hold for every version of Triton: nothing spills, shared memory fits the architecture, no pointer offset is a 32-bit product
(`offsets.py`). `budgets.json` holds what `--write` measured, by one version of Triton: another version of the compiler allocates registers
otherwise, so there only the hard limits and the kind of tensor-core instruction are held. The process must not have TRITON_INTERPRET set.
"""

import argparse
import fnmatch
import functools
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # a * b + c may become one instruction: Triton's default, which is about to change

from twofold.conformance import machine_code
from twofold.conformance.machine_code import ARCHITECTURES
from twofold.conformance.offsets import narrow_offsets

__all__ = ["architectures", "compiled", "demand_a_compiler", "variants"]

BUDGETS = Path(__file__).with_name("budgets.json")
SLACK = {"registers": 8, "shared": 0}  # registers move a little with unrelated changes of a kernel
TENSOR_CORES = ("none", "mma.sync", "mfma", "wgmma", "tcgen05")  # from the weakest


def demand_a_compiler() -> None:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise SystemExit("TRITON_INTERPRET is set: kernels would be interpreted and cannot be compiled. Unset it for this command")


def variants(patterns: list[str]) -> Iterator[tuple[str, Any]]:
    """Every variant that a pattern names (all, without patterns), with the name of its kernel module."""
    from twofold.fast import kernels

    for kernel in sorted(module.name for module in pkgutil.iter_modules(kernels.__path__)):
        if patterns and not any(fnmatch.fnmatch(kernel, pattern.partition("/")[0]) for pattern in patterns):
            continue
        for name, variant in _variants_of(kernel).items():
            if not patterns or any(fnmatch.fnmatch(f"{kernel}/{name}", p if "/" in p else f"{p}/*") for p in patterns):
                yield kernel, variant


@functools.cache
def _variants_of(kernel: str) -> dict[str, Any]:
    module = importlib.import_module(f"twofold.fast.kernels.{kernel}")
    listed = list(module.variants()) if hasattr(module, "variants") else []
    named = {variant.name: variant for variant in listed}
    if len(named) < len(listed):
        twice = sorted({v.name for v in listed if sum(w.name == v.name for w in listed) > 1})
        raise SystemExit(f"{kernel}: two variants are named {', '.join(twice)}")
    return named


def architectures(variant: Any) -> list[int | str]:
    return [arch for arch in ARCHITECTURES if not variant.architectures or arch in variant.architectures]


def compiled(variant: Any, arch: int | str) -> Any:
    """The variant as Triton's launcher would compile it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.kernel.arg_names)
    if missing := set(names) ^ set(variant.signature):
        raise SystemExit(f"{variant.name}: the signature and the kernel's arguments differ in {', '.join(sorted(missing))}")
    signature = {name: variant.signature[name] for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible}
    source = ASTSource(variant.kernel, signature, variant.constexprs, attributes)
    target = GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options=dict(variant.options))


def measure(kernel: str, name: str, arch: int | str, first: bool) -> dict[str, Any]:
    """One row of the report. A compiler error is a row too: one broken kernel must not hide the others."""
    row: dict[str, Any] = {"kernel": kernel, "variant": name, "arch": str(arch)}
    try:
        program = compiled(_variants_of(kernel)[name], arch)
    except Exception as error:
        return row | {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]}
    return row | machine_code.resources(program, arch) | {"offsets": narrow_offsets(program.asm["ttir"]) if first else []}


def report(patterns: list[str], workers: int, progress: bool = False) -> list[dict[str, Any]]:
    """Compile everything that the patterns name, in several processes; Triton caches what it has compiled before."""
    jobs = [(kernel, v.name, arch, i == 0) for kernel, v in variants(patterns) for i, arch in enumerate(architectures(v))]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        rows = []
        for row in pool.map(measure, *zip(*jobs), chunksize=5) if jobs else ():
            rows.append(row)
            if progress and sys.stderr.isatty():
                print(f"\r{len(rows)} of {len(jobs)} compiled", end="", file=sys.stderr, flush=True)
    return rows


def place(row: dict[str, Any]) -> str:
    return f"{row['kernel']}/{row['variant']} on {row['arch']}"


def broken_limits(row: dict[str, Any]) -> list[str]:
    """The hard limits that a row breaks, on any version of Triton."""
    if "error" in row:
        return [f"does not compile: {row['error']}"]
    faults = [f"a pointer offset is a 32-bit product at {place}" for place in row["offsets"]]
    if row["spills"] or row["stack"]:
        faults.append(f"spills: {row['spills']} accesses, {row['stack']} bytes of stack")
    if row["shared"] > row["shared_limit"]:
        faults.append(f"needs {row['shared']} bytes of shared memory, the architecture has {row['shared_limit']}")
    if row["tensor_memory"] > 512:
        faults.append(f"needs {row['tensor_memory']} columns of tensor memory, the architecture has 512")
    return faults


def broken_budget(row: dict[str, Any], budgets: dict[str, Any], same_version: bool) -> list[str]:
    """What is worse than the committed measurement."""
    if "error" in row:
        return []
    entry = budgets.get(row["kernel"], {}).get(row["variant"], {}).get(row["arch"])
    if entry is None:
        return [f"no budget: look at the report, then `python -m twofold.conformance.compile_report --write {row['kernel']}`"]
    faults = []
    if TENSOR_CORES.index(row["tensor_cores"]) < TENSOR_CORES.index(entry["tensor_cores"]):
        faults.append(f"products run on {row['tensor_cores']}, no longer on {entry['tensor_cores']}")
    if same_version:
        for what in ("registers", "shared"):
            if row[what] > entry[what] + SLACK[what]:
                faults.append(f"{what} {row[what]}, budget {entry[what]} + {SLACK[what]}")
        for what in ("load_bits", "store_bits"):
            if row[what] < entry[what]:
                faults.append(f"{what} {row[what]}, budget {entry[what]}")
    return faults


def check(rows: list[dict[str, Any]], budgets: dict[str, Any], complete: bool) -> list[str]:
    """Everything that is wrong, one line each. `complete`: no pattern was given, so budgets without a variant are stale."""
    import triton

    same_version = budgets.get("triton") == triton.__version__
    entries = budgets.get("kernels", {})
    faults = [f"{place(row)}: {fault}" for row in rows for fault in broken_limits(row) + broken_budget(row, entries, same_version)]
    if complete:
        alive = {(row["kernel"], row["variant"], row["arch"]) for row in rows}
        kept = {(kernel, variant, arch) for kernel, some in entries.items() for variant, by in some.items() for arch in by}
        faults += [f"{'/'.join(entry[:2])} on {entry[2]}: a budget without a variant, --write drops it" for entry in sorted(kept - alive)]
    return faults


def written(rows: list[dict[str, Any]], budgets: dict[str, Any]) -> str:
    """The new budget file: every kernel that was measured is replaced as a whole; what breaks a hard limit gets no budget."""
    import triton

    kernels = {kernel: some for kernel, some in budgets.get("kernels", {}).items() if kernel not in {row["kernel"] for row in rows}}
    for row in rows:
        if not broken_limits(row):
            entry = {what: row[what] for what in ("registers", "shared", "tensor_cores", "load_bits", "store_bits")}
            kernels.setdefault(row["kernel"], {}).setdefault(row["variant"], {})[row["arch"]] = entry
    head = {"triton": triton.__version__, "fp_fusion": os.environ["TRITON_DEFAULT_FP_FUSION"], "slack": SLACK, "kernels": kernels}
    text = json.dumps(head, indent=1, sort_keys=True)
    return re.sub(r"\{\s+(\"load_bits\"[^{}]*?)\s+\}", lambda match: f"{{{' '.join(match[1].split())}}}", text) + "\n"  # one line each


def show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("registers", "spills", "shared", "warps", "occupancy", "tensor_cores", "load_bits", "store_bits")
    table = Table("kernel/variant", "arch", *(name.replace("_", " ") for name in columns))
    for row in rows:
        bad = broken_limits(row)
        cells = [row["error"]] if "error" in row else [str(row[name]) for name in columns]
        table.add_row(f"{row['kernel']}/{row['variant']}", row["arch"], *cells, style="red" if bad else None)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="compile_report", description="Compile every kernel ahead of time and hold it to its budget.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="fail where a hard limit or a budget is broken")
    mode.add_argument("--write", action="store_true", help="write budgets.json from what was measured")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="kernel or kernel/variant")
    given = parser.parse_args(arguments)
    demand_a_compiler()
    if given.write and any("/" in pattern for pattern in given.patterns):
        parser.error("--write takes whole kernels: the budgets of a kernel are replaced together")
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    rows = report(given.patterns, given.workers, progress=not given.json)
    if not rows:
        raise SystemExit(f"no variant matches {' '.join(given.patterns)}" if given.patterns else "twofold.fast.kernels yields no variants")
    if given.json:
        print(json.dumps(rows, indent=1))
    elif not given.check:
        show(rows)
    hard = [f"{place(row)}: {fault}" for row in rows for fault in broken_limits(row)]
    faults = check(rows, budgets, not given.patterns) if given.check else hard
    if given.write:
        BUDGETS.write_text(written(rows, budgets))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(rows)} programs of {len({(r['kernel'], r['variant']) for r in rows})} variants, {len(faults)} faults", file=sys.stderr)
    return int(bool(faults) and (given.check or given.write))


if __name__ == "__main__":
    sys.exit(main())
