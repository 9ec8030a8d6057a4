"""Every configuration in which the packing room's Triton drawer launches its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from bigkernels.ops import triton_table
from bigkernels.ops.packing import triton as drawer
from bigkernels.ops.packing import triton_kernels as kernels
from tests.static.triton_kernels import DTYPES, TARGETS, Configuration

TYPES = {
    **dict.fromkeys(("indices_ptr", "places_ptr", "rows_ptr", "source_ptr"), "*i64"),
    **dict.fromkeys(("counts_ptr", "cu_seq_ptr", "fits_ptr"), "*i32"),
    **dict.fromkeys(("B", "L", "T", "S", "N"), "i32"),
}
INTEGERS = {"u8": torch.uint8, "i64": torch.int64}
# Columns, and what of the code must access 16 bytes at once.
COLUMNS = {1: (), 256: ("wide load", "wide store"), 2048: ("wide load", "wide store")}


def configurations() -> Iterator[Configuration]:
    for arch, mask in itertools.product(TARGETS, ("u8", "i64")):
        tile = triton_table.tile("packing_plan", arch, INTEGERS[mask])
        for name in ("count", "plan"):
            yield Configuration(
                f"triton packing {name} {mask}",
                getattr(kernels, f"packing_{name}_kernel"),
                {**TYPES, "keep_ptr": f"*{mask}"},
                {"BLOCK": tile["block"]},
                {"num_warps": tile["num_warps"]},
                architectures=(arch,),
            )
    for columns, promises in COLUMNS.items():
        for arch, dtype in itertools.product(TARGETS, ("bf16", "fp32", "i64")):
            block_m, block_n, warps = drawer.tile(arch, (DTYPES | INTEGERS)[dtype], columns)
            yield Configuration(
                f"triton packing forward {columns} {dtype}",
                kernels.packing_forward_kernel,
                {**TYPES, "x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}"},
                {"BLOCK_M": block_m, "BLOCK_N": block_n},
                {"num_warps": warps},
                divisible=("N",) if columns > 1 else (),
                promises=promises,
                architectures=(arch,),
            )
