"""``bigkernels bench``: every kernel and model against every peer that is installed here."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import CommandError, print_json
from .tables import print_table

COLUMNS = ("peer", "ms", "quartiles", "speed-up", "error", "peak MB", "kept MB", "first s", "roof")


def run(arguments: argparse.Namespace) -> int:
    """Status 0; 1 if a model given with --mine failed its verification."""
    if arguments.mine:
        from . import throughput

        return throughput.run(arguments)
    if importlib.util.find_spec("numpy") is None:
        raise CommandError('needs numpy: pip install "bigkernels[bench]"')
    from bigkernels.bench import peers
    from bigkernels.bench.run import FULL, QUICK
    from bigkernels.bench.run import run as run_all

    chosen = _chosen(arguments)
    if arguments.list:
        print("\n".join(case.id for case in chosen))
        print_peers([vars(peer) | {"missing": peer.missing()} for peer in peers.PEERS])
        return 0
    names = [name.strip() for name in arguments.peers.split(",")] if arguments.peers else []
    known = {peer.name for peer in peers.PEERS}
    if unknown := [name for name in names if name not in known]:
        raise CommandError(f"--peers: {unknown[0]!r} not in {', '.join(sorted(known))}")
    effort = QUICK if arguments.quick else FULL
    if arguments.rounds:
        effort = effort._replace(rounds=arguments.rounds)
    threads = arguments.threads or torch.get_num_threads()
    found = run_all(chosen, effort, threads, names, lambda text: print(text, file=sys.stderr))
    file = write(found, Path(arguments.out))
    if arguments.json:
        print_json(found)
        return 0
    show(found)
    print(f"{len(found['rows'])} rows in {found['seconds']:.0f} s: {file}")
    return 0


def _chosen(arguments: argparse.Namespace) -> list[Any]:
    from bigkernels.bench import cases

    found = [c for c in cases.catalogue().values() if c.quick or not arguments.quick]
    if arguments.cases:
        try:
            found = [c for c in found if re.search(arguments.cases, c.id)]
        except re.error as error:
            raise CommandError(f"--cases: {error}") from error
    if not found:
        raise CommandError(f"--cases: no case matches {arguments.cases!r}")
    return found


def write(found: dict[str, Any], folder: Path) -> Path:
    """Puts the record into the folder; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{found['mode']}.json"
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return file


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
