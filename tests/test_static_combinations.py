"""No combination of attention's features spills, the rare ones neither that the static gate's table has no row of."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from bigkernels.ops import triton_launch

if triton_launch.INTERPRETED:
    pytest.skip("emulated: TRITON_INTERPRET=1 keeps Triton from compiling", allow_module_level=True)

from tests.static import triton_attention, triton_kernels

# Kernels that an architecture, or float32, has none of.
NONE = {("few", "sm_80"), ("once", "sm_80"), ("few", "fp32"), ("once", "fp32"), ("short", "fp32")}


@pytest.mark.full
@pytest.mark.parametrize("arch", triton_attention.NVIDIA)
@pytest.mark.parametrize(("dtype", "precision"), [("bf16", "tf32"), ("fp32", "ieee")])
@pytest.mark.parametrize("kernel", [name for name in triton_attention.KERNELS if name != "round"])
@pytest.mark.parametrize("less", [0, 24], ids=["whole", "narrow"])
def test_no_combination_of_features_spills(less, kernel, dtype, precision, arch):
    combinations = [*triton_attention.combinations(kernel, dtype, precision, arch, less)]
    assert bool(combinations) is not bool({(kernel, arch), (kernel, dtype)} & NONE)
    wrong = {c.name: triton_kernels.checked(c, arch)[1] for c in combinations}
    assert {name: faults for name, faults in wrong.items() if faults} == {}
