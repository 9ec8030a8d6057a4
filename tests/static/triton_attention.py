"""Configurations in which the attention room's Triton drawer launches its kernels: each tile, with nothing beside
q, k and v, and with what takes most registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bigkernels.ops.attention import triton as drawer
from bigkernels.ops.attention import (
    triton_backward_key,
    triton_backward_mask,
    triton_backward_once,
    triton_backward_query,
    triton_backward_rows,
    triton_backward_short,
    triton_config,
    triton_forward,
)
from tests.static.triton_kernels import TARGETS, Configuration

KERNELS = {
    "forward": triton_forward.attention_forward_kernel,
    "few": triton_forward.attention_forward_kernel,  # where no sequence is longer than a tile
    "rows": triton_backward_rows.attention_backward_rows_kernel,
    "query": triton_backward_query.attention_backward_query_kernel,
    "key": triton_backward_key.attention_backward_key_kernel,
    "mask": triton_backward_mask.attention_backward_mask_kernel,
    "once": triton_backward_once.attention_backward_once_kernel,
    "round": triton_backward_once.attention_backward_round_kernel,
    "short": triton_backward_short.attention_backward_short_kernel,
}
STATISTICS = ("lse_ptr", "dlse_ptr", "delta_ptr", "most_ptr", "weight_ptr", "part_ptr")
DROPOUT = ("seed_ptr", "offset_ptr", "rows_ptr")
TYPES = {
    **dict.fromkeys(DROPOUT, "*i64"),
    **dict.fromkeys(("cu_q_ptr", "cu_k_ptr", "lengths_ptr"), "*i32"),
    **dict.fromkeys((*STATISTICS, "slopes_ptr", "sinks_ptr"), "*fp32"),
    **dict.fromkeys(("scale", "softcap", "keep_scale"), "fp32"),
    "threshold": "i64",
}
ADDED = ("slopes_ptr", "sinks_ptr")
EXTRAS = ("mask_ptr", "lengths_ptr", *ADDED, "dlse_ptr", *DROPOUT)
PACKED = ("cu_q_ptr", "cu_k_ptr")
BITS = drawer.FLAGS
# What each variant passes as None, its flags, whether it is plain to triton_config.
VARIANTS = {
    "plain": ((*EXTRAS, *PACKED), 0, True),
    "packed causal": (EXTRAS, BITS["ranged"], True),
    "negative": ((*EXTRAS, *PACKED), BITS["negative"], True),
    "bias": ((*ADDED, *PACKED, *DROPOUT, "lengths_ptr"), BITS["added"] | BITS["summed"], False),
    "dropout": (("mask_ptr", *ADDED, *PACKED), BITS["dropout"], False),
    "capped": (
        ("mask_ptr", *PACKED, *DROPOUT),
        BITS["ranged"] | BITS["softcap"] | BITS["added"],
        False,
    ),
}
# Kernels that some of them say nothing of: a negative scale is not for short sequences.
ONLY = {
    "mask": ("bias",),
    "round": ("plain", "packed causal"),
    "short": tuple(name for name in VARIANTS if name != "negative"),
}
DIMS = (64, 128, 256)
# Products: of 16-bit elements, and of float32 by torch's three settings.
KINDS = (("bf16", "tf32"), ("fp16", "tf32"), *(("fp32", p) for p in ("tf32", "bf16x3", "ieee")))


def _types(kernel: Any, dtype: str) -> dict[str, str]:
    pointers = {name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_ptr")}
    return {**dict.fromkeys(kernel.arg_names, "i32"), **pointers, **TYPES}


def _tile(
    name: str, dim: int, dtype: str, precision: str, arch: str, plain: bool
) -> triton_config.Tile | None:
    bits = 32 if dtype == "fp32" else 16
    if name == "few":
        return triton_config.few(arch, bits, dim, plain, 1)
    if name == "short":
        return triton_config.short(arch, bits, dim, plain, 1)
    if name == "once":
        return triton_config.once(arch, bits, dim, plain)
    if name == "round":
        return _round(arch, bits, dim)
    return triton_config.tiles(arch, bits, precision, dim, plain)[name]


def _round(arch: str, bits: int, dim: int) -> triton_config.Tile | None:
    if triton_config.once(arch, bits, dim, True) is None:
        return None
    return triton_config.Tile(triton_config.ROUND_ROWS, 0, triton_config.ROUND_WARPS, 1)


def _configuration(
    name: str, variant: str, dim: int, dtype: str, precision: str, arch: str
) -> Configuration | None:
    kernel = KERNELS[name]
    absent, flags, plain = VARIANTS[variant]
    if name != "rows" or dtype == "fp32":
        flags &= ~BITS["summed"]
    ieee = precision == "ieee" and dtype == "fp32"
    tile = _tile(name, dim, dtype, precision, arch, plain)
    if tile is None:
        return None
    constants = {
        **dict.fromkeys([a for a in absent if a in kernel.arg_names]),
        **{"FLAGS": flags, "PRECISION": precision, "UNIT": 8, "stride_mk": 1},
        **{"D": dim, "DV": dim, "BLOCK_D": dim, "BLOCK_DV": dim},
        **{"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n},
    }
    constants = {a: value for a, value in constants.items() if a in kernel.arg_names}
    bits = 32 if dtype == "fp32" else 16
    if name == "rows" and triton_config.once(arch, bits, dim, plain) is None:
        constants["part_ptr"] = None
    if name in ("key", "short", "once") and arch == "sm_90" and dtype != "fp32":
        constants["FLAGS"] |= BITS["pinned"]
    if name == "short":
        constants["ROWS_M"] = triton_config.SHORT_ROWS
    wide = () if name in ("rows", "mask") else ("wide load", "wide store")
    # Tiles of 64 queries or keys go through wgmma.
    narrow = name == "short" and tile.block_n < 64
    wgmma = ("HGMMA",) if dtype != "fp32" and dim <= 128 and not narrow else ()
    products = () if ieee or name in ("rows", "round") else ("HMMA", *wgmma)
    return Configuration(
        f"triton attention {name} {variant} {dim} {dtype}{' ' + precision if dtype == 'fp32' else ''}",
        kernel,
        _types(kernel, dtype),
        constants,
        {
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
            "maxnreg": triton_config.REGISTERS,
        }
        if name != "round"
        else {"num_warps": tile.num_warps},
        promises=(*wide, *products),
        architectures=(arch,),
    )


def configurations() -> Iterator[Configuration]:
    for name in KERNELS:
        for variant in VARIANTS:
            if variant not in ONLY.get(name, (variant,)):
                continue
            for dim in DIMS:
                for dtype, precision in KINDS:
                    if dtype == "fp32" and triton_config.products(precision, dim) != precision:
                        continue
                    usual = variant == "plain" and (dtype != "fp16" or dim == 64)
                    heavy = dtype == "fp32" and variant in ("bias", "dropout")
                    if usual or dtype == "bf16" or heavy:
                        for arch in TARGETS:
                            found = _configuration(name, variant, dim, dtype, precision, arch)
                            if found is not None:
                                yield found
