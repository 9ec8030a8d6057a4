"""Made-up records of the benchmark harness, noisy in a known way."""

import math
import random

from bigkernels.bench import cases, peers, record

ROOFS = {
    "copy": {"L2": 9e10, "L3": 4e10, "memory": 1e10},
    "read": {"L2": 9e10, "L3": 4e10, "memory": 1e10},
    "flops": {"float32": 2.5e11, "bfloat16": 1.5e12},
}
ROUNDS = 11


def made(seed=0, noise=0.03, slower=(), chosen=None):
    """A record of the chosen cases (all) with every peer that could run; slower: {case id: factor of
    the seconds of ours}."""
    draw = random.Random(seed)
    rows = []
    for case in cases.catalogue().values():
        if chosen is not None and case.id not in chosen:
            continue
        answers = [
            answer(case, peer, draw, noise, dict(slower))
            for peer in peers.PEERS
            if case.group in peer.groups and peer.build and not peer.gpu
        ]
        rows += [row | record.roof(row, ROOFS) for row in record.rows(case, answers, {})]
    return {
        "schema": record.SCHEMA,
        "mode": "full",
        "date": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "bigkernels": "0",
        "commit": "0000000",
        "threads": 2,
        "clock": "wall",
        "machine": {
            "versions": {"torch": "2.13.0"},
            "processor": {"model": "A <made-up> CPU", "amx": "permitted"},
        },
        "ceilings": ROOFS,
        "peers": [
            {"name": p.name, "missing": "it needs a GPU" if p.gpu else "", "install": p.install}
            for p in peers.PEERS
        ],
        "rows": rows,
    }


def answer(case, peer, draw, noise, slower):
    # Every peer has a speed of its own, the same in every run.
    speed = random.Random(peer.name + case.id).uniform(0.5, 3.0)
    if peer.name == peers.BASELINES[case.group]:
        speed = 1.0
    length = max(case.length, 16)
    seconds = 1e-4 * (length / 16) ** 1.5 / speed
    if peer.ours:
        seconds *= slower.get(case.id, 1.0)
    drawn = [seconds * math.exp(draw.gauss(0, noise)) for _ in range(ROUNDS)]
    facts = {"tokens": None, "fill": None}
    if case.batch:
        size, length, kind = case.batch[1:]
        fill = float(kind.removeprefix("fill_")) if kind.startswith("fill_") else 1.0
        facts = {"tokens": int(size * length * fill), "fill": fill, "dtype": peer.precision}
    return {
        "peer": peer.name,
        "samples": [[turn, value, "fast", True] for turn, value in enumerate(drawn)],
        "calls": 1,
        "peak_bytes": 1000 * length,
        "activation_bytes": None,
        "process_bytes": 10**8,
        "first_result_seconds": 0.1,
        **facts,
    }
