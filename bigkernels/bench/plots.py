"""PNG plots of a record. Narrow and with large letters, so that a phone shows them as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import cases, peers

Rows = Sequence[Mapping[str, Any]]
OURS, WORSE, STOCK, OTHER = "#1d5fd0", "#d55e00", "#222222", "#9aa3ad"
# Colour-blind safe (Okabe and Ito), for peers in line plots.
LINES = ("#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b0a000", "#7f7f7f")
# Of ours, by the order of speed; one is not like another.
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
WIDTH, DPI = 5.2, 180
STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def write(record: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draws what the record has data for: speed-up of kernels and encoders, latency and memory against
    length, roofline, throughput against fill. Title to file."""
    timed = [row for row in record["rows"] if row.get("median")]
    drawings: dict[str, tuple[str, Callable[[Rows], Figure | None]]] = {
        "Speed-up of kernels": ("kernels.png", kernels),
        "Speed-up of encoders": ("encoders.png", encoders),
        "Attention: time against length": ("latency.png", latency),
        "Attention: memory against length": ("memory.png", memory),
        "Roofline": ("roofline.png", functools.partial(roofline, record["ceilings"])),
        "Throughput against fill": ("fill.png", fill),
    }
    written = {}
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for title, (name, draw) in drawings.items():
            figure = draw(timed)
            if figure is not None:
                figure.savefig(folder / name, dpi=DPI, bbox_inches="tight", facecolor="white")
                plt.close(figure)
                written[title] = folder / name
    return written


def kernels(rows: Rows) -> Figure | None:
    """A bar for ours of the room cases of quick runs, a dot for the best peer; torch is the line at 1."""
    quick = {case.id for case in cases.catalogue().values() if case.quick and case.problem}
    ours = [r for r in rows if r["case"] in quick and r["peer"] == peers.OURS and r.get("speed_up")]
    if not ours:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 1.1 + 0.28 * len(ours)))
    places = range(len(ours))
    values = [row["speed_up"] for row in ours]
    axes.barh(places, values, color=[OURS if v >= 1 else WORSE for v in values], height=0.62)
    best = [_best_peer(rows, row["case"]) for row in ours]
    axes.scatter(best, places, color="white", edgecolor=STOCK, zorder=3, s=30, label="best peer")
    for place, value in zip(places, values, strict=True):
        color = OURS if value >= 1 else WORSE
        axes.text(1.02, place, f"{value:.2f}", va="center", color=color, transform=_right(axes))
    axes.set_yticks(list(places), [_kernel_label(row) for row in ours], fontsize=9)
    axes.set_ylim(len(ours) - 0.4, -0.6)
    _speed_up_axis(axes, [*values, *best], "times as fast as torch")
    figure.legend(loc="lower left", bbox_to_anchor=(0.0, 0.0), frameon=False)
    figure.tight_layout(rect=(0, 0.02, 0.93, 1))
    return figure


def encoders(rows: Rows) -> Figure | None:
    """One panel a case (full and ragged batches), a bar for every peer, fastest first; the baseline is
    the line at 1."""
    shown = [r for r in rows if r["group"] == "encoder" and r["peer"] not in peers.ASIDE]
    panelled = _panels([r for r in shown if r.get("speed_up")])
    if not panelled:
        return None
    counts = [len(found) for found in panelled.values()]
    figure, panels = plt.subplots(
        len(panelled), 1, figsize=(WIDTH, 0.27 * sum(counts) + 0.95 * len(panelled)), squeeze=False,
        height_ratios=counts,
    )  # fmt: skip
    for axes, found in zip(panels[:, 0], panelled.values(), strict=True):
        found.sort(key=lambda row: -row["speed_up"])
        colors = [_color(row["peer"]) for row in found]
        values = [row["speed_up"] for row in found]
        axes.barh(range(len(found)), values, color=colors, height=0.7)
        for place, value in enumerate(values):
            axes.text(value * 1.03, place, f"{value:.2f}", va="center", fontsize=9)
        axes.set_yticks(range(len(found)), [row["peer"] for row in found])
        axes.invert_yaxis()
        axes.set_title(_encoder_label(found[0]), loc="left", fontsize=10, fontweight="bold")
        _speed_up_axis(axes, values, "")
    panels[-1, 0].set_xlabel(f"times as fast as {peers.BASELINES['encoder']}")
    figure.tight_layout()
    return figure


def latency(rows: Rows) -> Figure | None:
    """Milliseconds of attention against length, forward and backward, by dtype."""
    return _against_length(rows, lambda row: row["median"] * 1e3, "ms")


def memory(rows: Rows) -> Figure | None:
    """Megabytes that a call of attention adds at most, against length."""
    return _against_length(rows, lambda row: (row["peak_bytes"] or 0) / 1e6, "MB added by a call")


def _against_length(rows: Rows, value: Callable[[Any], float], unit: str) -> Figure | None:
    chosen = [r for r in rows if r["group"] == "attention" and _plain(r) and value(r) > 0]
    panels = [(m, d) for m in ("forward", "backward") for d in ("float32", "bfloat16")]
    panels = [
        p for p in panels if len({r["length"] for r in chosen if (r["mode"], r["dtype"]) == p}) > 1
    ]
    if not panels:
        return None
    figure, grid = plt.subplots(
        len(panels), 1, figsize=(WIDTH, 2.6 * len(panels)), squeeze=False, sharex=True
    )
    names = sorted({row["peer"] for row in chosen})
    colors = _line_colors(names)
    for axes, (mode, dtype) in zip(grid[:, 0], panels, strict=True):
        for name in names:
            points = sorted(
                (r["length"], value(r))
                for r in chosen
                if (r["mode"], r["dtype"], r["peer"]) == (mode, dtype, name)
            )
            _line(axes, points, name, colors[name])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain_number)
        axes.set_title(f"{mode}, {dtype}", loc="left", fontsize=10, fontweight="bold")
        axes.set_ylabel(unit)
    lengths = sorted({row["length"] for row in chosen})
    grid[-1, 0].set_xticks(lengths, [str(length) for length in lengths])
    grid[-1, 0].set_xlabel("sequence length (12 heads of 64; batch 16, 8, 1, 1)")
    _legend_below(figure, grid[0, 0])
    return figure


def roofline(ceilings: Mapping[str, Any], rows: Rows) -> Figure | None:
    """Rates reached by ours and torch under the measured roofs of each dtype."""
    chosen = [r for r in rows if r["flops"] and r["bytes"] and r["group"] != "encoder"]
    chosen = [r for r in chosen if r["peer"] in (peers.OURS, "torch")]
    if not chosen:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, 4.2))
    intensities = [r["flops"] / r["bytes"] for r in chosen]
    span = [min(intensities) / 2, max(intensities) * 2]
    shades = {"float32": "#444444", "bfloat16": "#c05a00"}
    for dtype, rate in ceilings["flops"].items():
        knee = rate / ceilings["copy"]["L3"]
        xs = sorted([span[0], min(max(knee, span[0]), span[1]), span[1]])
        ys = [min(rate, x * ceilings["copy"]["L3"]) / 1e9 for x in xs]
        axes.plot(xs, ys, color=shades[dtype], lw=1.2)
        axes.text(
            span[1],
            rate / 1e9 * 1.07,
            f"{dtype} products",
            ha="right",
            color=shades[dtype],
            fontsize=9,
        )
    for name, marker in (("torch", "o"), (peers.OURS, "D")):
        for dtype, shade in shades.items():
            points = [r for r in chosen if (r["peer"], r["dtype"]) == (name, dtype)]
            axes.scatter(
                [r["flops"] / r["bytes"] for r in points],
                [r["flops"] / r["median"] / 1e9 for r in points],
                marker=marker,
                s=34,
                facecolor=OURS if name == peers.OURS else "white",
                edgecolor=shade,
                label=f"{name}, {dtype}",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("floating-point operations a byte")
    axes.set_ylabel("GFLOP/s")
    _legend_below(figure, axes)
    return figure


def fill(rows: Rows) -> Figure | None:
    """Real tokens a second of encoders against the share of real tokens in the batch: ours, the
    baseline, and the five others that are fastest where half is padding or more."""
    chosen = [r for r in rows if r["group"] == "encoder" and " fill_" in r["case"] and r["fill"]]
    if len({row["fill"] for row in chosen}) < 2:
        return None
    emptiest = min(row["fill"] for row in chosen)
    ranked = sorted((r for r in chosen if r["fill"] == emptiest), key=lambda r: float(r["median"]))
    names = [r["peer"] for r in ranked]
    ours = [name for name in names if name.startswith(peers.OURS)]
    base = peers.BASELINES["encoder"]
    others = [name for name in names if name not in (*ours, base)][:5]
    figure, axes = plt.subplots(figsize=(WIDTH, 4.0))
    for at, name in enumerate([*ours, base, *others]):
        points = sorted((r["fill"], r["tokens"] / r["median"]) for r in chosen if r["peer"] == name)
        color = OURS if name in ours else STOCK if name == base else LINES[at % len(LINES)]
        dashes = "-" if name not in ours else DASHES[ours.index(name) % len(DASHES)]
        width = 2.4 if name in ours else 1.3
        axes.plot(
            *zip(*points, strict=True),
            linestyle=dashes,
            color=color,
            lw=width,
            marker="o",
            ms=3.5,
            label=name,
        )
    axes.set_xlabel("share of real tokens in the batch (16 x 128)")
    axes.set_ylabel("real tokens a second")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_plain_number)
    _legend_below(figure, axes)
    return figure


def _best_peer(rows: Rows, case: str) -> float:
    others = [r for r in rows if r["peer"] not in (peers.OURS, peers.COPY)]
    theirs = [r["speed_up"] for r in others if r["case"] == case]
    return max((value for value in theirs if value), default=1.0)


def _panels(rows: Rows) -> dict[str, list[Any]]:
    """Rows of the batches of 8 or 16 times 128 by their case: what tells most about an encoder."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        if any(words in row["case"] for words in (" dense 8x128", " ragged 16x128")):
            found.setdefault(row["case"], []).append(row)
    return found


def _right(axes: Axes) -> Any:
    """Places a text by the axes' width and the data's height."""
    return axes.get_yaxis_transform()


def _plain_number(value: float, _: Any) -> str:
    return f"{value:,.10g}"


def _plain(row: Mapping[str, Any]) -> bool:
    return row["mode"] in ("forward", "backward") and len(row["shape"].split()) == 2


def _kernel_label(row: Mapping[str, Any]) -> str:
    dtype = {"float32": "f32", "bfloat16": "bf16"}[row["dtype"]]
    shape = row["shape"].replace("dropout_0.1", "dropout").replace("feed_forward", "ffn")
    mode = {"forward": "", "training": "step"}.get(row["mode"], row["mode"])
    return f"{shape.replace('layer_norm', 'norm')} {dtype} {mode}".strip()


def _encoder_label(row: Mapping[str, Any]) -> str:
    return f"{row['shape']}, {row['mode'].replace('_', ' ')}"


def _color(name: str) -> str:
    if name.startswith(peers.OURS):
        return OURS
    return STOCK if name == peers.BASELINES["encoder"] else OTHER


def _line_colors(names: Sequence[str]) -> dict[str, str]:
    others = iter(LINES * 3)
    fixed = {peers.OURS: OURS, "torch": STOCK}
    return {name: fixed.get(name) or next(others) for name in names}


def _line(axes: Axes, points: Sequence[tuple[int, float]], name: str, color: str) -> None:
    if points:
        width = 2.4 if name == peers.OURS else 1.3
        axes.plot(*zip(*points, strict=True), marker="o", ms=3.5, lw=width, color=color, label=name)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.03), ncols=2, frameon=False
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))


def _speed_up_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    axes.set_xscale("log")
    low, high = min([*values, 0.9]) * 0.9, max([*values, 1.1]) * 1.35
    axes.set_xlim(low, high)
    ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.axvline(1.0, color=STOCK, lw=1, zorder=2)
    axes.set_xlabel(label)
