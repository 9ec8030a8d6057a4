"""What the native libraries contain: symbols, instructions, and that the build says what it left out."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bigkernels

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(bigkernels.__file__).parent
INFO = PACKAGE / "_build_info.json"
LIBRARIES = ("_C.so", "libbigkernels_cuda.so")

# The widest register and the vector encodings that a translation unit may use.
WIDE = {"scalar": "xmm", "avx2": "ymm", "avx512": "zmm", "amx": "zmm"}

# The kernels whose vector code is looked at, and the functions that hold their inner loops.
KERNELS = {
    "layer_norm_forward": r"ForwardPass<float>|layer_norm_forward_rows<float>",
    "layer_norm_backward": r"BackwardPass<float>|layer_norm_backward_rows<float>",
    "ffn_forward": r"FfnForward<float, \(bigkernels::FfnActivation\)0",
    "ffn_backward": r"FfnBackward<float, \(bigkernels::FfnActivation\)0",
    "encoder_product": r"multiply_rows<\d, float>",
    "attention_product": r"multiply_tile<.*::Vec, \d>",
    "attention_softmax": r"softmax_step<.*::Vec>",
    "attention_softmax_gradient": r"softmax_gradient<.*::Vec>",
}
# The same for tile products.
TILE_KERNELS = {
    "attention_forward": r"forward_tile_work<",
    "encoder_products": r"TileEncoder<.*>::(raise|narrow|project|multiply)|multiply_tile_panels<",
}
# Prints a digest of what layer_norm's kernels make of exactly representable numbers, so that only they
# can differ; fails where they do not serve the call.
FINGERPRINT = """
import hashlib, torch
import bigkernels as bk
x, dout = ((torch.arange(7 * 67) * k % 101 - 50).reshape(7, 67) / 32 for k in (37, 41))
weight = torch.arange(67) / 64
leaves = [x.requires_grad_(), weight.requires_grad_()]
out = bk.layer_norm(x, (67,), weight, backend="cpu")
results = [out.detach(), *torch.autograd.grad(out, leaves, dout)]
print(*(hashlib.sha256(bytes(r.untyped_storage())).hexdigest()[:16] for r in results))
"""


def run(*command: str | Path, **environment: str) -> str:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(name: str) -> Path:
    """A library of this build; skips with the recorded reason if it was not built."""
    if not INFO.is_file():
        pytest.skip("bigkernels is not built here (no _build_info.json)")
    info = json.loads(INFO.read_text())
    found = [file for file in info["built"] if file.startswith(name)]
    if not found:
        reasons = [why for file, why in info["not_built"].items() if file.startswith(name)]
        pytest.skip(f"{name} is not built: {reasons[0]}")
    return PACKAGE / found[0]


def objects(*names: str) -> list[Path]:
    """Object files of csrc/isa by instruction set; without names all that must run on any x86-64."""
    folder = ROOT / "build" / "ninja"
    every = [
        path
        for path in folder.rglob("*.cpp.o")
        if (ROOT / path.relative_to(folder).with_suffix("")).exists()
    ]
    isa = {path.name.partition(".")[0]: path for path in every if path.parent.name == "isa"}
    if not isa:
        pytest.skip("the object files of `make build` are not here")
    if names:
        return [isa[name] for name in names]
    return [path for path in every if path not in [isa.get(n) for n in ("avx2", "avx512", "amx")]]


@functools.cache
def instructions(path: Path) -> list[tuple[str, str]]:
    """(function, instruction) of every line of code in an object file."""
    function, found = "", []
    for line in run("objdump", "-dC", "--no-show-raw-insn", "-w", path).splitlines():
        if match := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = match.group(1)
        elif match := re.match(r"\s+[0-9a-f]+:\t(.+)", line):
            found.append((function, match.group(1)))
    return found


def symbols(path: Path, *flags: str) -> list[tuple[str, str]]:
    """(kind, name) of nm's symbols."""
    lines = run("nm", "-C", *flags, path).splitlines()
    return [
        (kind, name) for kind, name in (re.findall(r" ([A-Za-z]) (.*)", line)[0] for line in lines)
    ]


def test_build_info_accounts_for_every_library() -> None:
    if not INFO.is_file():
        pytest.skip("bigkernels is not built here (no _build_info.json)")
    info = json.loads(INFO.read_text())
    named = [*info["built"], *info["not_built"]]
    assert len(named) == len(set(named)) == 3
    assert all(
        sum(file.startswith(name) for file in named) == 1 for name in (*LIBRARIES, "_native")
    )
    assert all((PACKAGE / file).is_file() for file in info["built"])
    assert not any((PACKAGE / file).exists() for file in info["not_built"])
    assert all(len(reason) > 5 for reason in info["not_built"].values())


@pytest.mark.parametrize("isa", WIDE)
def test_isa_objects_share_no_symbol(isa: str) -> None:
    # The linker keeps one copy of a weak symbol for all: AVX-512 code could be run by an old CPU.
    (path,) = objects(isa)
    found = symbols(path, "--defined-only")
    assert [name for kind, name in found if kind in "WVwvu"] == []
    shared = [name for kind, name in found if kind.isupper() and f"bigkernels::{isa}::" not in name]
    assert shared == []


def test_baseline_objects_use_no_vector_extension() -> None:
    for path in objects():
        leaks = {
            (function, code)
            for function, code in instructions(path)
            if re.search(r"%[yz]mm|%k[0-7]", code) or re.match(r"v\w+\s.*%xmm", code)
        }
        assert not leaks, f"{path.name}: {sorted(leaks)[:3]}"


def test_avx2_object_has_no_avx512_instruction() -> None:
    (path,) = objects("avx2")
    wide = r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|\{%k[0-7]\}|%k[0-7]"
    leaks = {(function, code) for function, code in instructions(path) if re.search(wide, code)}
    assert not leaks, sorted(leaks)[:3]


def test_avx512_object_has_no_newer_instruction() -> None:
    (path,) = objects("avx512")
    newer = r"tile|tdp|\w*bf16|vpdpbusd|\w+ph\b(?<!vcvtps2ph)"
    leaks = {(function, code) for function, code in instructions(path) if re.match(newer, code)}
    assert not leaks, sorted(leaks)[:3]


@pytest.mark.parametrize("kernel", TILE_KERNELS)
def test_tile_kernels_multiply_tiles_and_free_them(kernel: str) -> None:
    (path,) = objects("amx")
    found = instructions(path)
    bodies = [code for function, code in found if re.search(TILE_KERNELS[kernel], function)]
    products = [code for code in bodies if code.startswith("tdpbf16ps")]
    assert products, f"no tile product in {kernel}"
    assert any(re.match(r"tilezero", code) for code in bodies)
    # What a kernel configures it releases: live tiles would slow the core's other thread down.
    configured = {function for function, code in found if code.startswith("ldtilecfg")}
    assert configured == {function for function, code in found if code.startswith("tilerelease")}


@pytest.mark.parametrize("isa", ["avx2", "avx512", "amx"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_use_the_fma_of_their_isa(isa: str, kernel: str) -> None:
    (path,) = objects(isa)
    fma = rf"vf[n]?m(add|sub)\w+p[sd]\s.*%{WIDE[isa]}"
    bodies = [code for function, code in instructions(path) if re.search(KERNELS[kernel], function)]
    assert bodies, f"{path.name} has no function {KERNELS[kernel]}"
    assert any(re.match(fma, code) for code in bodies), f"no {fma} in {kernel} of {path.name}"


def test_ops_library_needs_only_the_stable_abi() -> None:
    undefined = [name for _, name in symbols(built("_C.so"), "-D", "--undefined-only")]
    python = [name for name in undefined if re.match(r"_?Py", name)]
    unstable = [name for name in undefined if re.match(r"(at|c10|torch)::", name)]
    assert python == []
    assert unstable == []
    assert any(name.startswith("aoti_torch_") for name in undefined)


def test_ops_library_exports_none_of_its_kernels() -> None:
    exported = [name for _, name in symbols(built("_C.so"), "-D", "--defined-only")]
    assert [name for name in exported if "bigkernels::" in name] == []


def test_cuda_library_exports_launchers_only() -> None:
    exported = symbols(built("libbigkernels_cuda.so"), "-D", "--defined-only")
    assert exported
    others = [name for kind, name in exported if kind != "T" or not name.startswith("bigkernels_")]
    assert others == []


def test_cuda_library_needs_no_cuda_at_load_time() -> None:
    needed = run("readelf", "-d", built("libbigkernels_cuda.so"))
    assert "NEEDED" in needed
    assert re.findall(r"NEEDED.*(libcud\w+|libtorch\w*|libc10\w*)", needed) == []


@pytest.mark.parametrize(
    ("cpu", "isa"), [("Haswell", "avx2"), pytest.param("Nehalem", "scalar", marks=pytest.mark.full)]
)
def test_an_older_cpu_chooses_its_kernels_and_gets_their_bits(cpu: str, isa: str) -> None:
    if not shutil.which("qemu-x86_64"):
        pytest.skip("qemu-x86_64 (Debian: qemu-user) is not installed")
    built("_C.so")
    command = (sys.executable, "-c", FINGERPRINT)
    common = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent)}
    emulated = run("qemu-x86_64", "-cpu", cpu, *command, BIGKERNELS_ISA="", **common)
    assert emulated == run(*command, BIGKERNELS_ISA=isa, **common)


def build_into(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build_native"]
    command += ["--build-lib", str(folder), "--build-temp", str(folder / "objects")]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_without_a_compiler_nothing_is_built_and_the_reason_is_kept(tmp_path: Path) -> None:
    if not (ROOT / "setup.py").is_file():
        pytest.skip("not a source tree")
    done = build_into(tmp_path, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "bigkernels" / "_build_info.json").read_text())
    assert info["built"] == []
    assert set(info["not_built"].values()) == {
        "no C++ compiler: no-such-compiler is not on the PATH"
    }
    assert "_C.so is not built: no C++ compiler" in done.stderr
    assert [path.name for path in (tmp_path / "bigkernels").iterdir()] == ["_build_info.json"]


def test_a_wrong_cuda_setting_is_an_error(tmp_path: Path) -> None:
    done = build_into(tmp_path, BIGKERNELS_CUDA="yes")
    assert done.returncode != 0
    assert "BIGKERNELS_CUDA must be auto, 0 or 1, not 'yes'" in done.stderr
