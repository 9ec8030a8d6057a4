"""What this machine could do at best, measured in the same run: bytes and products a second, and the
state its cores are in."""

from __future__ import annotations

import ctypes
import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

# A bfloat16 tile product takes 16 cycles, and 50 where a sibling hyperthread is busy.
FAST_CYCLES = 24.0
_SIZES = {"L2": 1 << 19, "L3": 1 << 23, "memory": 1 << 27}


def core_state(threads: int) -> str:
    """ "fast" if AMX products run undisturbed on every core, "slow" if on none, else "mixed"; "" where
    there is no AMX to ask. Takes 10 to 100 us."""
    best, worst, _ = _asked(threads)
    if worst == 0:
        return ""
    if worst < FAST_CYCLES:
        return "fast"
    return "slow" if best >= FAST_CYCLES else "mixed"


def _asked(threads: int) -> tuple[float, ...]:
    """Cycles of a tile product on the best and the worst core, operations a second of all; zeros
    without AMX."""
    figures = (ctypes.c_double * 3)()
    probe = _probe()
    if probe is not None:
        probe(threads, figures)
    return tuple(figures)


@functools.cache
def _probe() -> Callable[..., None] | None:
    import bigkernels

    path = Path(bigkernels.__file__).with_name("_C.so")
    try:
        probe: Any = ctypes.CDLL(str(path)).bigkernels_core_state
    except (OSError, AttributeError):
        return None
    probe.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_double)]
    probe.restype = None
    return probe  # type: ignore[no-any-return]


Roofs = dict[str, dict[str, float]]


def highest(before: Roofs, found: Roofs) -> Roofs:
    """The better of two measurements, figure by figure: a ceiling is what was reached once."""
    return {
        kind: {
            name: max(value, before.get(kind, {}).get(name, 0.0)) for name, value in kinds.items()
        }
        for kind, kinds in found.items()
    }


def measure(threads: int, seconds: float = 0.4) -> Roofs:
    """bytes: copied (each byte read and written counts twice) and read a second by where they lie;
    flops: of the library's products by dtype, and for bfloat16 what tile products and their loads
    reach without anything else. The best of many samples, `seconds` for each."""
    torch.set_num_threads(threads)
    found: dict[str, dict[str, float]] = {"copy": {}, "read": {}, "flops": {}}
    for place, size in _SIZES.items():
        source = torch.ones(size // 4)
        target = torch.empty_like(source)
        copy = functools.partial(target.copy_, source)
        found["copy"][place] = 2 * size / _best(copy, seconds)
        found["read"][place] = size / _best(source.sum, seconds)
    for dtype in (torch.float32, torch.bfloat16):
        found["flops"][str(dtype).removeprefix("torch.")] = _products(dtype, seconds)
    tiles = max(_asked(threads)[2] for _ in range(100))
    found["flops"]["bfloat16"] = max(tiles, found["flops"]["bfloat16"])
    return found


def _products(dtype: torch.dtype, seconds: float) -> float:
    rates = []
    for m, k, n in ((1024, 768, 3072), (1024, 3072, 768), (2048, 2048, 2048)):
        x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        call: Callable[[], object] = functools.partial(torch.nn.functional.linear, x, weight)
        if dtype == torch.bfloat16:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, m)
            linear = torch.ops.mkldnn._linear_pointwise
            call = functools.partial(linear, x, packed, None, "none", [], "")
        rates.append(2 * m * k * n / _best(call, seconds / 2))
    return max(rates)


def _best(call: Callable[[], object], seconds: float) -> float:
    call()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def share(case: Mapping[str, Any], seconds: float, roofs: Mapping[str, Mapping[str, float]]) -> Any:
    """(share of the roof, "memory" or "products") of a row of `seconds`.

    None if the row says neither bytes nor products, or of its dtype no product was measured. Bytes
    that fit into a cache are held against that cache's speed.
    """
    rate = roofs["flops"].get("bfloat16" if case["dtype"] == "autocast" else case["dtype"])
    if rate is None or not (case["bytes"] or case["flops"]):
        return None
    fitting = [name for name, size in _SIZES.items() if case["bytes"] <= 2 * size]
    place = fitting[0] if fitting else "memory"
    memory, products = case["bytes"] / roofs["copy"][place], case["flops"] / rate
    limit = "memory" if memory > products else "products"
    return max(memory, products) / seconds, limit
