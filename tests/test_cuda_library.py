"""How the CUDA launchers are found, loaded and reported on, as far as a machine without a GPU can tell."""

import pathlib
import shutil
import subprocess

import pytest
import torch

import bigkernels
from bigkernels import library

LIBRARY = pathlib.Path(bigkernels.__file__).with_name("libbigkernels_cuda.so")

pytestmark = [
    pytest.mark.skipif(library.extension_error is not None, reason=str(library.extension_error)),
    pytest.mark.skipif(not LIBRARY.exists(), reason="libbigkernels_cuda.so is not built"),
]
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to launch on")


@pytest.fixture
def use_library():
    yield torch.ops.bigkernels_test.use_cuda_library
    torch.ops.bigkernels_test.use_cuda_library("", False)


def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.ops.bigkernels.layer_norm_forward_cuda(x, None, None, x.shape[-1], 1e-5)


def backward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    stat = torch.zeros(x.shape[0])
    return torch.ops.bigkernels.layer_norm_backward_cuda(
        x, x, stat, stat, None, x.shape[-1], True, True, True
    )


def test_cpu_tensors_are_refused() -> None:
    with pytest.raises(RuntimeError, match="tensor on another device"):
        forward(torch.randn(3, 16))


@needs_no_gpu
@pytest.mark.parametrize("function", [forward, backward])
def test_a_launch_without_a_driver_is_an_error_not_a_crash(use_library, function) -> None:
    use_library("", True)
    with pytest.raises(RuntimeError, match=r"CUDA error \d+: .*driver"):
        function(torch.randn(3, 16))


def test_rows_the_kernels_do_not_take_are_refused_before_a_launch(use_library) -> None:
    use_library("", True)
    with pytest.raises(RuntimeError, match="no float64"):
        forward(torch.randn(3, 16, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="take up to 8192"):
        forward(torch.randn(3, 8193))


def test_nothing_is_launched_for_no_rows(use_library) -> None:
    use_library("", True)
    out, mean, rstd = forward(torch.randn(0, 16))
    assert out.shape == (0, 16) and mean.shape == rstd.shape == (0,)
    dx, dweight, dbias = backward(torch.randn(0, 16))
    assert dx.shape == (0, 16)
    assert torch.equal(dweight, torch.zeros(16)) and torch.equal(dbias, torch.zeros(16))


def test_a_missing_library_is_named(use_library, tmp_path) -> None:
    use_library(str(tmp_path / "none.so"), True)
    with pytest.raises(RuntimeError, match=r"do not load: .*none\.so"):
        forward(torch.randn(3, 16))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_library_of_another_build_is_refused(use_library, tmp_path) -> None:
    source, built = tmp_path / "other.cpp", tmp_path / "other.so"
    source.write_text('extern "C" int bigkernels_cuda_abi_version() { return -1; }')
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(built)], check=True)
    use_library(str(built), True)
    with pytest.raises(RuntimeError, match="ABI version -1"):
        forward(torch.randn(3, 16))


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm (binutils)")
def test_only_launchers_are_exported() -> None:
    command = ["nm", "-D", "--defined-only", str(LIBRARY)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in text.splitlines()]
    assert "bigkernels_cuda_abi_version" in names
    assert [name for name in names if not name.startswith("bigkernels_")] == []
