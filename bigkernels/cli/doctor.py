"""``bigkernels doctor``: the state of this installation, and the reason for whatever is missing."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
from pathlib import Path
from typing import Any

from . import print_json
from .machine import gpus, processor, versions
from .tables import print_table

VARIABLES = ("BIGKERNELS_BACKEND", "BIGKERNELS_ISA", "BIGKERNELS_LOG")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report. Status 0 also where kernels are missing: a finding, not a failure."""
    report = examine()
    if arguments.json:
        print_json(report)
    else:
        _print(report)
    return 0


def examine() -> dict[str, Any]:
    """The whole report as plain values."""
    import torch

    import bigkernels
    from bigkernels import library

    package = Path(bigkernels.__file__).parent
    return {
        "bigkernels": bigkernels.__version__,
        "location": str(package),
        "versions": versions(),
        "cpu": processor(),
        "isa": _isa(package) if library.extension_error is None else None,
        "threads": torch.get_num_threads(),
        "gpus": gpus(),
        "build": build_info(package),
        "extension_error": library.extension_error,
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "operations": operations(),
    }


def build_info(package: Path) -> dict[str, Any] | None:
    """What the build wrote down beside the libraries: compilers, what it built, why not the rest."""
    try:
        info: dict[str, Any] = json.loads((package / "_build_info.json").read_text())
    except (OSError, ValueError):
        return None
    return info


def operations() -> dict[str, dict[str, dict[str, Any]]]:
    """For each public operation and device: the backend that serves it, and why not the others.

    Asked with float32 tensors of a small encoder in evaluation; a call's own answer is
    ``bigkernels.explain``'s.
    """
    from bigkernels import backends
    from bigkernels.ops import catalog

    answers: dict[str, dict[str, dict[str, Any]]] = {}
    for name, arguments in _samples().items():
        _, room, facts_of, _ = catalog.FACTS[name]
        facts = facts_of(*arguments)
        answers[name] = {}
        for device in ("cpu", "cuda"):
            there = facts._replace(device=device)
            why = {backend: backends.refusals(room, backend, there) for backend in backends.ORDER}
            chosen = next(backend for backend in backends.ORDER if not why[backend])
            before = backends.ORDER[: backends.ORDER.index(chosen)]
            not_faster = {backend: list(why[backend]) for backend in before}
            answers[name][device] = {"backend": chosen, "why_not": not_faster}
    return answers


def _samples() -> dict[str, tuple[Any, ...]]:
    import torch

    heads = torch.zeros(2, 12, 16, 32)  # (B, H, L, D)
    packed = torch.zeros(32, 12, 32)  # (T, H, D)
    ends = torch.tensor([0, 16, 32])
    x, weight = torch.zeros(2, 16, 384), torch.zeros(384)
    weight1, weight2 = torch.zeros(1536, 384), torch.zeros(384, 1536)
    return {
        "attention": (heads, heads, heads),
        "varlen_attn": (packed, packed, packed, ends, ends, 16, 16),
        "layer_norm": (x, (384,), weight, weight),
        "add_layer_norm": (x, x, weight, weight),
        "ffn": (x, weight1, torch.zeros(1536), weight2, weight),
    }


def _isa(package: Path) -> str | None:
    try:
        function = ctypes.CDLL(str(package / "_C.so")).bigkernels_cpu_isa
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_char_p
    return str(function().decode())


def _print(report: dict[str, Any]) -> None:
    cpu, build = report["cpu"], report["build"]
    print(f"bigkernels {report['bigkernels']} in {report['location']}")
    found = report["versions"].items()
    print_table("Versions", ["package", "version"], [[k, v or "not installed"] for k, v in found])
    threads = f"{report['threads']} of {cpu['usable_cpus'] or cpu['logical_cpus']} CPUs"
    rows = [
        ["CPU", cpu["model"]],
        ["instruction sets", " ".join(cpu["isa_flags"]) or cpu["architecture"]],
        ["kernels use", report["isa"] or report["extension_error"] or "unknown"],
        ["AMX", cpu["amx"]],
        ["threads", threads],
    ]
    cards = [f"{g['name']} ({g['capability']}, {g['memory_gib']} GiB)" for g in report["gpus"]]
    rows += [["GPU", card] for card in cards or ["none that torch can use"]]
    rows += [[name, value] for name, value in report["environment"].items()]
    print_table("Machine", ["what", "is"], rows)
    print_table("Build", ["what", "is"], _build_rows(build))
    rows = []
    for name, devices in report["operations"].items():
        for device, answer in devices.items():
            why = "; ".join(f"{b}: {', '.join(w)}" for b, w in answer["why_not"].items())
            rows.append([name, device, answer["backend"], why])
    print_table("Operations", ["operation", "device", "backend", "why not a faster one"], rows)


def _build_rows(build: dict[str, Any] | None) -> list[list[str]]:
    if build is None:
        return [["native libraries", "pure Python install: the build left no record of any"]]
    architectures = ", ".join(build.get("cuda_architectures") or []) or "none"
    return [
        ["built", ", ".join(build["built"]) or "nothing: pure Python install"],
        *([f"{name} missing", why] for name, why in build["not_built"].items()),
        ["compiler", str(build.get("compiler") or "none")],
        ["nvcc", str(build.get("nvcc") or "none")],
        ["CUDA architectures", architectures],
        ["torch at build", str(build.get("torch") or "none")],
        ["torch ABI target", str(build.get("torch_target_version"))],
    ]
