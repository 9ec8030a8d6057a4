"""The stored cases that a GPU run compares with the emulator: valid, complete, and the same on the emulator."""

import collections
import dataclasses
import importlib.util
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.conformance import __main__ as conformance
from tests.conformance import driver, faults
from tests.conformance.cases import HEAD, catalogue, module
from tests.emulator import build

pytestmark = pytest.mark.skipif(
    build.why_no_core() is not None, reason=f"emulated: {build.why_no_core()}"
)
ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def device():
    return driver.emulated()


@pytest.mark.parametrize(
    "seed", [1, pytest.param(2, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full)]
)
def test_every_case_gives_what_is_stored(seed, tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.conformance",
        "--device",
        "emulated",
        "--seed",
        str(seed),
    ]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(catalogue())} cases: {len(catalogue())} same" in done.stdout


def test_every_family_of_opcodes_has_cases():
    families = collections.Counter(case.family for case in catalogue().values())
    assert set(families) >= {
        *("integer", "bits", "float", "half", "convert", "select"),
        *("memory", "atomic", "warp", "async", "matrix"),
    }
    assert set(conformance.stored()) == {
        name for name, case in catalogue().items() if not case.bound
    }


def test_results_are_not_trivial(device):
    random = [case for case in catalogue().values() if case.family in ("integer", "float", "half")]
    for case in random[::7]:
        (result,) = conformance.results(device, case)
        assert np.unique(result).size > 4, case.name


def test_a_device_that_differs_is_noticed(device, monkeypatch):
    case = catalogue()["add.s32"]
    known = conformance.stored()[case.name]
    assert conformance.judge(device, case, known, device).status == "same"
    wrong = dataclasses.replace(case, ptx=case.ptx.replace("add.s32", "sub.s32"))
    got = conformance.results(device, wrong)
    assert conformance.digest(got) != known
    text = conformance.difference(got, conformance.results(device, case), 0.0)
    assert re.match(r"\d+ of 64 elements: \[\d+\] ", text)
    assert conformance.judge(device, case, "other", device).status == "differs"
    unknown = dataclasses.replace(case, ptx=case.ptx.replace("add.s32", "frobnicate.s32"))
    assert conformance.judge(device, unknown, known, device).status == "fails"


def test_approximate_results_may_differ_within_their_bound():
    a, b = [np.array([1.0, 2.0], np.float32)], [np.array([1.0, 2.0000002], np.float32)]
    assert conformance.difference(a, b, 0.0) and not conformance.difference(a, b, 1e-6)
    nan = [np.array([np.nan, 2.0], np.float32)]
    assert not conformance.difference(nan, nan, 0.0)


def test_a_check_of_the_emulator_fails_a_launch(device):
    body = "  ld.global.b32 %r1, [%d0+256];\n  st.global.b32 [%d0], %r1;"
    with pytest.raises(driver.DriverError, match=r"719.*out of bounds"):
        device.run(module(body, 1), [np.zeros(64, np.uint32)])


def test_the_emulator_finds_what_compute_sanitizer_must_find():
    for name, fault in faults.FAULTS.items():
        assert faults.emulated_finds(fault.body), name
    assert not faults.emulated_finds(faults.CLEAN)


def test_a_device_without_an_instruction_leaves_its_cases_out():
    device = driver.emulated(major=8)
    case = catalogue()["add.bf16"]
    assert conformance.judge(device, case, None, None).status == "left out"
    driver.emulated()


def _ptxas() -> str | None:
    spec = importlib.util.find_spec("triton")
    found = (
        pathlib.Path(spec.origin).parent / "backends/nvidia/bin/ptxas"
        if spec and spec.origin
        else None
    )
    return str(found) if found and found.exists() else None


@pytest.mark.skipif(_ptxas() is None, reason="triton is not installed")
@pytest.mark.parametrize("target", sorted({case.target for case in catalogue().values()}))
def test_ptxas_accepts_every_case(target, tmp_path):
    head = HEAD.format(target=target)
    texts = [case.ptx for case in catalogue().values() if case.target == target]
    assert all(text.startswith(head) for text in texts)
    merged = [
        re.sub(r"\btest\(", f"test_{i}(", text.removeprefix(head)) for i, text in enumerate(texts)
    ]
    source = tmp_path / "all.ptx"
    source.write_text(head + "\n".join(merged))
    command = [_ptxas(), f"-arch={target}", "-O1", str(source), "-o", str(tmp_path / "all.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
