"""``bigkernels bench``: every kernel and model against every peer that is installed here."""

from __future__ import annotations

import argparse
import importlib.util
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import CommandError, print_json
from .tables import print_table

COLUMNS = ("peer", "ms", "quartiles", "speed-up", "error", "peak MB", "kept MB", "first s", "roof")


def run(arguments: argparse.Namespace) -> int:
    """Status 0; 1 if a model given with --mine failed its verification, or --compare a
    regression, or --grid a cell below stock."""
    if importlib.util.find_spec("numpy") is None:
        raise CommandError('needs numpy: pip install "bigkernels[bench]"')
    if arguments.mine:
        from . import mine

        return mine.run(arguments)
    if arguments.compare:
        return compare_records(*arguments.compare)
    if arguments.grid:
        return grid(arguments)
    if arguments.targets:
        return show_targets(arguments.targets)
    if arguments.readme:
        return write_readme(Path(arguments.readme))
    return measure(arguments)


def measure(arguments: argparse.Namespace) -> int:
    """Times the chosen cases, writes and shows the record."""
    from bigkernels.bench import cases, peers, report

    quick = (c for c in cases.catalogue().values() if c.quick or not arguments.quick)
    chosen = _chosen(arguments, quick)
    if arguments.list:
        print("\n".join(case.id for case in chosen))
        print_peers([vars(peer) | {"missing": peer.missing()} for peer in peers.PEERS])
        return 0
    found = time_cases(arguments, chosen, peer_names(arguments))
    files = report.write(found, Path(arguments.out))
    if arguments.json:
        print_json(found)
        return _status(found)
    show(found)
    print(f"{len(found['rows'])} rows in {found['seconds']:.0f} s")
    print("\n".join(str(file) for file in files))
    if len(files) == 1:
        print('no plots: pip install "bigkernels[plot]"')
    return _status(found)


def peer_names(arguments: argparse.Namespace) -> list[str]:
    """What --peers names, [] without it."""
    from bigkernels.bench import peers

    names = [name.strip() for name in arguments.peers.split(",")] if arguments.peers else []
    known = {peer.name for peer in peers.PEERS}
    if unknown := [name for name in names if name not in known]:
        raise CommandError(f"--peers: {unknown[0]!r} not in {', '.join(sorted(known))}")
    return names


def grid(arguments: argparse.Namespace) -> int:
    """Times accelerated against stock over batch and length; status 1 if a cell is below stock."""
    from bigkernels.bench import grid as over
    from bigkernels.bench import report
    from bigkernels.integrations import slower

    chosen = _chosen(arguments, over.grid_cases(arguments.quick))
    names = peer_names(arguments) or over.PEERS
    if arguments.list:
        print("\n".join([*(case.id for case in chosen), *names]))
        return 0
    found = time_cases(arguments, chosen, names)
    found["mode"] = "grid"
    cells = over.cells(found)
    found["cells"] = [cell._asdict() for cell in cells]
    files = report.write(found, Path(arguments.out))
    obeyed = Path(arguments.out) / "slower.json"
    obeyed.write_text(over.slower_table(found), encoding="utf-8")
    below = sum(cell.slower for cell in cells)
    if arguments.json:
        print_json(found)
        return _status(found) or int(below > 0)
    for model in over.encoders_of(arguments.quick):
        for precision in over.AGAINST:
            rows = over.rows(cells, model, precision)
            lengths = sorted({cell.length for cell in cells if cell.model == model})
            columns = ["batch", *(f"length {length}" for length in lengths)]
            print_table(f"{model}: times as fast as stock, {precision}", columns, rows)
    print(f"{below} of {len(cells)} cells below stock: {files[0]}")
    print(f"accelerate obeys {obeyed} in the place of {slower.TABLE}")
    return _status(found) or int(below > 0)


def time_cases(
    arguments: argparse.Namespace, chosen: Sequence[Any], names: Sequence[str]
) -> dict[str, Any]:
    """The record of the chosen cases, by the flags' effort, threads and clock."""
    from bigkernels.bench.run import FULL, QUICK, run

    effort = QUICK if arguments.quick else FULL
    if arguments.rounds:
        effort = effort._replace(rounds=arguments.rounds)
    threads = arguments.threads or torch.get_num_threads()
    if arguments.cpu_time:
        effort, threads = effort._replace(clock="cpu"), 1
    return run(chosen, effort, threads, names, lambda text: print(text, file=sys.stderr))


def _status(found: dict[str, Any]) -> int:
    """130, as of any interrupted command, if the record holds only what was timed until then."""
    return 130 if found["interrupted"] else 0


def _chosen(arguments: argparse.Namespace, of: Iterable[Any]) -> list[Any]:
    found = list(of)
    if arguments.cases:
        try:
            found = [c for c in found if re.search(arguments.cases, c.id)]
        except re.error as error:
            raise CommandError(f"--cases: {error}") from error
    if not found:
        raise CommandError(f"--cases: no case matches {arguments.cases!r}")
    return found


def compare_records(before: str, after: str) -> int:
    """Prints what changed; status 1 if a row of ours regressed beyond the noise."""
    from bigkernels.bench.compare import compare

    changes = compare(_load(before), _load(after))
    if not changes:
        raise CommandError("--compare: the records have no row in common")
    ours = [change for change in changes if change.peer.startswith("bigkernels")]
    columns = ("case", "peer", "before", "after", "change", "noise", "")
    rows = [
        [
            change.case,
            change.peer,
            f"{change.before:.2f}x",
            f"{change.after:.2f}x",
            f"{math.expm1(change.change):+.1%}",
            f"{math.expm1(-change.limit):.1%}",
            "SLOWER" if change.regressed else "disturbed" if change.disturbed else "",
        ]
        for change in ours
    ]
    print_table("Ours over the baseline, before and after", columns, rows)
    slower = sum(change.regressed for change in changes)
    blind = [change for change in ours if change.disturbed or change.limit > math.log(1.2)]
    if blind:
        print(f"{len(blind)} of {len(ours)} rows are too disturbed to show a kernel 20 % slower")
    known = "nothing is slower" if len(blind) < len(ours) else "nothing is known"
    print(f"{slower} of {len(rows)} rows are slower than before" if slower else known)
    return int(slower > 0)


def write_readme(file: Path) -> int:
    """Draws a record's plots and page beside it and puts its table into ./README.md."""
    from bigkernels.bench import report

    found = _load(str(file))
    report.draw(found, file.parent)
    try:
        report.write_readme(found, file.parent, Path("README.md"))
    except (OSError, ValueError) as error:
        raise CommandError(f"--readme: {error}") from error
    return 0


def show_targets(files: Sequence[str]) -> int:
    """Prints what became of the targets, each from the last of the records that says something of it."""
    from bigkernels.bench import targets

    records = [_load(file) for file in files]
    found = [outcome for record in records for outcome in targets.outcomes(record)]
    last = {(outcome.name, outcome.case): outcome for outcome in found}
    place = ("precision", "model", "batch", "length")
    cells = {tuple(c[k] for k in place): c for record in records for c in record.get("cells", ())}
    if cells:
        last["never slower", ""] = targets.never_slower(list(cells.values()))
    if not last:
        raise CommandError("--targets: the records have no case of a target")
    print(targets.markdown(list(last.values())))
    print(f"\n{sum(outcome.met for outcome in last.values())} of {len(last)} targets are met")
    return 0


def _load(file: str) -> dict[str, Any]:
    from bigkernels.bench import report

    try:
        return report.load(Path(file))
    except ValueError as error:
        raise CommandError(str(error)) from error


def show(found: dict[str, Any]) -> None:
    """Prints one table a case, then the peers that are not here."""
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        by_case.setdefault(row["case"], []).append(row)
    for case, rows in by_case.items():
        timed = sorted((r for r in rows if r.get("median")), key=lambda r: float(r["median"]))
        state = f", {timed[0]['state']} cores" if timed and timed[0]["state"] != "all" else ""
        print_table(f"{case}{state}", COLUMNS, [_cells(row) for row in timed])
        for row in rows:
            if row["refused"]:
                print(f"  {row['peer']}: {row['refused']}")
    print_peers(found["peers"])


def print_peers(listed: Sequence[dict[str, Any]]) -> None:
    """The peers that cannot run here and how to get them."""
    lines = [[p["name"], p["missing"], p["install"]] for p in listed if p["missing"]]
    if lines:
        print_table("Peers that are not here", ["peer", "why", "install"], lines)


def _cells(row: dict[str, Any]) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    def megabytes(value: float | None) -> str:
        return "" if value is None else f"{value / 1e6:.1f}"

    ratio, cosine = row.get("error_ratio"), row.get("cosine")
    error = f"{ratio:.2f}x" if ratio is not None else "" if cosine is None else f"cos {cosine:.4f}"
    return [
        row["peer"],
        f"{row['median'] * 1e3:.3f}",
        f"{row['lower'] * 1e3:.3f}-{row['upper'] * 1e3:.3f}",
        f"{row['speed_up']:.2f}x" if row.get("speed_up") else "",
        error,
        megabytes(row["peak_bytes"]),
        megabytes(row["activation_bytes"]),
        number(row["first_result_seconds"], ".2f"),
        number(row.get("roof_share"), ".0%"),
    ]
