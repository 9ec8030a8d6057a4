"""Write one build.ninja and run it: _C.so (g++), libbigkernels_cuda.so (nvcc), _native (pybind11).

`python setup.py build_native --inplace` is what `make build` runs; pip comes here through
build_backend/. What cannot be built is left out, with its reason in bigkernels/_build_info.json.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

os.chdir(Path(__file__).resolve().parent)
sys.path.insert(0, "build_backend")
import toolchain  # noqa: E402

OPS, CUDA = "_C.so", "libbigkernels_cuda.so"
NATIVE = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
# Without exceptions: a destructor or a frame to unwind would bring a weak symbol for them.
AVX2 = "-mavx2 -mfma -mf16c -fno-exceptions"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq"
AMX = f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8"
FLAGS = {  # the only files that may use more than baseline x86-64, and the only OpenMP
    "csrc/isa/avx2.cpp": AVX2,
    "csrc/isa/avx512.cpp": AVX512,
    "csrc/isa/amx.cpp": AMX,
    "csrc/common/cpu/core_state.cpp": "-mamx-tile -mamx-bf16",
    "csrc/common/cpu/threads.cpp": "-fopenmp",
}


class Plan:
    """The libraries to build here, the text of build.ninja, and why the others are left out."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.libraries, self.lines = folder, [], []
        self.tools = tools = toolchain.survey(OPS, NATIVE, CUDA)
        self.lines += [f"builddir = {folder}", f"launcher = {shutil.which('ccache') or ''}"]
        self.lines += [
            f"{name} = {getattr(tools, name)}" for name in ("cxx", "nvcc", "cuda_targets")
        ]
        self.lines += [
            f"user_{n.lower()} = {os.environ.get(n, '')}" for n in ("CXXFLAGS", "LDFLAGS")
        ]
        self.lines.append("include build_backend/rules.ninja")
        kernels = self.compile(Path("csrc").rglob("*.cpp"))
        module = set(Path("python_bindings").glob("module.cpp"))
        includes = " ".join(f"-isystem {include}" for include in tools.native_includes)
        self.link(NATIVE, self.compile(module, includes), kernels)
        front_ends = set(Path("python_bindings").glob("*.cpp")) - module
        torch = f"-isystem {tools.torch}/include -DTORCH_TARGET_VERSION={toolchain.TORCH_TARGET}"
        libs = f"-L{tools.torch}/lib -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 $ops_link"
        self.link(OPS, self.compile(front_ends, torch), kernels, libs)
        self.link(CUDA, self.compile(Path("csrc").rglob("*.cu"), rule="cu"), rule="culink")

    def compile(self, sources, flags="", rule="cxx"):
        objects = {f"{self.folder}/{source}.o": str(source) for source in sorted(sources)}
        for out, source in objects.items():
            self.lines += [f"build {out}: {rule} {source}", f"  flags = {FLAGS.get(source, flags)}"]
        return list(objects)

    def link(self, name, objects, kernels=(), libs="", rule="link"):
        if not objects:
            self.tools.missing.setdefault(name, "it has no sources here")
        if name not in self.tools.missing:
            self.libraries.append(name)
            out, files = f"{self.folder}/{name}", " ".join([*objects, *kernels])
            self.lines += [f"build {out}: {rule} {files}", f"  libs = {libs}", f"default {out}"]

    def run(self, target: Path) -> None:
        """Build, put the libraries into `target`, remove those that are not built any more."""
        if self.libraries:
            self.folder.mkdir(parents=True, exist_ok=True)
            script = self.folder / "build.ninja"
            script.write_text("\n".join(self.lines) + "\n")
            jobs = os.environ.get("MAX_JOBS", "2")
            subprocess.run([self.tools.ninja, "-f", str(script), "-j", jobs], check=True)
        target.mkdir(parents=True, exist_ok=True)
        for name in (OPS, NATIVE, CUDA):
            if name in self.libraries:  # replaced at once: a running process keeps the old file
                shutil.copy2(self.folder / name, target / f".{name}.new")
                os.replace(target / f".{name}.new", target / name)
            else:
                (target / name).unlink(missing_ok=True)
                print(f"{name} is not built: {self.tools.missing[name]}", file=sys.stderr)
        info = {**self.tools.info, "built": self.libraries, "not_built": self.tools.missing}
        (target / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


class BuildNative(Command):
    """Sub-command of `build`; editable installs run it in place."""

    user_options = [("inplace", "i", "into bigkernels/")]  # noqa: RUF012
    user_options += [("build-temp=", "t", "objects")]
    user_options += [("build-lib=", "b", "folder of the package that gets the libraries")]

    def initialize_options(self):
        self.inplace = self.editable_mode = False
        self.build_lib, self.build_temp = None, "build/ninja"

    def finalize_options(self):
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self):
        in_tree = self.inplace or self.editable_mode
        Plan(Path(self.build_temp)).run(Path("" if in_tree else self.build_lib, "bigkernels"))


class NativeDistribution(Distribution):
    """Tags the wheel for this Python and platform only if it has native code."""

    has_ext_modules = functools.cache(lambda self: bool(Plan(Path("build/ninja")).libraries))


build.sub_commands = [*build.sub_commands, ("build_native", None)]
setup(distclass=NativeDistribution, cmdclass={"build_native": BuildNative}, ext_modules=[])
