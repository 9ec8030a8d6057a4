"""Fills the table from which the feed-forward drawer takes its tiles: times every candidate, keeps the fastest.

    python benchmarks/tune.py [--rehearse] [--write FILE]

Where a GPU is, its rows are replaced, their source "measured" and on what; run `make static-gate` afterwards, which
compiles every row, before the table is committed. --rehearse goes the same way on the emulated device, with small
shapes: the least predicted time wins (predict.py), and its rows say "predicted". Nothing is tuned while a model runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import predict

import bigkernels as bk
from bigkernels.ops import triton_launch
from bigkernels.ops.ffn import triton_tiles
from bigkernels.ops.ffn.triton_tiles import Tile

HALF = torch.bfloat16
# What fits the registers and shared memory of sm_80 and sm_90 without spills, by `make static-gate`.
CANDIDATES = {
    "large": (
        Tile(128, 256, 64, 8, 3),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 64, 64, 8, 3),
        Tile(64, 64, 64, 4, 3),
    ),
    "small": (Tile(64, 64, 64, 4, 3), Tile(128, 64, 64, 8, 3)),
}
DIRECTIONS = ("forward", "gated", "backward")
KERNELS = {"forward": "ffn_forward_kernel", "gated": "ffn_forward_kernel"}
# (rows, E, F) of the planes that stand for a size: of BERT-large, and of one short sample.
PLANES = {"large": (16384, 1024, 4096), "small": (128, 768, 3072)}
REHEARSED = (128, 64, 256)


def _call(
    plane: tuple[int, int, int], direction: str, device: str
) -> tuple[Callable[[], Tensor], tuple[Tensor, ...]]:
    """A call whose forward, or whose backward, launches the direction's kernel."""
    m, e, f = plane

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(HALF).requires_grad_(direction == "backward")

    x, up, down = draw(m, e), draw(f, e), draw(e, f)
    gate = draw(f, e) if direction == "gated" else None

    def call() -> Tensor:
        return bk.feed_forward(x, up, None, down, None, weight_gate=gate, backend="triton")

    return call, (x, up, down) if direction == "backward" else ()


def _on_gpu(direction: str, size: str) -> float:
    """Seconds of a call, of the whole operation: what else is in it is the same for every candidate."""
    call, wrt = _call(PLANES[size], direction, "cuda")

    def once() -> None:
        out = call()
        if wrt:
            torch.autograd.grad(out, wrt, torch.ones_like(out))

    once()
    best = float("inf")
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        once()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1000)
    return best


def _predicted(so_far: list[predict.Launch], direction: str) -> float:
    """Seconds that the kernel alone is predicted to take on a small plane."""
    call, wrt = _call(REHEARSED, direction, "cpu")
    wanted = KERNELS.get(direction, "ffn_backward_kernel")
    launches = predict.Case(direction, 1.0, call, wrt).launches(so_far)
    return sum(predict.bounds(x).seconds for x in launches if x.report.kernel == wanted)


@contextlib.contextmanager
def _tile(key: tuple[str, str], tile: Tile) -> Iterator[None]:
    """Inside, every plane of this architecture and direction is cut into this tile."""
    before = dict(triton_tiles.TILES)
    triton_tiles.TILES.update({(*key, size): tile for size in PLANES})
    triton_tiles.choose.cache_clear()
    try:
        yield
    finally:
        triton_tiles.TILES.update(before)
        triton_tiles.choose.cache_clear()


def tune(
    architecture: str,
    seconds: Callable[[str, str], float],
    source: str,
    directions: tuple[str, ...] = DIRECTIONS,
) -> Iterator[dict[str, Any]]:
    """The table's rows of one architecture."""
    for direction in directions:
        for size, candidates in CANDIDATES.items():
            found = {}
            for tile in candidates:
                with _tile((architecture, direction), tile), contextlib.suppress(_refusals()):
                    found[tile] = seconds(direction, size)
            for tile, value in sorted(found.items(), key=lambda pair: pair[1]):
                print(f"{architecture} {direction} {size} {tuple(tile)}: {1e6 * value:.4f} us")
            best = min(found, key=lambda tile: found[tile])
            yield {
                **{"op": f"ffn_{direction}", "architecture": architecture, "dtype": "16 bit"},
                **{"size": size, "tile": list(best), "source": source},
            }


def _refusals() -> type[Exception]:
    """What a tile raises that does not fit the device."""
    from triton.runtime.errors import OutOfResources

    return OutOfResources  # type: ignore[no-any-return]


def merged(table: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The table with these rows instead of its own."""
    names = ("op", "architecture", "dtype", "size")
    new = {tuple(row[n] for n in names): row for row in rows}
    return [new.get(tuple(row[n] for n in names), row) for row in table]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="on the emulated device")
    parser.add_argument("--only", choices=DIRECTIONS, help="this direction alone")
    parser.add_argument("--write", type=Path, help="the new table; without it nothing is written")
    arguments = parser.parse_args()
    ways = (arguments.only,) if arguments.only else DIRECTIONS
    if arguments.rehearse:
        with predict.counting() as so_far:
            rows = list(tune("sm_90", lambda way, size: _predicted(so_far, way), "predicted", ways))
    elif torch.cuda.is_available():
        source = f"measured on {torch.cuda.get_device_name()}"
        rows = list(tune(triton_launch.architecture(torch.device("cuda")), _on_gpu, source, ways))
    else:
        sys.exit("no CUDA device: --rehearse goes the same way on the emulated one")
    table = merged(json.loads(triton_tiles.TABLE.read_text()), rows)
    if arguments.write:
        lines = ",\n".join(f" {json.dumps(row)}" for row in table)
        arguments.write.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
