"""Every configuration in which the cross_entropy room's Triton drawer launches its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from bigkernels.ops import triton_table
from bigkernels.ops.cross_entropy import triton as drawer
from bigkernels.ops.cross_entropy import triton_kernels as kernels
from tests.static.triton_kernels import DTYPES, TARGETS, Configuration

TYPES = {
    **dict.fromkeys(("loss_ptr", "lse_ptr", "rows_ptr"), "*fp32"),
    "target_ptr": "*i64",
    "good_ptr": "*i1",
    **dict.fromkeys(("N", "V", "step"), "i32"),
    "ignore_index": "i64",
    "label_smoothing": "fp32",
}
CLASSES = tuple(1 << power for power in range(7, 12))


# What each reduction passes as None: that of the mean nothing.
REDUCTIONS = {"": (), " sum": ("rows_ptr",), " none": ("loss_ptr", "out_ptr", "rows_ptr")}


def configurations() -> Iterator[Configuration]:
    directions = {
        "forward": kernels.cross_entropy_forward_kernel,
        "backward": kernels.cross_entropy_backward_kernel,
    }
    kinds = itertools.product(CLASSES, directions.items(), ("bf16", "fp32"), TARGETS)
    for classes, (direction, kernel), dtype, arch in kinds:
        op = f"cross_entropy_{direction}"
        block, num_warps = drawer.tile(op, arch, DTYPES[dtype], classes)
        sums = (False, True) if direction == "backward" and classes == 2048 else (False,)
        for smoothing, summed in itertools.product((False, True), sums):
            yield Configuration(
                f"triton cross_entropy {direction}{' smoothing' if smoothing else ''}"
                f"{' sum' if summed else ''} {classes} {dtype}",
                kernel,
                {**dict.fromkeys(kernel.arg_names, f"*{dtype}"), **TYPES},
                {"SMOOTHING": smoothing, "BLOCK": block, **({"rows_ptr": None} if summed else {})},
                {"num_warps": num_warps},
                divisible=("V",),
                architectures=(arch,),
            )
    kernel = kernels.cross_entropy_reduce_kernel
    for (reduction, absent), dtype, arch in itertools.product(
        REDUCTIONS.items(), ("bf16", "fp32"), TARGETS
    ):
        if reduction and dtype == "fp32":
            continue
        tile = triton_table.tile("cross_entropy_reduce", arch, DTYPES[dtype])
        yield Configuration(
            f"triton cross_entropy reduce{reduction} {dtype}",
            kernel,
            {**dict.fromkeys(kernel.arg_names, f"*{dtype}"), **TYPES},
            {"BLOCK": tile["block"], **dict.fromkeys(absent)},
            {"num_warps": tile["num_warps"]},
            architectures=(arch,),
        )
