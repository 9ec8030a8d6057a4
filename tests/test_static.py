"""What the GPU compilers made of the kernels, read from their output on a machine without a GPU.

None of this runs a kernel: it says that every shipped configuration compiles, keeps its values in
registers, and moves rows in 128-bit pieces.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.static import resources

ROOT = pathlib.Path(__file__).resolve().parent.parent
needs_tools = pytest.mark.skipif(
    resources.find_tool("cuobjdump") is None,
    reason="cuobjdump is neither on the PATH nor in a Triton wheel",
)


def compile_triton(room: str, archs: str, widths: str, dtypes: str) -> list[dict[str, object]]:
    pytest.importorskip("triton", reason="triton is not installed")
    script = ROOT / "tests" / "static" / f"triton_{room}.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, str(script), archs, widths, dtypes],
        capture_output=True,
        text=True,
        env=environment,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout))


def check_triton(kernels: list[dict[str, object]], expected: int) -> None:
    assert len(kernels) == expected
    for kernel in kernels:
        assert kernel["stack"] == kernel["local"] == kernel["spills"] == 0, kernel
        instructions = kernel["instructions"]
        assert isinstance(instructions, dict)
        assert instructions.get("LDG.128", 0) > 0, kernel
        if kernel["kernel"] != "column_sum":
            assert instructions.get("STG.128", 0) > 0, kernel


@needs_tools
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_triton_layer_norm_does_not_spill_on_hopper(dtype: str) -> None:
    kernels = compile_triton("layer_norm", "90", "64,1024,8192", dtype)
    check_triton(kernels, 3 * 5)


@pytest.mark.full
@needs_tools
@pytest.mark.parametrize("arch", ["80", "90"])
def test_no_triton_layer_norm_configuration_spills(arch: str) -> None:
    widths = ",".join(str(1 << power) for power in range(4, 14))
    kernels = compile_triton("layer_norm", arch, widths, "fp16,bf16,fp32")
    check_triton(kernels, 10 * (4 * 3 + 1))
