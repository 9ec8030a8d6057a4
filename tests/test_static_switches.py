"""The static gate meets every switch of every Triton kernel both ways: what is None or not, flags, other constants."""

from __future__ import annotations

import collections
import inspect
import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from bigkernels.ops import triton_launch
from bigkernels.ops.attention import triton_config

if triton_launch.INTERPRETED:
    pytest.skip("emulated: TRITON_INTERPRET=1 keeps Triton from compiling", allow_module_level=True)

from bigkernels.ops import triton_philox
from tests.static import triton_kernels

# What no call of the drawer does: a bias whose gradient is wanted is there, and packed calls have none.
NEVER = {
    ("attention_backward_mask_kernel", "mask_ptr None"),
    ("attention_backward_mask_kernel", "cu_q_ptr given"),
}
# Flags of attention: the kernels that alone are given one; those that never, and that always are.
ONLY = {"pinned": ("key", "once", "short"), "summed": ("rows",)}
OFF = {("short", "negative")}
ON = {("mask", "added"), ("once", "pinned")}
# Of 16 bits alone, whose products are of one kind.
HALVES = ("attention_backward_short_kernel", "attention_backward_once_kernel")
# Constants that are sizes, and attention's flags: tests of their own look at both.
SIZES = re.compile(r"BLOCK(_\w+)?|ROWS_M|D|DV|FLAGS")


def _by_kernel() -> dict[str, list[Any]]:
    found = collections.defaultdict(list)
    for configuration in triton_kernels.configurations().values():
        found[configuration.kernel.__name__].append(configuration)
    return dict(found)


BY_KERNEL = _by_kernel()
kernels = pytest.mark.parametrize("name", sorted(BY_KERNEL))


def _optional(kernel: Any) -> list[str]:
    """Its pointers that the comment of their line, or a comparison, says to be None sometimes."""
    own = inspect.getsource(kernel.fn)
    text = own + inspect.getsource(triton_philox)
    return [
        name
        for name in kernel.arg_names
        if name.endswith("_ptr")
        and re.search(rf"\b{name} is (not )?None|^ *{name},  # .*\bNone\b", text, re.MULTILINE)
    ]


@kernels
def test_what_a_caller_may_leave_out_is_both_left_out_and_given(name):
    configurations = BY_KERNEL[name]
    missing = []
    for pointer in _optional(configurations[0].kernel):
        absent = {pointer in c.constants and c.constants[pointer] is None for c in configurations}
        missing += [f"{pointer} {'None' if a else 'given'}" for a in {True, False} - absent]
    assert {m for m in missing if (name, m) not in NEVER} == set()


@kernels
def test_each_constant_has_several_values(name):
    configurations = BY_KERNEL[name]
    switches = [
        p.name
        for p in configurations[0].kernel.params
        if p.is_constexpr and not SIZES.fullmatch(p.name)
    ]
    if name in HALVES:
        switches.remove("PRECISION")
    values = {s: {c.constants[s] for c in configurations} for s in switches}
    assert {s: v for s, v in values.items() if len(v) < 2} == {}


@kernels
def test_each_flag_is_on_and_off(name):
    configurations = [c for c in BY_KERNEL[name] if "FLAGS" in c.constants]
    for flag, bit in triton_config.FLAGS.items() if configurations else ():
        met = {bool(c.constants["FLAGS"] & bit) for c in configurations}
        kernel = name.removesuffix("_kernel").rpartition("_")[2]
        wanted = {True, False}
        if kernel not in ONLY.get(flag, (kernel,)) or (kernel, flag) in OFF:
            wanted = {False}
        if (kernel, flag) in ON:
            wanted = {True}
        assert met == wanted, flag


def test_attention_meets_heads_that_fill_their_tile_and_narrower_ones():
    for name, configurations in BY_KERNEL.items():
        if name.startswith("attention_"):
            sides = {c.constants["D"] == c.constants["BLOCK_D"] for c in configurations}
            assert sides == {True, False}, name


def test_attention_meets_each_kind_of_mask_and_of_load():
    for name, configurations in BY_KERNEL.items():
        if "stride_mk" in configurations[0].kernel.arg_names:
            given = [c for c in configurations if "mask_ptr" not in c.constants]
            kinds = {"bool" if c.types["mask_ptr"] == "*i8" else "float" for c in given}
            assert kinds == ({"float"} if "_mask_" in name else {"bool", "float"}), name


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("ranged", [False, True])
def test_what_takes_more_registers_is_no_lighter_a_load(mask, ranged):
    loads = [triton_config.LOADS.index(triton_config.load_of(mask, ranged, n)) for n in range(4)]
    assert loads == sorted(loads)
    assert triton_config.load_of(mask, ranged, 0) == (
        "plain" if mask == "none" else "full" if ranged else "busy"
    )
    assert triton_config.load_of("float", ranged, 2 - ranged) == "most"
