"""Builds what the emulator needs, into build/emulator/: its core, the PTX of every CUDA kernel, and the
CUDA launchers linked with the stand-in runtime. Incremental; `ready()` says why it cannot be done here.
"""

from __future__ import annotations

import fcntl
import functools
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "emulator"
SOURCES = ROOT / "tests" / "emulator" / "core"
# The objects of `make build`: the launchers and what the kernels' host sides need.
OBJECTS = ROOT / "build" / "ninja"
ARCHITECTURES = {80: "80", 90: "90a"}  # of the device, and what its PTX is compiled for

RULES = """
cxxflags = -std=c++20 -O3 -march=x86-64-v3 -fno-math-errno -fno-trapping-math -ffp-contract=off -fPIC $
  -fno-semantic-interposition -Wall -Wextra
rule cxx
  command = $launcher $cxx $cxxflags $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule host
  command = $launcher $nvcc -std=c++20 -O2 -Xcompiler -fPIC -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared -Wl,-Bsymbolic-functions $flags $in -o $out -pthread
rule ptx
  command = $nvcc -std=c++20 -O3 -lineinfo -Icsrc -ptx -arch=compute_$arch -MD -MF $out.d $in -o $out
  depfile = $out.d
  deps = gcc
"""


def _toolchain():
    sys.path.insert(0, str(ROOT / "build_backend"))
    import toolchain

    return toolchain


@functools.cache
def why_no_core() -> str | None:
    """Why the emulator cannot be built here, or None."""
    if not SOURCES.exists():
        return "not a source tree"
    if shutil.which("g++") is None:
        return "no g++"
    if "avx2" not in pathlib.Path("/proc/cpuinfo").read_text():
        return "the emulator needs a CPU with AVX2"
    try:
        _toolchain().find_ninja()
    except _toolchain().MissingError as reason:
        return str(reason)
    return None


@functools.cache
def why_no_cuda() -> str | None:
    """Why the CUDA kernels cannot be emulated here, or None."""
    try:
        _toolchain().find_nvcc()
    except _toolchain().MissingError as reason:
        return str(reason)
    missing = [source for source in cuda_sources() if not _object_of(source).exists()]
    if missing:
        return "libbigkernels_cuda.so is not built"
    return why_no_core()


def cuda_sources() -> list[pathlib.Path]:
    return sorted((ROOT / "csrc").rglob("*.cu"))


def _object_of(source: pathlib.Path) -> pathlib.Path:
    return OBJECTS / f"{source.relative_to(ROOT)}.o"


def core_library() -> pathlib.Path:
    return FOLDER / "libemulator.so"


def cuda_library() -> pathlib.Path:
    return FOLDER / "libbigkernels_cuda.so"


def ptx_of(source: pathlib.Path, device: int) -> pathlib.Path:
    name = source.relative_to(ROOT).with_suffix("").as_posix().replace("/", "_")
    return FOLDER / f"{name}.sm_{device}.ptx"


def _core_lines() -> list[str]:
    objects, lines = [], []
    for source in sorted(SOURCES.glob("*.cpp")):
        if source.name != "cudart.cpp":
            objects.append(f"{FOLDER}/{source.stem}.o")
            lines.append(f"build {objects[-1]}: cxx {source}")
    return [*lines, f"build {core_library()}: link {' '.join(objects)}"]


def _cuda_lines() -> list[str]:
    lines = [f"build {FOLDER}/cudart.o: host {SOURCES}/cudart.cpp"]
    objects = [str(_object_of(source)) for source in cuda_sources()]
    # The stand-in first, and bound to itself: a CUDA build of torch brings the real runtime along.
    lines.append(f"build {cuda_library()}: link {FOLDER}/cudart.o {' '.join(objects)}")
    lines.append("  flags = -Wl,-Bsymbolic -Wl,-z,defs")
    for source in cuda_sources():
        for device, architecture in ARCHITECTURES.items():
            lines += [f"build {ptx_of(source, device)}: ptx {source.relative_to(ROOT)}"]
            lines += [f"  arch = {architecture}"]
    return lines


@functools.cache
def build(cuda: bool) -> None:
    """Brings the core, and with it the CUDA parts if asked for, up to date. Raises on a build error."""
    toolchain = _toolchain()
    nvcc = toolchain.find_nvcc()[0] if cuda else ""
    lines = [f"builddir = {FOLDER}", f"cxx = g++\nnvcc = {nvcc}"]
    lines += [f"launcher = {shutil.which('ccache') or ''}", RULES, *_core_lines()]
    lines += _cuda_lines() if cuda else []
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may start at once
        script = FOLDER / "build.ninja"
        script.write_text("\n".join(lines) + "\n")
        jobs = os.environ.get("MAX_JOBS", "2")
        command = [toolchain.find_ninja(), "-f", str(script), "-j", jobs]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the emulator does not build:\n{done.stdout[-4000:]}{done.stderr}")
