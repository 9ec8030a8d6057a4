"""The static gate: what the GPU compilers make of every shipped configuration, against tests/static/table.tsv.

    python -m tests.static             compile what changed since the table was made, and compare
    python -m tests.static --update    and write the table
    --all compiles everything; --only REGEX looks at the kernels whose name matches

Needs no GPU. Whatever the table says, code must not spill, use no stack, and contain what is promised
(128-bit accesses, tensor core products). Exit status 1 if something is wrong or differs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator

from tests.emulator import build
from tests.static import cuda_kernels, row
from tests.static.row import Row

Made = tuple[Row, list[str]]


def triton_rows(known: dict[tuple[str, str], Row], wanted: re.Pattern[str]) -> Iterator[Made]:
    """Of configurations whose digest the table has: the table's row."""
    from tests.static import triton_kernels

    changed = []
    for name, configuration in triton_kernels.configurations().items():
        for arch in triton_kernels.TARGETS if wanted.search(name) else ():
            before = known.get((name, arch))
            if before is not None and before.digest == configuration.digest(arch):
                yield before, []
            else:
                changed.append((name, arch))
    if not changed:
        return
    jobs = int(os.environ.get("MAX_JOBS", "2"))
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(triton_kernels.compiled, *zip(*changed, strict=True), chunksize=8)


def cuda_rows(known: dict[tuple[str, str], Row], wanted: re.Pattern[str]) -> Iterator[Made]:
    changed = {}
    for key, (digest, threads, source) in cuda_kernels.digests().items():
        if not wanted.search(key[0]):
            continue
        before = known.get(key)
        if before is not None and before.digest == digest:
            yield before, []
        else:
            changed[key] = digest, threads, source
    places = sorted({(source, arch) for (_, arch), (*_, source) in changed.items()})
    found = {place: cuda_kernels.compiled(*place) for place in places}
    for (kernel, arch), (digest, threads, source) in changed.items():
        yield cuda_kernels.row(kernel, arch, digest, threads, found[source, arch][kernel])


def compilers() -> str:
    names = []
    if importlib.util.find_spec("triton"):
        import triton

        names.append(f"Triton {triton.__version__}")
    if build.why_no_cuda() is None:
        names.append(cuda_kernels.compiler())
    return ", ".join(names)


def gather(known: dict[tuple[str, str], Row], wanted: re.Pattern[str]) -> list[Made]:
    """The rows of what can be compiled here; says what cannot."""
    made: list[Made] = []
    if importlib.util.find_spec("triton"):
        made += triton_rows(known, wanted)
    else:
        print("Triton kernels left out: triton is not installed")
    if reason := build.why_no_cuda():
        print(f"CUDA kernels left out: {reason}")
    else:
        made += cuda_rows(known, wanted)
    return made


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.static", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--update", action="store_true", help="write the table")
    parser.add_argument("--all", action="store_true", help="compile what did not change, too")
    parser.add_argument("--only", default="", metavar="REGEX", help="kernels to look at")
    return parser.parse_args()


def main() -> int:
    chosen, start = arguments(), time.monotonic()
    wanted, before = re.compile(chosen.only), row.load()
    made = gather({} if chosen.all else before, wanted)
    kept = {r.key for r, _ in made}
    wrong = [f"{r.kernel} {r.arch}: {fault}" for r, faults in made for fault in faults]
    compiled = sum(before.get(r.key) is not r for r, _ in made)
    differ = []
    for now, _ in made:
        old = before.get(now.key)
        changes = old.differences(now) if old else ["not in the table"]
        differ += [f"{now.kernel} {now.arch}: {', '.join(changes)}"] if changes else []
    full = not chosen.only and len({r.kernel.split()[0] for r, _ in made}) == 2
    gone = [key for key in before if full and key not in kept]
    differ += [f"{' '.join(key)}: only in the table" for key in gone]
    print("\n".join([*wrong, *differ]))
    summary = f"{len(made)} configurations, {compiled} compiled, {len(wrong)} faults, "
    print(f"{summary}{len(differ)} differ from the table, {time.monotonic() - start:.0f} s")
    if chosen.update:
        rest = [r for key, r in before.items() if key not in kept and key not in gone]
        row.save([*(r for r, _ in made), *rest], compilers())
        return int(bool(wrong))
    if differ and compilers() != row.made_with():
        print(
            f"the table is of {row.made_with()}, these are {compilers()}: differences do not count"
        )
        return int(bool(wrong))
    if differ:
        print("if they are meant: python -m tests.static --update, and commit the table")
    return int(bool(wrong or differ))


if __name__ == "__main__":
    sys.exit(main())
