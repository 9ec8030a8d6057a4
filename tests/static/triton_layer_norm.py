"""Compile the layer_norm room's Triton kernels ahead of time and print what came out, as JSON.

A process of its own, because Triton decides once, at import, whether it interprets its kernels.
Arguments: the architectures, widths and dtypes, each comma-separated.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import triton
from resources import read
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bigkernels.ops.layer_norm import triton as drawer
from bigkernels.ops.layer_norm import triton_kernels as kernels

SCALARS = {
    **dict.fromkeys(("seed_ptr", "offset_ptr", "row_ids_ptr"), "*i64"),
    **dict.fromkeys(("mean_ptr", "rstd_ptr"), "*fp32"),
    **{f"{name}_ptr": "*fp32" for name in ("dweight", "dbias", "dx_bias")},
    **{f"{name}_partial_ptr": "*fp32" for name in ("dweight", "dbias", "dx_bias")},
    **dict.fromkeys(("eps", "scale"), "fp32"),
    **dict.fromkeys(("M", "N", "P", "row_length"), "i32"),
    "threshold": "i64",
}
DROPOUT = ("seed_ptr", "offset_ptr", "row_ids_ptr")
# What each variant passes as None; the last column is DROPOUT.
FORWARD = {
    "layer_norm": (("x_bias_ptr", "residual_ptr", "sum_ptr", *DROPOUT), False),
    "add_layer_norm": ((), True),
}
BACKWARD = {
    "layer_norm": (("dsum_ptr", "dx_ptr", "dx_bias_ptr", *DROPOUT), False),
    "add_layer_norm": ((), True),
}
BACKWARD_TWO_PASS = {
    "rows": (("dweight_ptr", "dbias_ptr"), True),
    "columns": (("dresidual_ptr", "dx_ptr", "dx_bias_ptr"), True),
}


def compiled(
    kernel: Any, arch: int, dtype: str, constants: dict[str, Any], options: dict[str, int]
) -> dict[str, Any]:
    signature = {
        name: "constexpr" if name in constants else SCALARS.get(name, f"*{dtype}")
        for name in kernel.arg_names
    }
    # What the JIT finds out at a call: pointers and N are multiples of 16.
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name == "N"
    }
    source = ASTSource(kernel, signature, constants, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(built.asm["cubin"])
        cubin.flush()
        (found,) = read(cubin.name).values()
    return {**dataclasses.asdict(found), "spills": found.spills(), "shared": built.metadata.shared}


def configurations(n: int) -> Iterator[tuple[str, Any, dict[str, Any], dict[str, int]]]:
    block_m, block_n, num_warps = drawer.tile(n, drawer.FORWARD_ELEMENTS)
    options = {"num_warps": num_warps}
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n}
    for name, (absent, dropout) in FORWARD.items():
        constants = {**dict.fromkeys(absent), "DROPOUT": dropout, **tile}
        yield f"{name}_forward", kernels.layer_norm_forward_kernel, constants, options
    block_m, block_n, num_warps = drawer.tile(n, drawer.BACKWARD_ELEMENTS)
    options = {"num_warps": num_warps, "maxnreg": drawer.BACKWARD_REGISTERS}
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n}
    variants = BACKWARD if n <= drawer.MAX_COLUMNS_ONE_PASS else BACKWARD_TWO_PASS
    for name, (absent, dropout) in variants.items():
        constants = {**dict.fromkeys(absent), "DROPOUT": dropout, **tile}
        yield f"{name}_backward", kernels.layer_norm_backward_kernel, constants, options
    block_m, block_n = drawer.COLUMN_SUM_TILE
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n}
    yield "column_sum", kernels.layer_norm_column_sum_kernel, tile, {"num_warps": 4}


def main() -> None:
    archs, widths, dtypes = (argument.split(",") for argument in sys.argv[1:4])
    rows = []
    for n in map(int, widths):
        for name, kernel, constants, options in configurations(n):
            for dtype in dtypes if name != "column_sum" else ["fp32"]:
                for arch in map(int, archs):
                    facts = compiled(kernel, arch, dtype, constants, options)
                    rows.append({"kernel": name, "n": n, "dtype": dtype, "arch": arch, **facts})
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
