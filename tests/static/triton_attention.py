"""Configurations in which the attention room's Triton drawer launches its kernels: each tile, with nothing beside
q, k and v, and with what takes most registers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

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


class Variant(NamedTuple):
    """absent: what it passes as None. flags: bits of FLAGS by name. mask: its type where that is not the dtype's. less:
    columns that BLOCK_D and BLOCK_DV have beyond the head dims."""

    absent: tuple[str, ...]
    flags: tuple[str, ...]
    mask: str = ""
    less: int = 0

    @property
    def load(self) -> str:
        on = "softcap" in self.flags, "dropout" in self.flags, "slopes_ptr" not in self.absent
        kind = "none" if "mask_ptr" in self.absent else "bool" if self.mask == "*i8" else "float"
        return triton_config.load_of(kind, "ranged" in self.flags, sum(on) + (self.mask == "*fp32"))

    def held(self, dim: int) -> str:
        numbered = not {"lengths_ptr", "rows_ptr"} <= {*self.absent}
        return triton_config.with_columns(self.load, dim, self.less == 0, numbered)


_ON = ("ranged", "softcap", "dropout", "negative", "added")
# With little, and with what can be there at once. Beside dropout, and of float32, no backward is given a boolean mask.
VARIANTS = {
    "plain": Variant((*EXTRAS, *PACKED), ()),
    "packed causal": Variant(EXTRAS, ("ranged",)),
    "negative": Variant((*EXTRAS, *PACKED), ("negative",)),
    "narrow": Variant((*EXTRAS, *PACKED), (), less=8),
    "narrow bias": Variant((*ADDED, *PACKED, *DROPOUT, "lengths_ptr"), ("added", "summed"), less=8),
    "bias": Variant((*ADDED, *PACKED, *DROPOUT, "lengths_ptr"), ("added", "summed")),
    "dropout": Variant(("mask_ptr", *ADDED, *PACKED), ("dropout",)),
    "capped": Variant(("mask_ptr", *PACKED, *DROPOUT), ("ranged", "softcap", "added")),
    "mask": Variant((*PACKED, *DROPOUT, "slopes_ptr"), ("negative",), "*i8"),
    "causal mask": Variant((*PACKED, "slopes_ptr"), ("ranged", "dropout"), "*i8"),
    "most mask": Variant(PACKED, _ON, "*i8"),
    "capped mask": Variant((*PACKED, *DROPOUT), tuple(f for f in _ON if f != "dropout"), "*i8"),
    "most bias": Variant(PACKED, (*_ON, "summed")),
    "causal bias": Variant((*PACKED, *ADDED), ("ranged", "dropout", "added", "summed")),
    "full packed": Variant(("mask_ptr", "lengths_ptr"), _ON),
}
# Kernels that some of them say nothing of.
ONLY = {
    "mask": ("bias", "most bias", "causal bias", "narrow bias"),
    "round": ("plain", "packed causal", "narrow"),
    "short": tuple(name for name in VARIANTS if name != "negative"),
}
# Its blocks are the same whatever is on: the other kernels are given less where these are on.
OF = {
    **dict.fromkeys(("causal mask", "most mask"), ("forward",)),
    "capped mask": ("rows", "query", "key", "short", "once"),
}
# Where variants with several things at once are compiled: on AMD, where nothing has run, scalars of some spill.
NVIDIA = ("sm_80", "sm_90")
ARCHITECTURES = dict.fromkeys(
    ("mask", "causal mask", "most mask", "capped mask", "most bias", "causal bias", "full packed"),
    NVIDIA,
)
# Of which a tile of scores has a row for each key.
TRANSPOSED = ("key", "once", "short")
DIMS = (64, 128, 256)
# Products: of 16-bit elements, and of float32 by torch's three settings.
KINDS = (("bf16", "tf32"), ("fp16", "tf32"), *(("fp32", p) for p in ("tf32", "bf16x3", "ieee")))


def _types(kernel: Any, dtype: str) -> dict[str, str]:
    pointers = {name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_ptr")}
    return {**dict.fromkeys(kernel.arg_names, "i32"), **pointers, **TYPES}


def _tile(
    name: str, dim: int, dtype: str, precision: str, arch: str, form: Variant
) -> triton_config.Tile | None:
    bits = 32 if dtype == "fp32" else 16
    if name == "few":
        return triton_config.few(arch, bits, dim, form.load, 1)
    if name == "short":
        return triton_config.short(arch, bits, dim, form.held(dim), 1)
    if name == "once":
        return triton_config.once(arch, bits, dim, form.held(dim))
    if name == "round":
        return _round(arch, bits, dim)
    return triton_config.tiles(arch, bits, precision, dim, form.load)[name]


def _round(arch: str, bits: int, dim: int) -> triton_config.Tile | None:
    if triton_config.once(arch, bits, dim, triton_config.PLAIN) is None:
        return None
    return triton_config.Tile(triton_config.ROUND_ROWS, 0, triton_config.ROUND_WARPS, 1)


def _flags(name: str, form: Variant, dtype: str, precision: str, arch: str) -> int:
    flags = {*form.flags}
    if name != "rows" or dtype == "fp32":
        flags.discard("summed")
    if name == "short":
        flags.discard("negative")
    if name in TRANSPOSED and arch == "sm_90" and dtype != "fp32":
        flags.add("pinned")
    return sum(triton_config.FLAGS[flag] for flag in flags)


def _configuration(
    name: str, variant: str, form: Variant, dim: int, dtype: str, precision: str, arch: str
) -> Configuration | None:
    kernel = KERNELS[name]
    tile = _tile(name, dim, dtype, precision, arch, form)
    if tile is None:
        return None
    types = _types(kernel, dtype)
    if form.mask:
        types["mask_ptr"] = form.mask
    constants = {
        **dict.fromkeys([a for a in form.absent if a in kernel.arg_names]),
        **{"PRECISION": precision, "stride_mk": 1},
        **{"FLAGS": _flags(name, form, dtype, precision, arch)},
        **{"D": dim - form.less, "DV": dim - form.less, "BLOCK_D": dim, "BLOCK_DV": dim},
        **{"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n},
    }
    constants = {a: value for a, value in constants.items() if a in kernel.arg_names}
    bits = 32 if dtype == "fp32" else 16
    if name == "rows" and triton_config.once(arch, bits, dim, form.held(dim)) is None:
        constants["part_ptr"] = None
    if name == "short":
        constants["ROWS_M"] = triton_config.SHORT_ROWS
    wide = () if name in ("rows", "mask") else ("wide load", "wide store")
    # Tiles of 64 queries or keys go through wgmma.
    side = tile.block_n if name in TRANSPOSED else tile.block_m
    wgmma = ("HGMMA",) if dtype != "fp32" and dim <= 128 and side >= 64 else ()
    ieee = precision == "ieee" and dtype == "fp32"
    products = () if ieee or name in ("rows", "round") else ("HMMA", *wgmma)
    return Configuration(
        f"triton attention {name} {variant} {dim} {dtype}{' ' + precision if dtype == 'fp32' else ''}",
        kernel,
        types,
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
        for variant, form in VARIANTS.items():
            if variant not in ONLY.get(name, (variant,)):
                continue
            if name not in OF.get(variant, (name,)):
                continue
            for dim in DIMS:
                for dtype, precision in KINDS:
                    if dtype == "fp32" and triton_config.products(precision, dim) != precision:
                        continue
                    usual = variant == "plain" and (dtype != "fp16" or dim == 64)
                    heavy = dtype == "fp32" and variant in ("bias", "dropout")
                    archs = (
                        ARCHITECTURES.get(variant, TARGETS)
                        if usual or dtype == "bf16" or heavy
                        else ()
                    )
                    if dtype == "fp32" and variant == "most bias":
                        archs = ("sm_80",) if name in ("query", "key", "mask") else ()
                    for arch in archs:
                        found = _configuration(name, variant, form, dim, dtype, precision, arch)
                        if found is not None:
                            yield found


def _combined(mask: str, on: tuple[str, ...], less: int = 0) -> Variant:
    """mask: a key of MASKS. on: what else there is; sinks are given beside ALiBi. less: as Variant has it."""
    given = {"alibi": ADDED, "dropout": DROPOUT}
    present = {*MASKS[mask], *(pointer for feature in on for pointer in given.get(feature, ()))}
    additive = mask.startswith("float")
    flags = [f for f in on if f != "alibi"]
    flags += ["added"] if additive or "alibi" in on else []
    flags += ["summed"] if additive else []
    absent = (a for a in (*EXTRAS, *PACKED) if a not in present)
    kind = {"bool": "*i8", "float32": "*fp32"}.get(mask, "")
    return Variant(tuple(absent), tuple(flags), kind, less)


# Of combinations: what is passed with each.
MASKS = {
    "none": ("lengths_ptr",),
    "packed": PACKED,
    **dict.fromkeys(("bool", "float", "float32"), ("mask_ptr",)),
}
FEATURES = ("ranged", "softcap", "dropout", "alibi")


def combinations(
    name: str, dtype: str, precision: str, arch: str, less: int = 0
) -> Iterator[Configuration]:
    """A kernel with every combination of a mask, a diagonal, softcap, dropout and ALiBi: the table has the likely ones.
    With a scale above 0, and with ALiBi and sinks or neither. less: columns that tiles have beyond the head dims."""
    for mask, dim in itertools.product(MASKS, DIMS):
        if dtype == "fp32" and triton_config.products(precision, dim) != precision:
            continue
        if name == "mask" and not mask.startswith("float"):
            continue
        if dtype == "fp32" and mask == "float32":  # what "float" is
            continue
        for count in range(len(FEATURES) + 1):
            for on in itertools.combinations(FEATURES, count):
                # The backward is given such a mask as numbers to add.
                numbers = dtype == "fp32" or "dropout" in on
                if mask == "bool" and numbers and name not in ("forward", "few"):
                    continue
                label = " ".join(("with", mask, *on, *(("narrow",) if less else ())))
                form = _combined(mask, on, less)
                found = _configuration(name, label, form, dim, dtype, precision, arch)
                if found is not None:
                    yield found
