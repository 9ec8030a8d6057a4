"""Every configuration in which the embedding room's Triton drawer launches its kernels."""

from __future__ import annotations

from collections.abc import Iterator

from bigkernels.ops import triton_launch
from bigkernels.ops.embedding import triton as drawer
from bigkernels.ops.embedding import triton_kernels as kernels
from tests.static.triton_kernels import Configuration

TYPES = {
    **dict.fromkeys(("seed_ptr", "offset_ptr", "row_ids_ptr"), "*i64"),
    **dict.fromkeys(("ids_ptr", "position_ids_ptr", "type_ids_ptr"), "*i64"),
    **dict.fromkeys(("order_ptr", "starts_ptr"), "*i64"),
    "good_ptr": "*i1",
    **{f"{name}_ptr": "*fp32" for name in ("mean", "rstd", "dsum", "dweight", "dbias")},
    **dict.fromkeys(("word_count", "position_count", "type_count", "count"), "i32"),
    **dict.fromkeys(("M", "N", "row_length", "period", "padding_row"), "i32"),
    **dict.fromkeys(("eps", "scale"), "fp32"),
    "threshold": "i64",
}
WIDTHS = tuple(1 << power for power in range(4, 13))
# What each variant passes as None: places are those of a padded batch where nothing says another.
VARIANTS = {"": (), " places": ("position_ids_ptr", "row_ids_ptr")}


def _row_kernels(n: int) -> Iterator[tuple[str, object, dict[str, object], dict[str, int]]]:
    block_m, block_n, num_warps = triton_launch.row_tile(n, drawer.FORWARD_ELEMENTS)
    constants = {"DROPOUT": True, "BLOCK_M": block_m, "BLOCK_N": block_n}
    yield "forward", kernels.embedding_forward_kernel, constants, {"num_warps": num_warps}
    block_m, block_n, num_warps = triton_launch.row_tile(n, drawer.BACKWARD_ELEMENTS)
    options = {"num_warps": num_warps, "maxnreg": triton_launch.BACKWARD_REGISTERS}
    constants = {"DROPOUT": True, "BLOCK_M": block_m, "BLOCK_N": block_n}
    yield "backward", kernels.embedding_backward_kernel, constants, options


def configurations() -> Iterator[Configuration]:
    for n in WIDTHS:
        for name, kernel, constants, options in _row_kernels(n):
            dtypes = ("bf16", "fp32") if n != 1024 else ("fp16", "bf16", "fp32")
            kinds = [("", dtype) for dtype in dtypes] + [(" places", "bf16")]
            for variant, dtype in kinds:
                yield Configuration(
                    f"triton embedding {name}{variant} {n} {dtype}",
                    kernel,
                    {**dict.fromkeys(kernel.arg_names, f"*{dtype}"), **TYPES},
                    constants | dict.fromkeys(VARIANTS[variant]),
                    options,
                    divisible=("N",),
                    promises=("wide load",),
                )
    kernel = kernels.embedding_scatter_kernel
    block_m, block_n = drawer.SCATTER_TILE
    ordered: dict[str, tuple[str, ...]] = {"": (), " places": ("order_ptr", "starts_ptr")}
    for shares in (1, drawer.MOST_SPLITS):
        kinds = [(variant, "fp32") for variant in ordered] + [("", "bf16")] * (shares == 1)
        for variant, dtype in kinds:
            yield Configuration(
                f"triton embedding scatter{variant} {shares} {dtype}",
                kernel,
                {**dict.fromkeys(kernel.arg_names, f"*{dtype}"), **TYPES},
                {"SPLITS": shares, "BLOCK_M": block_m, "BLOCK_N": block_n}
                | dict.fromkeys(ordered[variant]),
                {"num_warps": 4},
                divisible=("N",),
                promises=("wide load",),
            )
