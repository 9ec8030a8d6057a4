"""Every configuration in which the layer_norm room's Triton drawer launches its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from bigkernels.ops import triton_table
from bigkernels.ops.layer_norm import triton as drawer
from bigkernels.ops.layer_norm import triton_kernels as kernels
from tests.static.triton_kernels import DTYPES, TARGETS, Configuration

TYPES = {
    **dict.fromkeys(("seed_ptr", "offset_ptr", "row_ids_ptr"), "*i64"),
    **dict.fromkeys(("mean_ptr", "rstd_ptr"), "*fp32"),
    **{f"{name}_ptr": "*fp32" for name in ("dweight", "dbias", "dx_bias")},
    **dict.fromkeys(("eps", "scale"), "fp32"),
    **dict.fromkeys(("M", "N", "row_length"), "i32"),
    "threshold": "i64",
}
WIDTHS = tuple(1 << power for power in range(4, 14))
DROPOUT = ("seed_ptr", "offset_ptr", "row_ids_ptr")
# What each variant passes as None; the last column is DROPOUT.
FORWARD = {
    "layer_norm": (("x_bias_ptr", "residual_ptr", "sum_ptr", *DROPOUT), False),
    "add_layer_norm": ((), True),
    "add_rms_norm": (("mean_ptr",), True),
}
BACKWARD = {
    "layer_norm": (("dsum_ptr", "dx_ptr", "dx_bias_ptr", *DROPOUT), False),
    "add_layer_norm": ((), True),
    "add_rms_norm": (("mean_ptr", "dbias_ptr"), True),
}
BACKWARD_TWO_PASS = {
    "rows": (("dweight_ptr", "dbias_ptr"), True),
    "columns": (("dresidual_ptr", "dx_ptr", "dx_bias_ptr"), True),
}


# With nothing that a caller may leave out, at one width.
BARE = {
    "forward": ("x_bias_ptr", "residual_ptr", "weight_ptr", "bias_ptr", "sum_ptr", *DROPOUT),
    "backward": (
        "dsum_ptr",
        "weight_ptr",
        "dx_ptr",
        "dweight_ptr",
        "dbias_ptr",
        "dx_bias_ptr",
        *DROPOUT,
    ),
}


def _configurations(direction: str, n: int, dtype: str, arch: str) -> Iterator[Configuration]:
    kernel = getattr(kernels, f"layer_norm_{direction}_kernel")
    tile = triton_table.row_tile(f"layer_norm_{direction}", arch, DTYPES[dtype], n)
    block = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    whole = BACKWARD if n <= drawer.MAX_COLUMNS_ONE_PASS else BACKWARD_TWO_PASS
    variants = FORWARD if direction == "forward" else whole
    if n == 1024 and dtype == "bf16":
        variants = {**variants, "bare": (BARE[direction], False)}
    for name, (absent, dropout) in variants.items():
        yield Configuration(
            f"triton layer_norm {name}_{direction} {n} {dtype}",
            kernel,
            {**dict.fromkeys(kernel.arg_names, f"*{dtype}"), **TYPES},
            {**dict.fromkeys(absent), "DROPOUT": dropout, **block},
            tile.options(),
            divisible=("N",),
            promises=("wide load", "wide store"),
            architectures=(arch,),
        )


def configurations() -> Iterator[Configuration]:
    kinds = (("forward", "backward"), WIDTHS, ("fp16", "bf16", "fp32"), TARGETS)
    for direction, n, dtype, arch in itertools.product(*kinds):
        yield from _configurations(direction, n, dtype, arch)
