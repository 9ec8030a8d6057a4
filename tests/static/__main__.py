"""The static gate: what the GPU compilers make of every shipped configuration, against tests/static/table.tsv.

    python -m tests.static             compile what changed since the table was made, or in it, and compare
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
    """Of configurations that the table has as they are: the table's row."""
    from tests.static import triton_kernels

    changed = []
    for key, configuration in triton_kernels.configurations().items():
        before = known.get(key)
        if not wanted.search(key[0]):
            continue
        if before is not None and before.holds(configuration.digest(key[1])):
            yield before, []
        else:
            changed.append(key)
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
        if before is not None and before.holds(digest):
            yield before, []
        else:
            changed[key] = digest, threads, source
    places = sorted({(source, arch) for (_, arch), (*_, source) in changed.items()})
    found = {place: cuda_kernels.compiled(*place) for place in places}
    for (kernel, arch), (digest, threads, source) in changed.items():
        yield cuda_kernels.row(kernel, arch, digest, threads, found[source, arch][kernel])


def compilers() -> dict[str, str]:
    """The version here of what compiles each kind of kernels."""
    found = {}
    if importlib.util.find_spec("triton"):
        import triton

        found["triton"] = triton.__version__
    if build.why_no_cuda() is None:
        found["cuda"] = cuda_kernels.compiler().split()[1]
    return found


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
    try:
        before = row.load()
    except row.TableError as error:
        print(error)
        return 2
    wanted = re.compile(chosen.only)
    made = gather({} if chosen.all else before, wanted)
    kept = {r.key for r, _ in made}
    wrong = [f"{r.kernel} {r.arch}: {fault}" for r, faults in made for fault in faults]
    compiled = sum(before.get(r.key) is not r for r, _ in made)
    here, of_table = compilers(), row.made_with()
    differ = {}
    for now, _ in made:
        old = before.get(now.key)
        if changes := old.differences(now) if old else ["not in the table"]:
            differ[now.key] = ", ".join(changes)
    gone = [k for k in before if not chosen.only and kind(k) in here and k not in kept]
    differ |= dict.fromkeys(gone, "only in the table")
    print("\n".join([*wrong, *(f"{' '.join(key)}: {text}" for key, text in differ.items())]))
    summary = f"{len(made)} configurations, {compiled} compiled, {len(wrong)} faults, "
    print(f"{summary}{len(differ)} differ from the table, {time.monotonic() - start:.0f} s")
    if chosen.update:
        # What is wrong stays out, and is found wrong again.
        rest = [r for key, r in before.items() if key not in kept and key not in gone]
        row.save([*(r for r, faults in made if not faults), *rest], of_table | here)
        return int(bool(wrong))
    others = {name for name in here if before and here[name] != of_table.get(name)}
    for name in sorted(others):
        print(
            f"the {name} kernels of the table are of {of_table.get(name)}, these of {here[name]}: "
            "differences do not count"
        )
    counted = [key for key in differ if kind(key) not in others]
    if counted:
        print("if they are meant: python -m tests.static --update, and commit the table")
    return int(bool(wrong or counted))


def kind(key: tuple[str, str]) -> str:
    """ "triton" or "cuda"."""
    return key[0].split()[0]


if __name__ == "__main__":
    sys.exit(main())
