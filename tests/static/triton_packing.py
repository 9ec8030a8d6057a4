"""Every configuration in which the packing room's Triton drawer launches its kernels."""

from __future__ import annotations

from collections.abc import Iterator

from bigkernels.ops.packing import triton as drawer
from bigkernels.ops.packing import triton_kernels as kernels
from tests.static.triton_kernels import Configuration

TYPES = {
    **dict.fromkeys(("indices_ptr", "places_ptr", "rows_ptr", "source_ptr"), "*i64"),
    **dict.fromkeys(("counts_ptr", "cu_seq_ptr"), "*i32"),
    **dict.fromkeys(("B", "L", "T", "S", "N"), "i32"),
}
# Columns, and what of the code must access 16 bytes at once.
COLUMNS = {1: (), 256: ("wide load", "wide store"), 2048: ("wide load", "wide store")}


def configurations() -> Iterator[Configuration]:
    plan = {"BLOCK": drawer.PLAN_BLOCK}
    for name, kernel in (
        ("count", kernels.packing_count_kernel),
        ("plan", kernels.packing_plan_kernel),
    ):
        for mask in ("u8", "i64"):
            yield Configuration(
                f"triton packing {name} {mask}",
                kernel,
                {**TYPES, "keep_ptr": f"*{mask}"},
                plan,
                {"num_warps": drawer.PLAN_WARPS},
            )
    for columns, promises in COLUMNS.items():
        block_m, block_n = drawer.tile(columns)
        for dtype in ("bf16", "fp32", "i64"):
            yield Configuration(
                f"triton packing forward {columns} {dtype}",
                kernels.packing_forward_kernel,
                {**TYPES, "x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}"},
                {"BLOCK_M": block_m, "BLOCK_N": block_n},
                {"num_warps": drawer.COPY_WARPS},
                divisible=("N",) if columns > 1 else (),
                promises=promises,
            )
