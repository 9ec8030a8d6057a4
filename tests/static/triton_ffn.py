"""Every configuration in which the ffn room's Triton drawer launches its kernels."""

from __future__ import annotations

from collections.abc import Iterator

from bigkernels.ops.ffn import triton_kernels as kernels
from bigkernels.ops.ffn import triton_tiles
from tests.static.triton_kernels import DTYPES, TARGETS, Configuration

TYPES = {
    **dict.fromkeys(("seed_ptr", "offset_ptr", "row_ids_ptr"), "*i64"),
    **dict.fromkeys(("dbias1_ptr", "dbias_gate_ptr"), "*fp32"),
    **dict.fromkeys(("M", "F", "E", "E2", "row_length"), "i32"),
    "threshold": "i64",
    "scale": "fp32",
}
GATE = ("weight_gate_ptr", "bias_gate_ptr", "gate_ptr", "dgate_ptr", "dbias_gate_ptr")
# (dtype, PRECISION, activation, gated): the activations in one dtype, the dtypes with one activation.
VARIANTS = (
    ("bf16", "tf32", "gelu", False),
    ("bf16", "tf32", "gelu", True),
    ("bf16", "tf32", "gelu_tanh", False),
    ("bf16", "tf32", "relu", False),
    ("bf16", "tf32", "silu", True),
    ("fp16", "tf32", "gelu", False),
    ("fp32", "tf32", "gelu", False),
    ("fp32", "bf16x3", "gelu", False),
    ("fp32", "ieee", "gelu", False),
    ("fp32", "ieee", "silu", True),
)


_PLACES = ("seed_ptr", "offset_ptr", "row_ids_ptr")
# Of large planes in bfloat16, by direction, activation and whether gated: what a caller may leave out, besides dropout.
BARE = {
    ("forward", "gelu", False): (*_PLACES, "bias1_ptr", "pre_ptr"),
    ("gated", "silu", True): (*_PLACES, "bias1_ptr", "bias_gate_ptr", "pre_ptr", "gate_ptr"),
    ("backward", "relu", False): (*_PLACES, "dpre_ptr"),
    ("backward", "gelu", False): (*_PLACES, "hidden_ptr", "dbias1_ptr"),
}


def configurations() -> Iterator[Configuration]:
    for architecture in TARGETS:
        for dtype, precision, activation, gated in VARIANTS:
            for direction in ("gated" if gated else "forward", "backward"):
                for large in (False,) if dtype == "fp32" else (True, False):
                    tile = triton_tiles.tile_of(
                        architecture, direction, DTYPES[dtype], precision, large
                    )
                    given = (dtype, precision, activation, gated, large, tile)
                    yield _configuration(architecture, direction, *given)
                    absent = BARE.get((direction, activation, gated))
                    if absent and dtype == "bf16" and large:
                        yield _configuration(architecture, direction, *given, absent)


def _configuration(
    architecture: str,
    direction: str,
    dtype: str,
    precision: str,
    activation: str,
    gated: bool,
    large: bool,
    tile: triton_tiles.Tile,
    absent: tuple[str, ...] = (),
) -> Configuration:
    backward = direction == "backward"
    kernel = kernels.ffn_backward_kernel if backward else kernels.ffn_forward_kernel
    constants = {
        **({} if gated else dict.fromkeys(name for name in GATE if name in kernel.arg_names)),
        "ACTIVATION": activation,
        "PRECISION": precision,
        **dict.fromkeys(absent),
        "DROPOUT": not absent,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
    }
    products = "HGMMA" if precision != "ieee" else None
    words = ["bare" if absent else "", direction, "gated" if gated and backward else ""]
    words += [activation, dtype]
    words += [precision] if dtype == "fp32" else ["large" if large else "small"]
    return Configuration(
        " ".join(["triton ffn", *filter(None, words)]),
        kernel,
        {**dict.fromkeys(kernel.arg_names, f"*{dtype}"), **TYPES},
        constants,
        {"num_warps": tile.num_warps, "num_stages": tile.num_stages},
        divisible=("F", "E", "E2"),
        promises=("wide store", *([products] if products else [])),
        architectures=(architecture,),
    )
