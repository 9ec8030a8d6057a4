"""The emulator's matrix instructions and asynchronous copies, in the PTX that Triton makes of a product."""

import contextlib

import pytest
import torch

from tests.emulator.core import Module, Options
from tests.emulator.device import why_not
from tests.emulator.memory import DeviceMemory
from tests.emulator.ptx import mutants

pytestmark = pytest.mark.skipif(
    why_not("triton") is not None, reason=f"emulated: {why_not('triton')}"
)
M, N, K = 100, 136, 208
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@contextlib.contextmanager
def driver(device, seed=1):
    from tests.emulator.triton_driver import EmulatedDriver

    active = EmulatedDriver(device, DeviceMemory(("triton",)), Options(seed=seed))
    active.attach()
    try:
        yield active
    finally:
        active.detach()


def matmul(a, b, transposed):
    from tests.emulator.triton_matmul import matmul_kernel

    out = torch.full((M, N), float("nan"))
    matmul_kernel[(2, 3)](a, b, out, M, N, K, 64, transposed, num_warps=4, num_stages=3)
    return out


def operands(dtype, transposed):
    return torch.randn(M, K).to(dtype), torch.randn((N, K) if transposed else (K, N)).to(dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=("bf16", "f16", "tf32"))
@pytest.mark.parametrize("device", [80, 90])
def test_products_are_right(device, dtype, transposed):
    a, b = operands(dtype, transposed)
    with driver(device):
        out = matmul(a, b, transposed)
    right = b.double().T if transposed else b.double()
    exact = a.double() @ right
    # Every product rounds its operands (tf32 only), every sum to float32.
    rounding = 2.0**-10 if dtype == torch.float32 else K * 2.0**-24
    bound = (a.double().abs() @ right.abs()) * rounding
    assert ((out - exact).abs() <= bound).all()


# Which of them, counted from 0, the kernel that Triton 3.6 makes does not need, and why.
EQUIVALENT = {
    80: {0: "before the second copy: nobody has read shared memory yet"},
    90: {
        0: "before the second copy: nobody has read shared memory yet",
        2: "behind the wait: the barrier behind the stores of b comes before anybody reads",
        7: "before the next copy: its buffer was read a turn ago, before this turn's barriers",
    },
}


@pytest.mark.parametrize("device", [80, 90])
def test_every_wait_barrier_and_fence_is_needed(device, monkeypatch):
    survivors, tried = [], []
    original = Module.launch

    def launch(self, name, grid, block, arguments, regions, shared, options):
        for number, (line, text) in enumerate(mutants(self.ptx, name)):
            tried.append(line)
            reports = [
                original(
                    Module(text), name, grid, block, arguments, regions, shared, Options(seed=seed)
                )
                for seed in (1, 2, 3)
            ]
            if any(reports):
                survivors.append(number)
        return original(self, name, grid, block, arguments, regions, shared, options)

    a, b = operands(torch.bfloat16, False)
    with driver(device):
        monkeypatch.setattr(Module, "launch", launch)
        matmul(a, b, False)
    assert any("cp.async.wait_group" in line for line in tried)
    assert any("bar.sync" in line for line in tried)
    if device == 90:
        assert any("wgmma.wait_group" in line for line in tried)
    assert sorted(survivors) == sorted(EQUIVALENT[device])
