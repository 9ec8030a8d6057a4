"""One line of the table: what became of one configuration of a kernel on one architecture."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

TABLE = pathlib.Path(__file__).with_name("table.tsv")


@dataclasses.dataclass(frozen=True)
class Row:
    """registers, shared: of a thread, and bytes of a block. blocks, warps: that a multiprocessor can hold
    at once. wide_loads, wide_stores: percent of the global accesses that move 128 bits. products:
    instructions on tensor cores. digest: of all that the code depends on."""

    kernel: str
    arch: str
    registers: int
    shared: int
    blocks: int
    warps: int
    instructions: int
    wide_loads: int
    wide_stores: int
    products: int
    digest: str

    @property
    def key(self) -> tuple[str, str]:
        return self.kernel, self.arch

    def differences(self, other: Row) -> list[str]:
        """`field before -> after` of what is not the same; digests may differ."""
        return [
            f"{field.name} {mine} -> {theirs}"
            for field in dataclasses.fields(self)
            if field.name != "digest"
            and (mine := getattr(self, field.name)) != (theirs := getattr(other, field.name))
        ]


def load() -> dict[tuple[str, str], Row]:
    rows = {}
    for line in TABLE.read_text().splitlines() if TABLE.exists() else []:
        if line.startswith(("#", "kernel\t")):
            continue
        words = line.split("\t")
        fields = zip(dataclasses.fields(Row), words, strict=True)
        row = Row(**{f.name: int(w) if f.type == "int" else w for f, w in fields})
        rows[row.key] = row
    return rows


def save(rows: Iterable[Row], made_with: str) -> None:
    names = [field.name for field in dataclasses.fields(Row)]
    lines = [f"# {made_with}", "\t".join(names)]
    lines += ["\t".join(str(getattr(row, n)) for n in names) for row in sorted(rows, key=_order)]
    TABLE.write_text("\n".join(lines) + "\n")


def made_with() -> str:
    """The compilers of the table; what others make of the kernels need not equal it."""
    return TABLE.read_text().partition("\n")[0].removeprefix("# ") if TABLE.exists() else ""


def _order(row: Row) -> tuple[object, ...]:
    words = row.kernel.split()
    return [int(w) if w.isdigit() else -1 for w in words], words, row.arch
