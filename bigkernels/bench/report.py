"""What a record becomes: JSON, plots, the page, and the README's table and chart."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import peers

BEGIN, END = "<!-- written by `bigkernels bench --readme` -->", "<!-- end of what it writes -->"
# The README's columns: a sentence, full batches, ragged ones, whole sentences, training.
SHOWN = (
    "dense 1x16",
    "dense 8x128",
    "dense 4x512",
    "ragged 16x128",
    "end_to_end minilm snippets 32x",
)
CHART = Path("benchmarks") / "results" / "encoders.png"


def load(file: Path) -> dict[str, Any]:
    """A record; raises ValueError if the file is not one this version reads."""
    from .record import SCHEMA

    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = found["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a record of bigkernels bench ({error})") from error
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema}, this version reads {SCHEMA}")
    return found


def write(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Puts the record, its plots and its page into a folder; plots and page need matplotlib. Returns
    the files."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{record['mode']}.json"
    file.write_text(_json(record), encoding="utf-8")
    return [file, *draw(record, folder)]


def draw(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Puts a record's plots and page into a folder, if matplotlib is there. Returns the files."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from . import page, plots

    drawn = plots.write(record, folder)
    page.write(record, drawn, folder / "index.html")
    return [*drawn.values(), folder / "index.html"]


def _json(record: Mapping[str, Any]) -> str:
    """One row a line: small, and a diff shows which rows changed."""
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in record["rows"])
    rest = json.dumps({**record, "rows": []}, indent=1, ensure_ascii=False)
    return rest.replace('"rows": []', f'"rows": [\n{rows}\n ]') + "\n"


def write_readme(record: Mapping[str, Any], folder: Path, readme: Path) -> None:
    """Puts table and chart between the marks of a README; folder holds the record's plots.

    Raises ValueError if the marks are not there.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{readme} lacks the lines {BEGIN!r} and {END!r}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    chart = readme.parent / CHART
    chart.parent.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != chart.parent.resolve() and (folder / CHART.name).is_file():
        shutil.copyfile(folder / CHART.name, chart)
    readme.write_text(f"{before}{BEGIN}\n{table(record)}\n{END}{after}", encoding="utf-8")


def table(record: Mapping[str, Any]) -> str:
    """Markdown: speed-ups of every peer over transformers, one column a case, the largest error of one of
    them, and where from."""
    rows = [r for r in record["rows"] if r["group"] == "encoder" and r.get("speed_up")]
    rows = [r for r in rows if any(f" {words}" in r["case"] for words in SHOWN)]
    rows = [r for r in rows if r["peer"] not in peers.ASIDE]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    heads = {row["case"]: f"{row['shape']}, {row['mode'].replace('_', ' ')}" for row in rows}
    value = {(row["peer"], row["case"]): row for row in rows}
    names = list(dict.fromkeys(row["peer"] for row in rows))
    lines = [
        "| times as fast as transformers (SDPA, float32) | "
        + " | ".join(heads[case] for case in cases)
        + " | largest error |",
        "| --- |" + " ---: |" * (len(cases) + 1),
    ]
    judged = next((case for case in cases if " ragged " in case), "")
    for name in sorted(names, key=lambda name: not name.startswith(peers.OURS)):
        cells = [_cell(value.get((name, case))) for case in cases]
        error = value.get((name, judged), {}).get("error")
        cells.append("" if error is None else f"{error:.0e}")
        shown = f"**{name}**" if name.startswith(peers.OURS) else name
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", _source(record), "", f"![Speed-up of encoders]({CHART.as_posix()})"]
    )


def _cell(row: Mapping[str, Any] | None) -> str:
    return f"{row['speed_up']:.2f}" if row else ""


def _source(record: Mapping[str, Any]) -> str:
    dropped = [row["dropped"] for row in record["rows"] if row.get("median")]
    used = [len(row["samples"]) for row in record["rows"] if row.get("median")]
    return (
        f"{record['machine']['processor']['model']}, {_clock(record)}, {record['date'][:10]}, "
        f"torch {record['machine']['versions']['torch']}. Medians of interleaved rounds, every peer in a "
        f"process of its own, {sum(used) / max(1, len(used)):.0f} samples a row"
        f"{_disturbed(dropped)}. Error: of the last hidden states against float64, on the first ragged batch. "
        f"`benchmarks/README.md` says how it is measured, `benchmarks/results/` has every row."
    )


def _clock(record: Mapping[str, Any]) -> str:
    return "one thread, CPU time" if record["clock"] == "cpu" else f"{record['threads']} threads"


def _disturbed(dropped: Sequence[int]) -> str:
    return f", {sum(dropped)} disturbed ones dropped" if sum(dropped) else ""
