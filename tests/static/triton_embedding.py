"""Every configuration in which the embedding room's Triton drawer launches its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from bigkernels.ops import triton_table
from bigkernels.ops.embedding import triton as drawer
from bigkernels.ops.embedding import triton_kernels as kernels
from tests.static.triton_kernels import DTYPES, TARGETS, Configuration

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
VARIANTS = {
    "": (),
    " places": ("position_ids_ptr", "row_ids_ptr"),
    " bare": (
        *(
            "position_ids_ptr",
            "position_ptr",
            "type_ids_ptr",
            "types_ptr",
            "weight_ptr",
            "bias_ptr",
        ),
        *("dweight_ptr", "dbias_ptr", "seed_ptr", "offset_ptr", "row_ids_ptr"),
    ),
    " frozen": ("dsum_ptr",),
}


def _row_kernel(direction: str, variant: str, n: int, dtype: str, arch: str) -> Configuration:
    kernel = getattr(kernels, f"embedding_{direction}_kernel")
    tile = triton_table.row_tile(f"embedding_{direction}", arch, DTYPES[dtype], n)
    dropout, absent = variant != " bare", [a for a in VARIANTS[variant] if a in kernel.arg_names]
    constants = {"DROPOUT": dropout, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    return Configuration(
        f"triton embedding {direction}{variant} {n} {dtype}",
        kernel,
        {**dict.fromkeys(kernel.arg_names, f"*{dtype}"), **TYPES},
        constants | dict.fromkeys(absent),
        tile.options(),
        divisible=("N",),
        promises=("wide load",),
        architectures=(arch,),
    )


def configurations() -> Iterator[Configuration]:
    for arch, n, direction in itertools.product(TARGETS, WIDTHS, ("forward", "backward")):
        for dtype in ("bf16", "fp32") if n != 1024 else ("fp16", "bf16", "fp32"):
            yield _row_kernel(direction, "", n, dtype, arch)
        yield _row_kernel(direction, " places", n, "bf16", arch)
        if n == 1024:
            yield _row_kernel(direction, " bare", n, "bf16", arch)
            if direction == "backward":
                yield _row_kernel(direction, " frozen", n, "bf16", arch)
    kernel = kernels.embedding_scatter_kernel
    ordered: dict[str, tuple[str, ...]] = {"": (), " places": ("order_ptr", "starts_ptr")}
    shares = (1, drawer.MOST_SPLITS)
    kinds = [*itertools.product(ordered, shares, ("fp32",)), ("", 1, "bf16")]
    for arch, (variant, count, dtype) in itertools.product(TARGETS, kinds):
        tile = triton_table.tile("embedding_scatter", arch, DTYPES[dtype])
        yield Configuration(
            f"triton embedding scatter{variant} {count} {dtype}",
            kernel,
            {**dict.fromkeys(kernel.arg_names, f"*{dtype}"), **TYPES},
            {"SPLITS": count, "BLOCK_M": tile["block_m"], "BLOCK_N": tile["block_n"]}
            | dict.fromkeys(ordered[variant]),
            {"num_warps": tile["num_warps"]},
            divisible=("N",),
            promises=("wide load",),
            architectures=(arch,),
        )
