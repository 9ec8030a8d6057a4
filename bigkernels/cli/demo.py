"""``bigkernels demo``: the whole job on real input: accelerate, verify, measure, fine-tune."""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from typing import Any

import datasets
import torch

import bigkernels
from bigkernels.integrations.accelerate import Report
from bigkernels.integrations.verify import Verification
from bigkernels.training.arguments import parse
from bigkernels.training.data import DataError, minilm_path, raw_texts

from . import CommandError, encoders, print_json
from .finetune import compare, run_all, table_rows
from .tables import print_table
from .throughput import CODE, QUICK, Throughput, rate_rows, throughputs
from .verify import as_json

# One epoch over a slice, so that both runs together take about a minute on two cores.
SLICE = ["--task_name", "movie-polarity", "--max_train_samples", "640", "--num_train_epochs", "1"]
SLICE += ["--max_eval_samples", "1000", "--save_strategy", "no", "--report_to", "none"]
SLICE += ["--seed", "0", "--disable_tqdm", "True", "--compare"]


def run(arguments: argparse.Namespace) -> int:
    """Status 0; 1 if the accelerated model failed its verification."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    try:
        texts, path = raw_texts(), str(minilm_path())
    except DataError as error:
        raise CommandError(str(error)) from error
    ours = encoders.load(path)
    stock = ours._replace(model=copy.deepcopy(ours.model))
    print_step("all-MiniLM-L6-v2 loaded", start)
    report = bigkernels.accelerate(ours.model).report()
    print_step(str(report).splitlines()[0], start)
    found = bigkernels.verify(ours.model, encoders.encode(ours, texts[:32]))
    print_step(str(found).splitlines()[0], start)
    if not found.passed:
        failed = "; ".join(f"{c.name}: {c.reason}" for c in found.checks if not c.passed)
        raise CommandError(f"verification failed: {failed or found}")
    measured = throughputs(stock, ours, texts, 32, QUICK)
    print_step("throughput measured", start)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, encoders.quiet():
        runs = run_all(*parse([*SLICE, "--output_dir", folder]))
    print_step("fine-tuned 640 sentences, stock and accelerated, tested 1,000", start)
    seconds = time.perf_counter() - start
    if arguments.json:
        print_json(_as_json(report, found, measured, runs, seconds))
    else:
        _print(found, measured, runs)
        print(f"{seconds:.0f} s; in your code: {CODE}")
    return 0


def print_step(text: str, start: float) -> None:
    """One line of progress on stderr, with the seconds since the start."""
    print(f"[{time.perf_counter() - start:4.0f} s] {text}", file=sys.stderr)


def _print(found: Verification, measured: list[Throughput], runs: list[dict[str, Any]]) -> None:
    rows = [[f"tokens/s, {name}", *cells] for name, *cells in rate_rows(measured)]
    trained = {name: values for name, *values in table_rows(runs)}
    against = compare(*runs)
    rows += [
        [
            "trained samples/s",
            *trained["trained samples/s"],
            f"{against['training_speed_up']:.2f}x",
        ],
        ["accuracy, %", *(f"{100 * run['eval']['eval_accuracy']:.1f}" for run in runs), ""],
        ["largest output difference", "", f"{found.largest_difference:.1e}", ""],
    ]
    threads = torch.get_num_threads()
    title = f"all-MiniLM-L6-v2, movie reviews, float32, batch 32, {threads} threads"
    print_table(title, ["what", "stock", "accelerated", "ratio"], rows)


def _as_json(
    report: Report,
    found: Verification,
    measured: list[Throughput],
    runs: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    return {
        "report": str(report),
        "verification": as_json(found),
        "throughput": [measurement.as_json() for measurement in measured],
        "finetune": {"runs": runs, "comparison": compare(*runs)},
        "threads": torch.get_num_threads(),
        "seconds": seconds,
    }
