"""benchmarks/gpu.sh and what it runs, as far as they can be run without a GPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

from bigkernels import backends
from tests.emulator.device import why_not

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}


REASON = (
    why_not("cuda")
    or why_not("triton")
    or ("there is a GPU here" if torch.cuda.is_available() else None)
)
rehearses = pytest.mark.skipif(REASON is not None, reason=f"emulated: {REASON}")


def peers(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu_peers.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def test_every_peer_is_listed() -> None:
    done = peers("--list")
    assert done.returncode == 0, done.stderr
    names = done.stdout
    for peer in ("flash padded", "efficient", "cudnn", "compile", "bigkernels cuda", "eager step"):
        assert peer in names, peer


def test_the_script_times_what_runs_and_says_why_the_rest_does_not(tmp_path) -> None:
    out = tmp_path / "peers.json"
    done = peers("--smoke", "--device", "cpu", "--no-compile", "--json", str(out))
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["machine"]["torch"] == torch.__version__
    assert record["device"] == "cpu"
    refused = {r["name"]: r["error"] for r in record["results"] if r["error"]}
    assert all("cudnn" in name or "efficient" in name for name in refused), refused
    assert all("No viable backend" in error for error in refused.values())
    timed = [r for r in record["results"] if not r["error"]]
    names = peers("--list").stdout.split("\n")
    assert {r["group"] for r in timed} == {name.split()[0] for name in names if name}
    assert {r["group"] for r in timed} > {"ceilings", "add_layer_norm", "attention", "encoder"}
    assert all(0 < r["lower_us"] <= r["median_us"] <= r["upper_us"] for r in timed)


def test_no_case_starts_after_the_time_is_up(tmp_path) -> None:
    done = peers("--smoke", "--device", "cpu", "--groups", "ceilings", "--seconds", "-1")
    assert done.returncode == 0, done.stderr
    assert "0 of 5 cases" in done.stdout
    assert done.stdout.count("not run: out of time") == 5


@rehearses
def test_our_gpu_kernels_are_timed_on_the_emulated_device(tmp_path) -> None:
    out = tmp_path / "peers.json"
    rooms = {room for room, backend in backends._DRAWERS if backend in ("cuda", "triton")}
    done = peers(
        *("--smoke", "--device", "emulated", "--no-compile"),
        *("--groups", ",".join(sorted(rooms)), "--json", str(out)),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["device"] == "emulated"
    ours = [r for r in record["results"] if r["name"].startswith("bigkernels")]
    assert [(r["name"], r["error"]) for r in ours if r["error"]] == []
    names = {r["name"] for r in record["results"]}
    assert {"bigkernels cuda backward", "bigkernels triton backward", "eager backward"} <= names
    assert {r["group"] for r in ours} >= {"layer_norm", "add_layer_norm"}


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "benchmarks/gpu.sh", *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "words", [("--part", "3"), ("--part",), ("--part", "--rehearse"), ("--wild",)]
)
def test_gpu_script_refuses_what_it_does_not_know(words) -> None:
    done = script(*words)
    assert done.returncode == 2 and words[0] in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_script_says_what_is_missing(tmp_path) -> None:
    done = script(str(tmp_path))
    assert done.returncode == 1
    summary = (tmp_path / "summary.txt").read_text()
    assert "machine: failed" in summary
    assert "nothing can be measured here" in summary
    assert len(list(tmp_path.iterdir())) <= 8


@rehearses
@pytest.mark.parametrize("part", ["1", pytest.param("2", marks=pytest.mark.full)])
def test_gpu_script_passes_its_rehearsal(part, tmp_path) -> None:
    done = script("--part", part, "--rehearse", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    summary = (tmp_path / "summary.txt").read_text()
    assert done.stdout.endswith(summary)
    assert "times say nothing about a GPU" in summary
    for step in (
        ("machine", "build", "smoke", "conformance", "tests", "checks", "planted")
        if part == "1"
        else ("peers", "targets", "tune")
    ):
        assert f"{step}: ok" in summary
    assert f"part {part}: " in summary
    files = list(tmp_path.iterdir())
    assert len(files) <= 8 and all(file.stat().st_size < 16 << 20 for file in files)


def test_compute_sanitizer_sees_the_triton_kernels_of_every_room(tmp_path) -> None:
    """By the script's own lines: what -k selects, before a device is asked for."""
    lines = (ROOT / "benchmarks" / "gpu.sh").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("small="))
    ask = "\n".join(["device=cuda", *lines[first : first + 3], 'printf %s "$some"'])
    some = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout
    files = script("--list").stdout.split()
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "not full", "--collect-only"]
    command += ["-q", "-p", "no:cacheprovider", "-k", some, *files]
    chosen = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert chosen.returncode == 0, chosen.stdout[-2000:] + chosen.stderr
    names = chosen.stdout.splitlines()
    assert not [name for name in names if "emulated" in name]
    for room in (room for room, backend in backends._DRAWERS if backend == "triton"):
        mine = [n for n in names if n.startswith(f"tests/test_{room}.py") and "[cuda-triton" in n]
        assert 1 <= len(mine) <= 4, (room, mine)


def test_no_part_of_the_script_can_pass_ten_minutes() -> None:
    lines = (ROOT / "benchmarks" / "gpu.sh").read_text().splitlines()
    limits = {1: 0, 2: 0}
    part, loop = 0, 1
    for line in map(str.strip, lines):
        if line.startswith(("prove()", "time_peers()", "for part in")):
            part = {"p": 1, "t": 2, "f": 0}[line[0]]
        loop = 4 if line.startswith("for tool in") else 1 if line == "done" else loop
        if line.startswith(("step ", "if ! step ", "PYTORCH_NO_CUDA")):
            words = line.split()
            limit = int(words[words.index("step") + 2])
            for index in (part,) if part else (1, 2):
                limits[index] += limit * loop
    # The rehearsal's step stands in for those of the sanitizer.
    assert 300 < limits[1] <= 600 and 300 < limits[2] <= 600, limits


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_and_peers_run_on_the_gpu() -> None:
    done = peers("--smoke", "--no-compile", "--groups", "ceilings,layer_norm,attention")
    assert done.returncode == 0, done.stderr
