"""Faulty programs that compute-sanitizer, or the emulator, must object to: is the checker itself awake?

    python -m tests.conformance.faults --device cuda       each under the tool of compute-sanitizer that is for it
    python -m tests.conformance.faults --device emulated   each on the emulator's stand-in driver
    python -m tests.conformance.faults --device cuda --run NAME   one program alone

Exit status 1 if a fault is not found, or if a clean program is objected to.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys

import numpy as np

from tests.conformance import driver
from tests.conformance.cases import module

FOUND = 9  # exit status of compute-sanitizer that is asked for


@dataclasses.dataclass(frozen=True)
class Fault:
    """tool: of compute-sanitizer, that finds it. body: of a kernel of 64 threads that is given 64 words,
    which nobody has written before."""

    tool: str
    body: str


_ADDRESS = "  add.u64 %d10, %d0, %d63;\n"
_SHARED = "  mov.u32 %r1, memory;\n  shl.b32 %r2, %r0, 2;\n  add.u32 %r3, %r1, %r2;\n"
_SWAP = (
    _ADDRESS
    + _SHARED
    + "  st.shared.b32 [%r3], %r0;\n  bar.sync 0;\n  xor.b32 %r4, %r2, 252;\n  add.u32 %r5, %r1, %r4;\n"
    + "  ld.shared.b32 %r6, [%r5];\n  st.global.b32 [%d10], %r6;"
)
CLEAN = _SWAP
FAULTS = {
    "read past the end": Fault("memcheck", _ADDRESS + "  ld.global.b32 %r1, [%d10+4];\n  st.global.b32 [%d10], %r1;"),
    "misaligned write": Fault("memcheck", _ADDRESS + "  st.global.v2.b32 [%d10+4], {%r0, %r0};"),
    "shared memory past its end": Fault("memcheck", _SHARED + "  st.shared.b32 [%r3+1048576], %r0;"),
    "no barrier": Fault("racecheck", _SWAP.replace("  bar.sync 0;\n", "")),
    "read of what nobody wrote": Fault(
        "initcheck", _ADDRESS + "  ld.global.b32 %r1, [%d10];\n  st.global.b32 [%d10], %r1;"
    ),
    "barrier in a branch": Fault(
        "synccheck",
        "  setp.lt.u32 %p1, %r0, 16;\n  @%p1 bra over;\n  bar.sync 0;\nover:",
    ),
}  # fmt: skip


def launch(device: driver.Driver, body: str) -> None:
    device.run(module(body, 1, 256), [np.zeros(64, np.uint32)], 64, fresh=True)


def emulated_finds(body: str) -> bool:
    try:
        launch(driver.emulated(), body)
    except driver.DriverError:
        return True
    return False


def sanitizer_finds(tool: str, name: str) -> bool:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(FOUND), sys.executable]
    command += ["-m", "tests.conformance.faults", "--device", "cuda", "--run", name]
    return subprocess.run(command, capture_output=True).returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.faults")
    parser.add_argument("--device", choices=("cuda", "emulated"), required=True)
    parser.add_argument("--run", choices=("clean", *FAULTS), help="this program alone")
    chosen = parser.parse_args()
    bodies = {"clean": CLEAN, **{name: fault.body for name, fault in FAULTS.items()}}
    if chosen.run:
        launch(driver.gpu() if chosen.device == "cuda" else driver.emulated(), bodies[chosen.run])
        return 0
    if chosen.device == "cuda" and shutil.which("compute-sanitizer") is None:
        print("left out: compute-sanitizer is not on the PATH")
        return 0
    wrong = 0
    pairs = [(fault.tool, name) for name, fault in FAULTS.items()]
    for tool, name in [*pairs, *((tool, "clean") for tool in sorted({t for t, _ in pairs}))]:
        found = (
            emulated_finds(bodies[name])
            if chosen.device == "emulated"
            else sanitizer_finds(tool, name)
        )
        good = found == (name != "clean")
        wrong += not good
        print(
            f"{'ok' if good else 'WRONG'}: {tool}: {name}: {'found' if found else 'nothing found'}"
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
