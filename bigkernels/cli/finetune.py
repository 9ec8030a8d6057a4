"""``bigkernels finetune``: the command around ``bigkernels.training.finetune``."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import datasets
import transformers
from transformers import TrainingArguments

from bigkernels.training.arguments import DataArguments, ModelArguments, parse
from bigkernels.training.data import DataError
from bigkernels.training.finetune import finetune

from . import CommandError, first_line, print_json
from .tables import print_table

METRICS = {
    "accuracy": ("eval", "eval_accuracy"),
    "precision": ("eval", "eval_precision"),
    "recall": ("eval", "eval_recall"),
    "F1": ("eval", "eval_f1"),
    "test loss": ("eval", "eval_loss"),
    "training loss": ("train", "train_loss"),
    "training seconds": ("train", "train_runtime"),
    "trained samples/s": ("train", "train_samples_per_second"),
    "tested samples/s": ("eval", "eval_samples_per_second"),
}


def main(argv: list[str]) -> int:
    """Runs ``bigkernels finetune argv``; returns the exit status."""
    model, data, training = parse(argv)
    if training.disable_tqdm:
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # With --json nothing but the object may reach stdout, and Trainer prints its logs there.
    chatter = contextlib.redirect_stdout(sys.stderr) if model.json else contextlib.nullcontext()
    with chatter:
        runs = run_all(model, data, training)
    if model.json:
        print_json({"runs": runs, **({"comparison": compare(*runs)} if model.compare else {})})
        return 0
    names = [f"{run['kernels']}{' (stock)' if run['kernels'] == 'torch' else ''}" for run in runs]
    print_table("Fine-tuning", ["result", *names], table_rows(runs))
    if model.compare:
        found = compare(*runs)
        print(f"training speed-up: {found['training_speed_up']:.2f}x")
        print(f"accuracy: {found['accuracy_points']:+.2f} points")
        print(f"largest difference of the logged losses: {found['loss_difference']:.2e}")
    return 0


def run_all(
    model: ModelArguments, data: DataArguments, training: TrainingArguments
) -> list[dict[str, Any]]:
    """One run, or with ``--compare`` a stock and an accelerated one, each in its own folder.

    Raises CommandError for what the user can mend.
    """
    runs = []
    for kernels in ("torch", "bigkernels") if model.compare else (model.kernels,):
        own = copy.copy(training)  # not replace(), which would set the device up again
        if model.compare:
            own.output_dir = str(Path(training.output_dir or "") / kernels)
        try:
            runs.append(finetune(dataclasses.replace(model, kernels=kernels), data, own))
        except (DataError, ValueError, OSError) as error:
            raise CommandError(first_line(error)) from error
    return runs


def table_rows(runs: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each metric that the runs have: its name, then its value in each run."""
    rows = []
    for name, (part, key) in METRICS.items():
        values = [run.get(part, {}).get(key) for run in runs]
        if None not in values:
            rows.append([name, *(f"{value:.4g}" for value in values)])
    return rows


def compare(stock: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Ours against stock: training speed-up, accuracy in points, largest loss difference."""

    def value(run: dict[str, Any], name: str) -> float:
        part, key = METRICS[name]
        return float(run.get(part, {}).get(key, float("nan")))

    steps = stock["losses"].keys() & ours["losses"].keys()
    gaps = [abs(stock["losses"][step] - ours["losses"][step]) for step in steps]
    return {
        "training_speed_up": value(ours, "trained samples/s") / value(stock, "trained samples/s"),
        "accuracy_points": 100 * (value(ours, "accuracy") - value(stock, "accuracy")),
        "loss_difference": max(gaps, default=float("nan")),
    }
