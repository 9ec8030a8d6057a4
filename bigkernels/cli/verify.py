"""``bigkernels verify``: whether an accelerated model still computes what the stock one does."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from bigkernels.integrations.verify import Verification

from . import CommandError, encoders, print_json
from .tables import print_table


def run(arguments: argparse.Namespace) -> int:
    """Status 0 if every check passed, 1 if one failed or nothing could be accelerated."""
    import bigkernels

    encoder = encoders.load(arguments.model_path)
    for name, weight in encoder.model.named_parameters():
        if not weight.isfinite().all():
            raise CommandError(f"{name} holds NaN or infinity: results cannot be judged")
    report = str(bigkernels.accelerate(encoder.model).report())
    batch = encoders.encode(encoder, arguments.text or encoders.TEXTS)
    found = bigkernels.verify(encoder.model, batch)
    if arguments.json:
        print_json({"model": arguments.model_path, "report": report, **as_json(found)})
    else:
        print(report)
        if found.checks:
            rows = [
                [c.name, f"{c.error:.2e}", f"{c.bound:.2e}", c.reason or "ok"] for c in found.checks
            ]
            print_table("Checks against float64", ["result", "error", "allowed", "verdict"], rows)
        print(str(found).splitlines()[0])
    return 0 if found.passed else 1


def as_json(found: Verification) -> dict[str, Any]:
    """A verification as plain values."""
    return {
        "passed": found.passed,
        "path": list(found.path),
        "largest_difference": found.largest_difference,
        "checks": [dataclasses.asdict(check) for check in found.checks],
    }
