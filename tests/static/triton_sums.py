"""The configurations of what all rooms' Triton drawers share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from bigkernels.ops import triton_table
from bigkernels.ops.triton_sums import column_sum_kernel
from tests.static.triton_kernels import TARGETS, Configuration


def configurations() -> Iterator[Configuration]:
    kinds = ("fp32", ()), ("bf16", ()), ("fp16", ()), ("fp32", (0,)), ("fp32", (1, 2))
    for arch, (dtype, absent) in itertools.product(TARGETS, kinds):
        tile = triton_table.tile("column_sum", arch, torch.float32)
        types = {f"partial{i}_ptr": "*fp32" for i in range(3)}
        types |= {f"total{i}_ptr": f"*{dtype}" for i in range(3)}
        yield Configuration(
            " ".join(["triton column_sum", *(f"no{i}" for i in absent), dtype]),
            column_sum_kernel,
            {**types, "P": "i32", "N": "i32"},
            {"BLOCK_M": tile["block_m"], "BLOCK_N": tile["block_n"]}
            | {f"{name}{i}_ptr": None for name in ("partial", "total") for i in absent},
            {"num_warps": tile["num_warps"]},
            divisible=("N",),
            promises=("wide load",),
            architectures=(arch,),
        )
