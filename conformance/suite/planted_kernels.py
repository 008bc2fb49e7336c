"""Kernels with planted faults, for the tests of `offsets.py` and `compile_report.py`. As a program: compile them, print what is found."""

import json
import sys

import triton
import triton.language as tl

from twofold.fast.kernels.variant import Variant


@triton.jit
def product(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, N)
    tl.store(out_ptr + row.to(tl.int64) * N + i, tl.load(x_ptr + row * stride + i))  # narrow


@triton.jit
def widened_late(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, N)
    tl.store(out_ptr + row.to(tl.int64) * N + i, tl.load(x_ptr + (row * stride).to(tl.int64) + i))  # narrow


@triton.jit
def constant_stride(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, N)
    tl.store(out_ptr + row * N + i, tl.load(x_ptr + row.to(tl.int64) * stride + i))  # narrow


@triton.jit
def constant_stride_of_a_quotient(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    batch, i = tl.program_id(0) // stride, tl.arange(0, N)
    tl.store(out_ptr + batch * (N * 1024) + i, tl.load(x_ptr + i))  # narrow


@triton.jit
def loaded_index(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    i = tl.arange(0, N)
    page = tl.load(table_ptr + i)
    tl.store(out_ptr + i, tl.load(x_ptr + page * stride))  # narrow


@triton.jit
def in_a_loop(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    i = tl.arange(0, N)
    total = tl.zeros((N,), tl.float32)
    for step in range(0, stride):
        total += tl.load(x_ptr + tl.cast(step, tl.int64) * stride + i)
    for step in range(0, stride):
        total += tl.load(x_ptr + step * stride + i)  # narrow
    tl.store(out_ptr + i, total)


@triton.jit
def a_quotient_before_a_page(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    i = tl.arange(0, N)
    first = tl.program_id(0) // stride + tl.load(table_ptr)
    tl.store(out_ptr + i, tl.load(x_ptr + first * N + i))  # narrow


@triton.jit
def narrowed_again(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    i = tl.arange(0, N)
    page = tl.load(table_ptr + i).to(tl.int64) * N  # narrow
    tl.store(out_ptr + i, tl.load(x_ptr + tl.cast(page, tl.int32) + i))


@triton.jit
def right(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, N)
    page = tl.load(table_ptr + row).to(tl.int64)
    tile = i[:, None] * N + i[None, :]  # bounded by the tile
    nearby = (tl.program_id(0) % 8) * N  # bounded by the remainder
    column = tl.program_id(0) // stride * N + i  # a coordinate along one axis, counted in tiles
    mirrored = (tl.cdiv(stride, N) - 1 - tl.program_id(0) % stride) * N + i  # and one counted from the end
    tl.store(out_ptr + row * N + nearby + tile + column, tl.load(x_ptr + page * stride + tile + mirrored))


@triton.jit
def matmul(x_ptr, out_ptr, table_ptr, stride, N: tl.constexpr):
    i = tl.arange(0, N)
    tile = i[:, None] * N + i[None, :]
    x = tl.load(x_ptr + tile).to(tl.bfloat16)
    tl.store(out_ptr + tile, tl.dot(x, x))


SIGNATURE = {"x_ptr": "*fp32", "out_ptr": "*fp32", "table_ptr": "*i32", "stride": "i32", "N": "constexpr"}
OFFSETS = (
    product, widened_late, constant_stride, constant_stride_of_a_quotient, loaded_index, in_a_loop, a_quotient_before_a_page,
    narrowed_again, right,
)  # fmt: skip


def variant(kernel, size, **options):
    return Variant(kernel.__name__, kernel, SIGNATURE, {"N": size}, {"num_warps": 4} | options, ("x_ptr", "out_ptr"))


def main():
    from twofold.conformance import compile_report, machine_code, offsets

    if sys.argv[1] == "offsets":
        found = {k.__name__: offsets.narrow_offsets(compile_report.compiled(variant(k, 32), 80).asm["ttir"]) for k in OFFSETS}
    else:
        small, spilling = variant(matmul, 64), variant(matmul, 64, maxnreg=32)
        found = {str(arch): machine_code.resources(compile_report.compiled(small, arch), arch) for arch in machine_code.ARCHITECTURES}
        found["spilling"] = machine_code.resources(compile_report.compiled(spilling, 80), 80)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
