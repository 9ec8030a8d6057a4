"""The static gate meets every switch of the Triton kernels of all rooms but attention both ways: what is None, and
constants that are not sizes."""

from __future__ import annotations

import collections
import inspect
import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from bigkernels.ops import triton_launch

if triton_launch.INTERPRETED:
    pytest.skip("emulated: TRITON_INTERPRET=1 keeps Triton from compiling", allow_module_level=True)

from bigkernels.ops import triton_philox
from tests.static import triton_kernels

# Constants that are sizes of tiles.
SIZES = re.compile(r"BLOCK(_\w+)?|ROWS_M")


def _by_kernel() -> dict[str, list[Any]]:
    found = collections.defaultdict(list)
    for configuration in triton_kernels.configurations().values():
        # Attention's kernels share one word of flags.
        if not configuration.name.startswith("triton attention "):
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
    assert missing == []


@kernels
def test_each_constant_has_several_values(name):
    configurations = BY_KERNEL[name]
    switches = [
        p.name
        for p in configurations[0].kernel.params
        if p.is_constexpr and not SIZES.fullmatch(p.name)
    ]
    values = {s: {c.constants[s] for c in configurations} for s in switches}
    assert {s: v for s, v in values.items() if len(v) < 2} == {}
