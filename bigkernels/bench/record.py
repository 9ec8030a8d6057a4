"""From samples to rows: which of them count, medians, paired ratios, errors, shares of the roof.

benchmarks/README.md documents the JSON this writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigkernels.testing.timing import timing_of

from . import ceilings, peers
from .cases import Case

SCHEMA = 1
# Fewer samples of one state than this, and all states are taken together.
FEWEST = 3
_PRECISIONS = {"float32": "HF sdpa", "bfloat16": "HF bf16", "autocast": "HF autocast"}

Answers = Sequence[Mapping[str, Any]]


def rows(
    case: Case, answers: Answers, errors: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """One row a peer; the case's own facts are repeated in each. The roof comes when all is measured."""
    state = common_state(answers)
    timings = {a["peer"]: _timing(a, state) for a in answers if a["samples"]}
    base = timings.get(peers.BASELINES[case.group])
    stock = [a for a in answers if a["peer"] == peers.BASELINES[case.group] and a["samples"]]
    facts = _facts(case)
    found = []
    for answer in answers:
        row: dict[str, Any] = {**facts, "peer": answer["peer"]}
        row |= {key: answer[key] for key in ("dtype", "flops", "bytes") if key in answer}
        for key in ("configuration", "version", "tokens", "fill", "refused"):
            row[key] = answer.get(key)
        for key in ("first_result_seconds", "peak_bytes", "activation_bytes", "process_bytes"):
            row[key] = answer.get(key)
        timing = timings.get(answer["peer"])
        if timing is not None:
            row |= _measured(answer, timing, state)
            row["by_state"] = _by_state(answer, stock[0] if stock else None)
            row["speed_up"] = timing.times_faster_than(base) if base else None
        row |= errors.get(answer["peer"], {})
        found.append(row)
    return found


def add_samples(answers: Sequence[dict[str, Any]], others: Answers) -> None:
    """Puts the samples of another pass over a case to those of the first, as later rounds."""
    samples = {other["peer"]: other["samples"] for other in others}
    first = 1 + max((s[0] for answer in answers for s in answer["samples"]), default=0)
    for answer in answers:
        later = [[turn + first, *rest] for turn, *rest in samples.get(answer["peer"], [])]
        answer["samples"] = answer["samples"] + later


def common_state(answers: Answers) -> str:
    """The core state whose samples are compared: the one of which every peer has most, "all" if some
    peer has fewer than FEWEST of it."""
    counts: dict[str, list[int]] = {"fast": [], "slow": []}
    for answer in answers:
        if not answer["samples"]:
            continue
        for state, seen in counts.items():
            seen.append(sum(1 for s in _usable(answer) if s[2] == state))
    best = max(counts, key=lambda state: min(counts[state], default=0))
    return best if min(counts[best], default=0) >= FEWEST else "all"


def _usable(answer: Mapping[str, Any]) -> list[Any]:
    """Undisturbed samples, or the disturbed ones if there are no others."""
    samples = answer["samples"]
    return [s for s in samples if s[3]] or list(samples)


def _timing(answer: Mapping[str, Any], state: str) -> Any:
    usable = [s for s in _usable(answer) if state in ("all", s[2])]
    dropped = sum(1 for s in answer["samples"] if not s[3])
    return timing_of([(s[0], s[1]) for s in usable], dropped, answer["calls"])


def _facts(case: Case) -> dict[str, Any]:
    names = ("group", "mode", "shape", "dtype", "length", "flops", "bytes")
    return {"case": case.id, **{name: getattr(case, name) for name in names}}


def _by_state(answer: Mapping[str, Any], stock: Mapping[str, Any] | None) -> dict[str, Any]:
    """Median and number of the samples of each core state there was; speed_up over stock in that state, None if
    either has fewer than FEWEST samples of it."""
    found: dict[str, Any] = {}
    for state in ("fast", "slow", "mixed"):
        mine = [s for s in _usable(answer) if s[2] == state]
        theirs = [s for s in _usable(stock) if s[2] == state] if stock else []
        if not mine:
            continue
        timing, speed_up = _timing(answer, state), None
        if stock and min(len(mine), len(theirs)) >= FEWEST:
            speed_up = timing.times_faster_than(_timing(stock, state))
        found[state] = {"median": timing.median, "samples": len(mine), "speed_up": speed_up}
    return found


def _measured(answer: Mapping[str, Any], timing: Any, state: str) -> dict[str, Any]:
    return {
        "median": timing.median,
        "lower": timing.lower,
        "upper": timing.upper,
        "state": state,
        "samples": [[turn, seconds] for turn, seconds in timing.samples],
        "dropped": timing.dropped,
        "disturbed": not any(s[3] for s in answer["samples"]),
        "calls": timing.calls,
    }


def roof(row: Mapping[str, Any], roofs: Any) -> dict[str, Any]:
    """Share of the roof, and which; nothing of a row without times."""
    if "median" not in row:
        return {}
    found = ceilings.share(row, row["median"], roofs)
    if found is None:
        return {"roof_share": None, "limit": None}
    return {"roof_share": found[0], "limit": found[1]}


def room_errors(case: Case, folder: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Largest error of each peer's results against the reference in float64, and its ratio to the
    baseline's. Nothing where dropout makes every result another one."""
    import torch

    if case.problem.operation == "attention" and case.mode == "overhead":
        return {}
    if getattr(case.problem, "dropout_p", 0):
        return {}
    problem = case.problem.problem().promoted(torch.float64)
    if case.mode == "forward":
        problem = type(problem)(problem.inputs, {}, (), problem.reference, problem.axes)
    truth = {name: t.numpy() for name, t in problem.solve(problem.reference).items()}
    errors = {}
    for name in names:
        file = folder / f"{name}.npz"
        if file.is_file() and (got := np.load(file)).files:  # a copy has no results
            # In units of each tensor's own size, so that outputs and gradients weigh the same.
            errors[name] = max(
                float(np.abs(got[key] - truth[key]).max() / np.abs(truth[key]).max())
                for key in truth
            )
    base = errors.get("torch")
    return {name: _error(error, base) for name, error in errors.items()}


def encoder_errors(truth: Path, folder: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The same for last hidden states on real tokens, beside transformers in the same precision, and
    the smallest cosine of a token with the truth."""
    exact = np.load(truth)
    real = exact["mask"] == 1
    expected = exact["hidden"][real]
    errors, found = {}, {}
    for name in names:
        file = folder / f"{name}.npz"
        if not file.is_file() or "hidden" not in (got := np.load(file)):
            continue
        if got["hidden"].ndim < 3:  # the mere reading of weights
            continue
        hidden = got["hidden"][real].astype(np.float64)
        errors[name] = float(np.abs(hidden - expected).max())
        norms = np.linalg.norm(hidden, axis=1) * np.linalg.norm(expected, axis=1)
        found[name] = {"cosine": float(((hidden * expected).sum(1) / norms).min())}
    for name in found:
        base = errors.get(_PRECISIONS.get(peers.find("encoder", name).precision, ""))
        found[name] |= _error(errors[name], base)
    return found


def _error(error: float, base: float | None) -> dict[str, float]:
    return {"error": error} | ({"error_ratio": error / base} if base else {})
