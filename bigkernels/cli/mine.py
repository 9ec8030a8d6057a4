"""``bigkernels bench --mine``: the harness on the user's own model, verified first."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import bigkernels
from bigkernels.bench import cases, peers, report
from bigkernels.training.data import DataError, raw_texts

from . import CommandError, encoders, print_json
from .bench import peer_names, show, time_cases
from .throughput import CODE
from .verify import as_json


def run(arguments: argparse.Namespace) -> int:
    """Status 0; 1 if the accelerated model failed its verification."""
    path = str(arguments.mine)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    encoder = encoders.load(path)
    try:
        texts = raw_texts()
    except DataError as error:
        raise CommandError(str(error)) from error
    accelerated = bigkernels.accelerate(encoder.model).report()
    if not accelerated.swapped:
        raise CommandError(str(accelerated).splitlines()[-1])
    batch = encoders.encode(encoder, texts[: min(32, arguments.batch_size)])
    verified = bigkernels.verify(encoder.model, batch)
    limit = min(512, encoders.positions(encoder.model))
    del encoder
    chosen = [
        cases.encoder_case(path, arguments.batch_size, limit, "snippets", "forward", True),
        cases.encoder_case(path, arguments.batch_size, limit, "sorted", "forward", True),
        cases.encoder_case(path, 1, min(16, limit), "dense", "forward", True),
    ]
    two = [peers.BASELINES["encoder"], peers.OURS]
    names = peer_names(arguments) or (two if arguments.quick else [])
    found = time_cases(arguments, chosen, names)
    found |= {"mode": "mine", "verification": as_json(verified), "code": CODE}
    files = report.write(found, Path(arguments.out))
    if arguments.json:
        print_json(found)
    else:
        show(found)
        print("\n".join(str(file) for file in files))
        _print_end(found, verified.passed, verified.largest_difference)
    return 0 if verified.passed else 1


def _print_end(found: dict[str, Any], passed: bool, difference: float) -> None:
    gains = [
        f"{row['speed_up']:.2f}x ({row['case'].rsplit(' ', 2)[1]} {row['case'].rsplit(' ', 1)[1]})"
        for row in found["rows"]
        if row["peer"] == peers.OURS and row.get("speed_up")
    ]
    verdict = "verified" if passed else "VERIFICATION FAILED: bigkernels verify says where"
    print(f"speed-up: {', '.join(gains)}")
    print(f"largest difference from stock: {difference:.2e} ({verdict})")
    print(CODE)
