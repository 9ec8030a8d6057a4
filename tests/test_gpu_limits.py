"""What the GPU drawers refuse, and what they hand to Triton, on GPUs and settings that need not be here."""

import inspect
import subprocess
import sys
import types

import pytest
import torch

import bigkernels as bk
from bigkernels import backends
from bigkernels.ops import attention, checks, triton_launch  # noqa: F401
from bigkernels.ops.attention import triton_arguments, triton_config
from bigkernels.ops.layer_norm import cuda as layer_norm_cuda
from bigkernels.ops.layer_norm.contract import Facts

GPU = torch.device("cuda", 1)
AMD = "gfx90a"


@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
@pytest.mark.parametrize("packed", [False, True])
def test_learned_parameters_of_attention_get_their_gradient(name, packed, sm_80):
    q = torch.randn(1, 2, 5, 16)
    parameter = torch.rand(2, requires_grad=True)
    ends = torch.tensor([0, 5])

    def call(**given):
        if packed:
            x = q[0].transpose(0, 1)
            return bk.varlen_attn(x, x, x, ends, ends, **{name: parameter}, **given)
        return bk.scaled_dot_product_attention(q, q, q, **{name: parameter}, **given)

    with pytest.raises(bk.Unsupported, match="learned alibi_slopes or sinks get no gradient"):
        call(backend="triton")
    (gradient,) = torch.autograd.grad(call().square().sum(), parameter)
    assert gradient.abs().min() > 0
    with torch.no_grad():
        torch.testing.assert_close(call(backend="triton"), call(backend="reference"))


def test_explain_says_that_learned_sinks_are_the_references():
    q, sinks = torch.randn(1, 2, 5, 16), torch.rand(2, requires_grad=True)
    facts = bk.explain("attention", q, q, q, sinks=sinks).facts
    assert facts.learned and facts.needs_grad
    if triton_launch.MISSING is None:
        why = backends.refusals("attention", "triton", facts._replace(device="cuda"))
        assert why == ("learned alibi_slopes or sinks get no gradient",)
    assert not bk.explain("attention", q, q, q, sinks=sinks.detach()).facts.learned


def properties(monkeypatch, hip, **named):
    """As if GPUs were here: that of index 1 has these properties, all others the newest ones."""
    asked = types.SimpleNamespace(**named)
    usual = types.SimpleNamespace(major=9, minor=0, gcnArchName="gfx942")
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda d=None: asked if d == GPU else usual
    )


def test_the_tensors_own_gpu_counts_not_the_current_one(monkeypatch):
    properties(monkeypatch, None, major=7, minor=5)
    assert checks.chip(GPU) == "sm_75" and checks.chip(torch.device("cuda", 0)) == ""
    assert checks.chip(torch.device("cpu")) == ""
    facts = Facts("layer_norm", "cuda", torch.float32, None, 64, False, True)
    monkeypatch.setattr(layer_norm_cuda, "_MISSING", None)
    assert layer_norm_cuda.limits(facts) == ()
    assert layer_norm_cuda.limits(facts._replace(chip="sm_75")) == (
        "the GPU is sm_75, below sm_80",
    )


@pytest.mark.parametrize("room", [r for r, name in backends._DRAWERS if name == "triton"])
def test_triton_serves_no_amd_gpu_that_no_kernel_was_compiled_for(room, monkeypatch):
    if triton_launch.MISSING is not None:
        pytest.skip(f"cuda: {triton_launch.MISSING}")
    properties(monkeypatch, "7.0", major=9, minor=0, gcnArchName=f"{AMD}:sramecc+:xnack-")
    assert checks.chip(GPU) == AMD and checks.chip(torch.device("cuda", 0)) == ""
    from tests.drawer_table import ROOMS

    kind, values = ROOMS[room]
    facts = kind(device="cuda", **{name: choices[0] for name, choices in values.items()})
    assert backends.refusals(room, "triton", facts) == ()
    why = backends.refusals(room, "triton", facts._replace(chip=AMD))
    assert why == (f"GPU {AMD} is not gfx942",)


def test_amds_compiler_gets_no_option_that_it_does_not_know(sm_80, monkeypatch):
    """Those of every launch, of which attention's and all backwards of rows name registers."""
    from triton.backends.amd.compiler import HIPOptions

    from bigkernels.ops.layer_norm.triton_kernels import layer_norm_forward_kernel

    known = set(inspect.signature(HIPOptions).parameters)
    assert "maxnreg" not in known
    jit, seen = type(layer_norm_forward_kernel), set()
    run = jit.run

    def looked_at(self, *arguments, **options):
        names = set(options) - set(self.arg_names) - {"grid", "warmup"}
        seen.add(self.__name__)
        assert names <= known, (self.__name__, names - known)
        return run(self, *arguments, **options)

    monkeypatch.setattr(jit, "run", looked_at)
    monkeypatch.setattr(triton_launch, "_HIP", True)
    monkeypatch.setattr(triton_launch, "_READY", {})
    q = torch.randn(1, 1, 5, 16, requires_grad=True)
    x, weight = torch.randn(3, 24, requires_grad=True), torch.randn(24, requires_grad=True)
    outs = (
        bk.scaled_dot_product_attention(q, q, q, backend="triton"),
        bk.layer_norm(x, 24, weight, backend="triton"),
        bk.embedding(torch.tensor([[0, 2]]), x, weight=weight, bias=weight, backend="triton"),
    )
    torch.autograd.backward([out.sum() for out in outs])
    rooms = {f"{room}_backward" for room in ("layer_norm", "embedding", "attention")}
    assert all(any(name.startswith(room) for name in seen) for room in rooms), seen


PRECISIONS = {
    "": "ieee",
    "torch.set_float32_matmul_precision('high')": "bf16x3",
    "torch.set_float32_matmul_precision('medium')": "tf32",
    "b.cuda.matmul.allow_tf32 = True": "bf16x3",
    "b.cuda.matmul.fp32_precision = 'tf32'": "tf32",
    "b.cuda.matmul.fp32_precision = 'ieee'": "ieee",
    "b.fp32_precision = 'tf32'": "tf32",
    "b.mkldnn.matmul.fp32_precision = 'bf16'": "ieee",
    "torch.set_float32_matmul_precision('high'); b.cuda.matmul.fp32_precision = 'ieee'": "ieee",
}


def test_every_way_to_set_the_precision_of_products_is_read():
    """Each in a process of its own, which shares nothing: a setting cannot be taken back to what it was."""
    lines = ["import os, torch", "from bigkernels.ops.triton_launch import float32_products"]
    lines += ["b = torch.backends"]
    for setting, precision in PRECISIONS.items():
        lines += ["if (child := os.fork()) == 0:", f"    {setting or 'pass'}"]
        lines += ["    found = float32_products(torch.float32)"]
        lines += [f"    print({setting!r}, found) if found != {precision!r} else None"]
        lines += [f"    os._exit(int(found != {precision!r}))"]
        lines += ["assert os.waitpid(child, 0)[1] == 0, 'above'"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rows_of_a_mask_that_lie_too_far_apart_are_copied():
    """An offset inside a tile has 32 bits without a sign."""

    def mask(stride, rows=128):
        return torch.empty_strided((1, 1, rows, 8), (0, 0, stride, 1), device="meta")

    far = triton_arguments.FAR_MASK_ROWS
    tiles = [
        tile
        for arch in ("sm_80", "sm_90", "gfx942")
        for bits, precision in ((16, "tf32"), (32, "tf32"), (32, "bf16x3"), (32, "ieee"))
        for dim in (64, 128, 256)
        if bits == 16 or triton_config.products(precision, dim) == precision
        for load in triton_config.LOADS
        for tile in triton_config.tiles(arch, bits, precision, dim, load).values()
    ]
    assert max(t.block_m - 1 for t in tiles) * (far - 1) + max(t.block_n for t in tiles) < 1 << 32
    assert triton_arguments.columns_of(mask(far - 1)).stride(2) == far - 1
    assert triton_arguments.columns_of(mask(far)).stride(2) == 8
    assert triton_arguments.columns_of(mask(1 << 31)).stride(2) == 8
    assert triton_arguments.columns_of(mask(1 << 31, rows=1)).stride(2) == 1 << 31
