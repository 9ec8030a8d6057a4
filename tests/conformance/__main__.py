"""Run the stored cases and compare them with what the emulator made of them.

    python -m tests.conformance --device cuda       on the GPU at hand
    python -m tests.conformance --device emulated   on the emulator's stand-in driver
    --update writes tests/conformance/expected.tsv from the emulator; --json FILE says how each case ended

Bits are compared by their digests. Where the emulator can be built it runs too, and a difference is shown
element by element; results within a bound can be compared only there. Exit status 1 if a case differs.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import pathlib
import sys

import numpy as np

from tests.conformance import driver
from tests.conformance.cases import Case, catalogue
from tests.conformance.driver import Driver
from tests.emulator import build

EXPECTED = pathlib.Path(__file__).with_name("expected.tsv")
SIGNS = {"f16": (0x7C00, np.uint16), "f16x2": (0x7C00, np.uint16), "bf16": (0x7F80, np.uint16)}
SIGNS["bf16x2"] = SIGNS["bf16"]


@dataclasses.dataclass
class Outcome:
    case: str
    family: str
    status: str  # same, differs, fails, left out
    detail: str = ""


def canonical(array: np.ndarray, kind: str) -> np.ndarray:
    """With one NaN for all: which of them comes out is not promised."""
    if kind in ("f32", "f64"):
        return np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    if kind not in SIGNS:
        return array
    limit, half = SIGNS[kind]
    bits = array.view(half)
    return np.where((bits & half(0x7FFF)) > limit, half(0x7FFF), bits).astype(half)


def results(device: Driver, case: Case) -> list[np.ndarray]:
    arguments = case.arguments()
    device.run(case.ptx, arguments, case.threads, case.blocks, case.shared)
    return [
        canonical(arguments[index], kind)
        for index, kind in zip(case.results, case.kinds, strict=True)
    ]


def digest(arrays: list[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def stored() -> dict[str, str]:
    lines = EXPECTED.read_text().splitlines() if EXPECTED.exists() else []
    return dict(line.rsplit("\t", 1) for line in lines)


def store(emulator: Driver) -> None:
    """Writes the digests of what the emulator makes of each case; says which it cannot run."""
    cases = {name: case for name, case in catalogue().items() if not case.bound}
    found = {name: stored_line(emulator, case) for name, case in cases.items()}
    EXPECTED.write_text("".join(line for line in found.values() if line))


def stored_line(emulator: Driver, case: Case) -> str:
    try:
        return f"{case.name}\t{digest(results(emulator, case))}\n"
    except driver.DriverError as error:
        print(f"fails: {case.name}: {error}")
        return ""


def difference(got: list[np.ndarray], wanted: list[np.ndarray], bound: float) -> str:
    """Where the first elements differ that may not; empty if none do."""
    for a, b in zip(got, wanted, strict=True):
        same = (a == b) | ((a != a) & (b != b))
        if bound and a.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                same |= np.abs(a - b) <= bound * np.abs(b)
        if not same.all():
            at = np.flatnonzero(~same.ravel())
            first = ", ".join(f"[{i}] {a.ravel()[i]!r} for {b.ravel()[i]!r}" for i in at[:4])
            return f"{at.size} of {a.size} elements: {first}"
    return ""


def judge(device: Driver, case: Case, known: str | None, emulator: Driver | None) -> Outcome:
    outcome = Outcome(case.name, case.family, "same")
    if device.major < case.major or (case.target.endswith("a") and device.major != case.major):
        outcome.status = "left out"
        outcome.detail = f"needs {case.target}"
        return outcome
    try:
        got = results(device, case)
        if case.bound == 0 and digest(got) == known:
            return outcome
        if emulator is None and case.bound:
            outcome.status, outcome.detail = "left out", "the emulator is not here to compare with"
            return outcome
        outcome.detail = (
            difference(got, results(emulator, case), case.bound) if emulator else "other bits"
        )
        if case.bound == 0 and not outcome.detail:
            outcome.detail = "the stored digest is of other results"
        outcome.status = "differs" if outcome.detail else "same"
    except driver.DriverError as error:
        outcome.status, outcome.detail = "fails", str(error)[:500]
    return outcome


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cuda", "emulated"), required=True)
    parser.add_argument("--seed", type=int, default=1, help="order of the emulated warps")
    parser.add_argument("--json", type=pathlib.Path, help="file for the outcomes")
    parser.add_argument("--update", action="store_true", help="store the emulator's results")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    emulator = driver.emulated(chosen.seed) if build.why_no_core() is None else None
    device = driver.gpu() if chosen.device == "cuda" else emulator
    if device is None:
        print(build.why_no_core())
        return 1
    if chosen.update:
        assert emulator is not None, "the results are the emulator's"
        store(emulator)
    known = stored()
    outcomes = [
        judge(device, case, known.get(name), emulator) for name, case in catalogue().items()
    ]
    if chosen.json:
        rows = [dataclasses.asdict(outcome) for outcome in outcomes]
        chosen.json.write_text(
            json.dumps({"device": chosen.device, "cases": rows}, indent=1) + "\n"
        )
    for outcome in outcomes:
        if outcome.status in ("differs", "fails"):
            print(f"{outcome.status}: {outcome.case}: {outcome.detail}")
    counts = collections.Counter(outcome.status for outcome in outcomes)
    print(f"{len(outcomes)} cases: {', '.join(f'{n} {status}' for status, n in counts.items())}")
    return int(counts["differs"] + counts["fails"] > 0)


if __name__ == "__main__":
    sys.exit(main())
