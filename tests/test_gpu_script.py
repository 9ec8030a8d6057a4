"""benchmarks/gpu.sh and what it runs, as far as they can be run without a GPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}


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
    refused = {r["name"]: r["error"] for r in record["results"] if r["error"]}
    assert all("cudnn" in name or "efficient" in name for name in refused), refused
    assert all("No viable backend" in error for error in refused.values())
    timed = [r for r in record["results"] if not r["error"]]
    assert {r["group"] for r in timed} == {
        "ceilings",
        "layer_norm",
        "add_layer_norm",
        "attention",
        "encoder",
    }
    assert all(0 < r["p10_us"] <= r["median_us"] <= r["p90_us"] for r in timed)


def test_no_case_starts_after_the_time_is_up(tmp_path) -> None:
    done = peers("--smoke", "--device", "cpu", "--groups", "ceilings", "--seconds", "-1")
    assert done.returncode == 0, done.stderr
    assert "0 of 5 cases" in done.stdout
    assert done.stdout.count("not run: out of time") == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_script_says_what_is_missing(tmp_path) -> None:
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", str(tmp_path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    summary = (tmp_path / "summary.txt").read_text()
    assert "machine: failed" in summary
    assert "nothing can be measured here" in summary
    assert len(list(tmp_path.iterdir())) <= 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_and_peers_run_on_the_gpu() -> None:
    done = peers("--smoke", "--no-compile", "--groups", "ceilings,layer_norm,attention")
    assert done.returncode == 0, done.stderr
