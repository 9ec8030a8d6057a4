"""What the GPU compilers made of the kernels, read from their output on a machine without a GPU.

None of this runs a kernel: it says that every shipped configuration compiles, keeps its values in
registers, and moves rows in 128-bit pieces.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
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


CUDA_LIBRARY = ROOT / "bigkernels" / "libbigkernels_cuda.so"
needs_cuda_library = pytest.mark.skipif(
    not CUDA_LIBRARY.exists(), reason="libbigkernels_cuda.so is not built (no nvcc here)"
)


@pytest.fixture(scope="module")
def cuda_kernels() -> dict[tuple[int, str], resources.Resources]:
    return resources.read(str(CUDA_LIBRARY))


@needs_tools
@needs_cuda_library
def test_cuda_kernels_are_built_for_every_architecture(cuda_kernels) -> None:
    info = json.loads((CUDA_LIBRARY.parent / "_build_info.json").read_text())
    wanted = {int(re.match(r"\d+", name)[0]) for name in info["cuda_architectures"]}
    names = {arch: {name for a, name in cuda_kernels if a == arch} for arch in wanted}
    assert len(set(map(frozenset, names.values()))) == 1, "an architecture lacks a kernel"
    assert {arch for arch, _ in cuda_kernels} == wanted


@needs_tools
@needs_cuda_library
def test_cuda_kernels_keep_their_values_in_registers(cuda_kernels) -> None:
    assert cuda_kernels
    for key, kernel in cuda_kernels.items():
        assert (kernel.stack, kernel.local, kernel.spills()) == (0, 0, 0), (key, kernel)


@needs_tools
@needs_cuda_library
def test_cuda_layer_norm_moves_rows_in_128_bit_pieces(cuda_kernels) -> None:
    # Template arguments: element type, elements an access. Of 1 there are both sorts of rows, of 4
    # and 8 only whole 16-byte ones.
    wide = {
        key: kernel.instructions
        for key, kernel in cuda_kernels.items()
        if re.search(r"layer_norm_(for|back)ward_kernel\w*Li[48]E", key[1])
    }
    assert len(wide) == 21 * len({arch for arch, _ in cuda_kernels})
    for key, found in wide.items():
        assert found["LDG.128"] >= 2, key
        assert found["STG.128"] >= 2, key
        assert "LDG.16" not in found, key
        assert "STG.16" not in found, key
        # Seed, offset, positions and statistics of a row.
        assert found.get("LDG.32", 0) + found.get("LDG.64", 0) <= 6, key
        assert found.get("STG.32", 0) <= 2, key
