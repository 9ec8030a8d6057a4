"""One line of the table: what became of one configuration of a kernel on one architecture."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable

TABLE = pathlib.Path(__file__).with_name("table.tsv")


@dataclasses.dataclass(frozen=True)
class Row:
    """registers, shared: of a thread, and bytes of a block. blocks, warps: that a multiprocessor can hold
    at once. wide_loads, wide_stores: percent of the global accesses that move 128 bits. products:
    instructions on tensor cores. seal: of these and of all that the code depends on."""

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
    seal: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.kernel, self.arch

    def sealed(self, code: str) -> Row:
        """The row with its seal; code: digest of all that the code depends on."""
        figures = [str(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "seal"]
        seal = hashlib.sha256("\t".join([*figures, code]).encode()).hexdigest()[:12]
        return dataclasses.replace(self, seal=seal)

    def holds(self, code: str) -> bool:
        """Whether it is of that code, and as it was written: not so after an edit of a figure by hand."""
        return self == self.sealed(code)

    def differences(self, other: Row) -> list[str]:
        """`field before -> after` of what is not the same; seals may differ."""
        return [
            f"{field.name} {mine} -> {theirs}"
            for field in dataclasses.fields(self)
            if field.name != "seal"
            and (mine := getattr(self, field.name)) != (theirs := getattr(other, field.name))
        ]


class TableError(ValueError):
    """A table that cannot be read; the message names its line."""


def load() -> dict[tuple[str, str], Row]:
    """Raises TableError."""
    rows: dict[tuple[str, str], Row] = {}
    for number, line in enumerate(TABLE.read_text().splitlines() if TABLE.exists() else [], 1):
        if line.startswith(("#", "kernel\t")):
            continue
        words, fields = line.split("\t"), dataclasses.fields(Row)
        place = f"{TABLE.name}, line {number}"
        if len(words) != len(fields):
            raise TableError(f"{place}: {len(words)} fields, not {len(fields)}")
        try:
            values = [int(w) if f.type == "int" else w for f, w in zip(fields, words, strict=True)]
        except ValueError as error:
            raise TableError(f"{place}: {error}") from None
        row = Row(*values)
        if row.key in rows:
            raise TableError(f"{place}: {' '.join(row.key)} is there twice")
        rows[row.key] = row
    return rows


def save(rows: Iterable[Row], compilers: dict[str, str]) -> None:
    names = [field.name for field in dataclasses.fields(Row)]
    titles = {"triton": "Triton", "cuda": "nvcc"}
    head = ", ".join(f"{titles[kind]} {version}" for kind, version in compilers.items())
    lines = [f"# {head}", "\t".join(names)]
    lines += ["\t".join(str(getattr(row, n)) for n in names) for row in sorted(rows, key=_order)]
    TABLE.write_text("\n".join(lines) + "\n")


def made_with() -> dict[str, str]:
    """{"triton": version, "cuda": version} of the table; what others make of the kernels need not equal it."""
    first = TABLE.read_text().partition("\n")[0] if TABLE.exists() else ""
    names = {"Triton": "triton", "nvcc": "cuda"}
    found = (part.split() for part in first.removeprefix("# ").split(", "))
    return {names[words[0]]: words[1] for words in found if len(words) == 2 and words[0] in names}


def _order(row: Row) -> tuple[object, ...]:
    words = row.kernel.split()
    return [int(w) if w.isdigit() else -1 for w in words], words, row.arch
