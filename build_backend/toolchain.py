"""What this machine can build with: the torch that is already installed, the C++ compiler, nvcc.

Nothing here imports torch: headers, libraries and the version are read from its folder, so that a
build inside pip's isolated environment sees the torch of the environment it installs into.
"""

from __future__ import annotations

import functools
import glob
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

OLDEST_TORCH = (2, 11)
OLDEST_NVCC = (12, 4)
# The stable ABI of the oldest torch: one binary for it and all newer ones.
TORCH_TARGET = "0x020b000000000000"


class MissingError(Exception):
    """A part that cannot be built here; the text is the reason shown to the user."""


def _site_folders() -> list[str]:
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    prefixes = [os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"), sys.prefix]
    # A virtual environment may have been created with --system-site-packages.
    prefixes += [p for p in [sys.base_prefix] if _system_site_packages()]
    for prefix in filter(None, prefixes):
        for name in ("site-packages", "dist-packages"):
            folders += glob.glob(os.path.join(prefix, "lib*", version, name))
            folders += glob.glob(os.path.join(prefix, "local", "lib", version, name))
    return list(dict.fromkeys(f for f in folders if f))


def _system_site_packages() -> bool:
    prefix = os.environ.get("VIRTUAL_ENV") or sys.prefix
    try:
        text = Path(prefix, "pyvenv.cfg").read_text()
    except OSError:
        return True  # not a virtual environment: its packages are the system's
    return re.search(r"include-system-site-packages\s*=\s*true", text) is not None


def find_torch() -> tuple[Path, str]:
    """Folder and version of the installed torch; raises MissingError."""
    for folder in _site_folders():
        path = Path(folder, "torch")
        if not (path / "version.py").is_file():
            continue
        text = (path / "version.py").read_text()
        version = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", text)
        number = tuple(int(n) for n in re.findall(r"\d+", version.group(1))[:2]) if version else ()
        if number < OLDEST_TORCH:
            raise MissingError(f"torch in {path} is older than {'.'.join(map(str, OLDEST_TORCH))}")
        return path, version.group(1)
    raise MissingError("torch is not installed; install torch first, then bigkernels again")


def find_compiler() -> tuple[str, str]:
    """C++ compiler and the first line of its version; raises MissingError."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise MissingError(
            f"the native kernels are for Linux on x86-64, not {sysconfig.get_platform()}"
        )
    name = os.environ.get("CXX", "g++")
    if not shutil.which(name.split()[-1]):
        raise MissingError(f"no C++ compiler: {name} is not on the PATH")
    probe = "#include <concepts>\n#include <omp.h>\nint main() { return omp_get_max_threads(); }\n"
    command = [*name.split(), "-std=c++20", "-fopenmp", "-mamx-bf16", "-x", "c++", "-fsyntax-only"]
    if subprocess.run([*command, "-"], input=probe, text=True, capture_output=True).returncode:
        raise MissingError(f"{name} cannot compile C++20 with OpenMP for x86-64")
    version = subprocess.run([*name.split(), "--version"], text=True, capture_output=True).stdout
    return name, version.partition("\n")[0]


def find_nvcc() -> tuple[str, str]:
    """nvcc and its version, as BIGKERNELS_CUDA=auto|0|1 asks; raises MissingError."""
    want = os.environ.get("BIGKERNELS_CUDA", "auto")
    if want not in ("auto", "0", "1"):
        raise SystemExit(f"BIGKERNELS_CUDA must be auto, 0 or 1, not {want!r}")
    if want == "0":
        raise MissingError("BIGKERNELS_CUDA=0")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [shutil.which(os.path.join(h, "bin", "nvcc")) for h in homes if h]
    nvcc = next(filter(None, [*places[:-1], shutil.which("nvcc"), places[-1]]), None)
    reason = "nvcc was not found (CUDA_HOME, PATH, /usr/local/cuda)"
    if nvcc:
        text = subprocess.run([nvcc, "--version"], text=True, capture_output=True).stdout
        version = re.search(r"release (\d+)\.(\d+)", text)
        if version and (int(version.group(1)), int(version.group(2))) >= OLDEST_NVCC:
            return nvcc, f"{version.group(1)}.{version.group(2)}"
        reason = f"{nvcc} is older than {'.'.join(map(str, OLDEST_NVCC))}"
    if want == "1":
        raise SystemExit(f"BIGKERNELS_CUDA=1, but {reason}")
    raise MissingError(reason)


def cuda_architectures() -> list[str]:
    """BIGKERNELS_CUDA_ARCHS, or the visible GPUs' own, or what wheels carry.

    "80" is machine code for sm_80; "80+PTX" adds code that newer GPUs compile when they load it.
    """
    if chosen := os.environ.get("BIGKERNELS_CUDA_ARCHS"):
        return [a for a in re.split(r"[;, ]+", chosen) if a]
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, text=True, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        answer = None
    if answer and answer.returncode == 0:
        found = sorted({line.strip().replace(".", "") for line in answer.stdout.splitlines()})
        if found and all(f.isdigit() for f in found):
            return ["90a" if f == "90" else f for f in found]
    return ["80+PTX", "90a"]


def find_ninja() -> str:
    """The ninja of the build requirements, or the system's; raises MissingError."""
    try:
        import ninja

        return os.path.join(ninja.BIN_DIR, "ninja")
    except ImportError:
        if found := shutil.which("ninja"):
            return found
    raise MissingError("ninja is not installed")


def find_pybind11() -> list[str]:
    """Include folders of pybind11 and Python; raises MissingError."""
    try:
        import pybind11
    except ImportError:
        raise MissingError("pybind11 is not installed") from None
    python = sysconfig.get_path("include")
    if not os.path.isfile(os.path.join(python, "Python.h")):
        raise MissingError(f"Python.h is not in {python}")
    return [pybind11.get_include(), python]


@dataclass
class Tools:
    """Everything found; a library whose tools are missing has its reason in `missing`."""

    ninja: str = ""
    cxx: str = ""
    torch: Path = Path()
    nvcc: str = ""
    cuda_targets: str = ""
    native_includes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    info: dict[str, object] = field(default_factory=dict)


@functools.cache
def survey(ops: str, native: str, cuda: str) -> Tools:
    """Look for the tools of the three libraries, given their file names."""
    tools = Tools(info={"torch_target_version": TORCH_TARGET})
    try:
        tools.ninja = find_ninja()
        tools.cxx, tools.info["compiler"] = find_compiler()
        tools.torch, tools.info["torch"] = find_torch()
    except MissingError as reason:
        tools.missing = {name: str(reason) for name in (ops, native, cuda)}
        return tools
    try:
        tools.native_includes = find_pybind11()
    except MissingError as reason:
        tools.missing[native] = str(reason)
    try:
        tools.nvcc, tools.info["nvcc"] = find_nvcc()
        architectures = cuda_architectures()
        tools.info["cuda_architectures"] = architectures
        tools.cuda_targets = " ".join(map(_gencode, architectures))
    except MissingError as reason:
        tools.missing[cuda] = str(reason)
    return tools


def _gencode(architecture: str) -> str:
    number = architecture.removesuffix("+PTX")
    flags = f"-gencode=arch=compute_{number},code=sm_{number}"
    if architecture.endswith("+PTX"):
        flags += f" -gencode=arch=compute_{number},code=compute_{number}"
    return flags
