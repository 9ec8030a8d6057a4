"""A GPU drawer goes through every gate: what lists kernels or rooms must not miss one that has just come."""

import pathlib
import re
import subprocess
import sys

import pytest

from bigkernels import backends, library
from bigkernels.testing import cases
from tests import gpu_drawers, test_mutants
from tests.static import row

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_cases  # noqa: E402

drawers = pytest.mark.parametrize(("room", "backend"), gpu_drawers.DRAWERS)
rooms = pytest.mark.parametrize("room", gpu_drawers.ROOMS)


def test_there_are_drawers_and_they_have_kernels():
    assert len(gpu_drawers.DRAWERS) >= 7
    for drawer in gpu_drawers.DRAWERS:
        assert gpu_drawers.kernels(*drawer), drawer


@drawers
def test_each_drawer_is_known_to_the_hallway(room, backend):
    assert room in library.ROOMS, f"ROOMS of bigkernels/library.py lacks {room}"
    known = (room, backend) in backends._DRAWERS
    assert known, f"bigkernels/__init__.py imports nothing that registers the drawers of {room}"


@rooms
def test_each_room_has_calls_whose_kernels_are_mutated(room):
    assert test_mutants.CASES.get(room), f"CASES of tests/test_mutants.py lacks {room}"


@rooms
def test_each_room_has_tests_on_every_device(room):
    path = ROOT / "tests" / f"test_{room}.py"
    assert path.exists(), f"there is no {path.name}, which the emulated devices and gpu.sh run"
    assert re.search(r"\bdevice\.check\(case\)", path.read_text()), f"{path.name}: no device.check"
    assert cases(room), f"bigkernels.testing has no cases of {room}"


@drawers
def test_each_kernel_is_in_the_static_gate(room, backend):
    if backend == "cuda":
        found = {kernel for kernel, _ in row.load() if kernel.startswith(f"cuda {room} ")}
        missing = [n for n in gpu_drawers.kernels(room, backend) if not any(n in k for k in found)]
    else:
        pytest.importorskip("triton", reason="triton is not installed")
        from tests.static import triton_kernels

        found = {c.kernel.__name__ for c in triton_kernels.configurations().values()}
        missing = sorted(gpu_drawers.kernels(room, backend) - found)
    assert missing == [], f"no configuration in tests/static of {room}'s {backend} drawer has these"


@rooms
def test_each_room_is_timed_on_a_gpu(room):
    assert room in gpu_cases.GROUPS, f"GROUPS of benchmarks/gpu_cases.py lacks {room}"
    for smoke in (False, True):
        timed = {case.operation for case, *_ in gpu_cases.timed_cases(smoke) if case.room == room}
        assert timed, f"timed_cases of benchmarks/gpu_cases.py has no case of {room}"
        assert timed <= set(gpu_cases.BACKWARD), (
            f"BACKWARD of benchmarks/gpu_cases.py lacks {timed}"
        )


def test_the_gpu_script_runs_the_tests_of_each_room():
    listed = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--list"], cwd=ROOT, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    wanted = {f"tests/test_{room}.py" for room in gpu_drawers.ROOMS}
    assert wanted <= set(listed.stdout.split()), "gpu.sh runs no tests of a room"
