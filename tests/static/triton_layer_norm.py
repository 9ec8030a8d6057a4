"""Every configuration in which the layer_norm room's Triton drawer launches its kernels."""

from __future__ import annotations

from collections.abc import Iterator

from bigkernels.ops import triton_launch
from bigkernels.ops.layer_norm import triton as drawer
from bigkernels.ops.layer_norm import triton_kernels as kernels
from tests.static.triton_kernels import Configuration

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


def _row_kernels(n: int) -> Iterator[tuple[str, object, dict[str, object], dict[str, int]]]:
    block_m, block_n, num_warps = triton_launch.row_tile(n, drawer.FORWARD_ELEMENTS)
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n}
    for name, (absent, dropout) in FORWARD.items():
        constants = {**dict.fromkeys(absent), "DROPOUT": dropout, **tile}
        options = {"num_warps": num_warps}
        yield f"{name}_forward", kernels.layer_norm_forward_kernel, constants, options
    block_m, block_n, num_warps = triton_launch.row_tile(n, drawer.BACKWARD_ELEMENTS)
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n}
    variants = BACKWARD if n <= drawer.MAX_COLUMNS_ONE_PASS else BACKWARD_TWO_PASS
    for name, (absent, dropout) in variants.items():
        constants = {**dict.fromkeys(absent), "DROPOUT": dropout, **tile}
        options = {"num_warps": num_warps, "maxnreg": triton_launch.BACKWARD_REGISTERS}
        yield f"{name}_backward", kernels.layer_norm_backward_kernel, constants, options


def configurations() -> Iterator[Configuration]:
    for n in WIDTHS:
        for name, kernel, constants, options in _row_kernels(n):
            for dtype in ("fp16", "bf16", "fp32"):
                yield Configuration(
                    f"triton layer_norm {name} {n} {dtype}",
                    kernel,
                    {**dict.fromkeys(kernel.arg_names, f"*{dtype}"), **TYPES},
                    constants,
                    options,
                    divisible=("N",),
                    promises=("wide load", "wide store"),
                )
