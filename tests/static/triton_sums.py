"""The configurations of what all rooms' Triton drawers share."""

from __future__ import annotations

from collections.abc import Iterator

from bigkernels.ops import triton_launch
from bigkernels.ops.triton_sums import column_sum_kernel
from tests.static.triton_kernels import Configuration


def configurations() -> Iterator[Configuration]:
    block_m, block_n = triton_launch.COLUMN_SUM_TILE
    for dtype in ("fp32", "bf16", "fp16"):
        types = {f"partial{i}_ptr": "*fp32" for i in range(3)}
        types |= {f"total{i}_ptr": f"*{dtype}" for i in range(3)}
        yield Configuration(
            f"triton column_sum {dtype}",
            column_sum_kernel,
            {**types, "P": "i32", "N": "i32"},
            {"BLOCK_M": block_m, "BLOCK_N": block_n},
            {"num_warps": 4},
            divisible=("N",),
            promises=("wide load",),
        )
