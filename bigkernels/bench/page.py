"""One self-contained HTML page of a record: plots, one table a case, what was missing, how to read it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import peers, targets

_STYLE = """
:root { color-scheme: light; --ours: #1d5fd0; --line: #d9dde2; --soft: #5b6470; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: #1b1f24; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0.4rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 0.6rem; }
p, li { max-width: 44rem; } .soft, figcaption { color: var(--soft); font-size: 0.9rem; }
.plots { columns: 26rem 2; column-gap: 2rem; }
figure { margin: 0 0 1.5rem; break-inside: avoid; }
figure img { width: 100%; max-width: 40rem; height: auto; display: block; }
figcaption { font-weight: 600; color: inherit; margin-bottom: 0.3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tr.ours td { color: var(--ours); font-weight: 600; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 0.5rem 0; padding: 0.4rem 0.7rem; }
summary { cursor: pointer; overflow-wrap: anywhere; } summary b { color: var(--ours); }
.cards { display: grid; gap: 0.7rem; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); margin: 1rem 0; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem 0.9rem; }
.card b { display: block; font-size: 1.4rem; color: var(--ours); }
"""
_HEADS = (
    "peer", "ms", "lower", "upper", "speed-up", "error", "peak MB", "kept MB", "first s", "roof",
    "samples", "dropped",
)  # fmt: skip


def write(record: Mapping[str, Any], plots: Mapping[str, Path], file: Path) -> None:
    """Writes the page; the plots become part of it."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>bigkernels benchmarks</title><style>{_STYLE}</style></head><body>",
        *_head(record),
        "<h2>Plots</h2><div class='plots'>",
        *(_plot(title, path) for title, path in plots.items()),
        "</div>",
        *_targets(record),
        "<h2>Every case</h2>",
        "<p class='soft'>Medians and quartiles of one call. Speed-up over plain torch (kernels) or "
        "transformers with SDPA in float32 (encoders), paired by round. Error: the largest one against "
        "float64 through the baseline's; cos: the smallest cosine of a token.</p>",
        *_cases(record["rows"]),
        *_missing(record["peers"]),
        "</body></html>\n",
    ]
    file.write_text("\n".join(parts), encoding="utf-8")


def _head(record: Mapping[str, Any]) -> list[str]:
    machine = record["machine"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    roofs = record["ceilings"]
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {name}" for name, rate in roofs["flops"].items())
    copies = ", ".join(f"{rate / 1e9:.0f} GB/s in {name}" for name, rate in roofs["copy"].items())
    lines = [
        "<h1>bigkernels benchmarks</h1>",
        f"<p class='soft'>{_text(record['date'])}, {_text(record['mode'])} run of "
        f"{record['seconds']:.0f} s, commit {_text(record['commit'])}, {record['threads']} threads, "
        f"{_text(record['clock'])} time</p>",
        "<div class='cards'>",
    ]
    for row in _highlights(record["rows"]):
        label = f"{row['shape']}, {row['mode'].replace('_', ' ')}"
        lines.append(f"<div class='card'><b>{row['speed_up']:.2f}x</b>{_text(label)}</div>")
    return [
        *lines,
        "</div>",
        f"<p>{_text(machine['processor']['model'])}, AMX: {_text(machine['processor']['amx'])}. "
        f"Ceilings measured in this run: {rates}; copies {copies}.</p>",
        f"<p class='soft'>{_text(versions)}</p>",
    ]


def _highlights(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Ours in float32 on whole encoders: what an accelerated model gains."""
    mine = [r for r in rows if r["group"] == "encoder" and r["peer"] == peers.OURS]
    return [row for row in mine if row.get("speed_up") and " fill_" not in row["case"]][:6]


def _plot(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    alt = html.escape(title, quote=True)
    return (
        f"<figure><figcaption>{alt}</figcaption>"
        f"<img alt='{alt}' src='data:image/png;base64,{data}'></figure>"
    )


def _targets(record: Mapping[str, Any]) -> list[str]:
    found = targets.outcomes(record)
    if not found:
        return []
    lines = [[f"<td>{_text(cell)}</td>" for cell in targets.cells(outcome)] for outcome in found]
    marks = [" class='ours'" if outcome.met else "" for outcome in found]
    return [
        "<h2>Targets</h2><p class='soft'>Times as fast as the fastest rival of the same precision, in shared "
        "rounds; add and LayerNorm: as a copy of the same bytes. It has to hold on fast and on slow cores.</p>",
        "<div class='scroll'><table><tr>",
        *(f"<th>{head}</th>" for head in targets.HEADS),
        "</tr>",
        *(f"<tr{mark}>{''.join(line)}</tr>" for mark, line in zip(marks, lines, strict=True)),
        "</table></div>",
    ]


def _cases(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    parts = []
    for case, found in by_case.items():
        timed = sorted((r for r in found if r.get("median")), key=lambda r: float(r["median"]))
        mine = [
            f"{r['speed_up']:.2f}x" for r in timed if r["peer"] == peers.OURS and r.get("speed_up")
        ]
        state = f" ({timed[0]['state']} cores)" if timed and timed[0]["state"] != "all" else ""
        parts.append(f"<details><summary>{_text(case + state)} <b>{' '.join(mine)}</b></summary>")
        parts.append("<div class='scroll'><table><tr>")
        parts += [f"<th>{head}</th>" for head in _HEADS]
        parts.append("</tr>")
        parts += [_row(row) for row in timed]
        parts.append("</table></div>")
        refused = [f"{_text(r['peer'])}: {_text(r['refused'])}" for r in found if r["refused"]]
        if refused:
            parts.append(f"<p class='soft'>Refused: {'; '.join(refused)}</p>")
        parts.append("</details>")
    return parts


def _row(row: Mapping[str, Any]) -> str:
    def number(value: float | None, form: str, scale: float = 1.0) -> str:
        return "" if value is None else format(value * scale, form)

    error = number(row.get("error_ratio"), ".2f")
    if not error and row.get("cosine") is not None:
        error = f"cos {row['cosine']:.4f}"
    cells = [
        _text(row["peer"]),
        number(row["median"], ".3f", 1e3),
        number(row["lower"], ".3f", 1e3),
        number(row["upper"], ".3f", 1e3),
        number(row.get("speed_up"), ".2f"),
        error,
        number(row["peak_bytes"], ".1f", 1e-6),
        number(row["activation_bytes"], ".1f", 1e-6),
        number(row["first_result_seconds"], ".2f"),
        number(row.get("roof_share"), ".0%"),
        str(len(row["samples"])),
        str(row["dropped"]),
    ]
    kind = " class='ours'" if row["peer"].startswith(peers.OURS) else ""
    return f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _missing(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    missing = [peer for peer in listed if peer["missing"]]
    if not missing:
        return []
    lines = [
        f"<li>{_text(p['name'])}: {_text(p['missing'])}"
        + (f"; <code>{_text(p['install'])}</code></li>" if p["install"] else "</li>")
        for p in missing
    ]
    return ["<h2>Peers that were not there</h2><ul>", *lines, "</ul>"]


def _text(value: object) -> str:
    return html.escape(str(value))
