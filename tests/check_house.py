"""The size rules of docs/design.md, and its limit on environment variables; exit status 1 if one is broken.

Lengths count every line from the first of the head (decorators, template line) to the closing one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FILE, FUNCTION, KERNEL = 400, 60, 150
VARIABLES = {"BACKEND", "ISA", "LOG", "CUDA", "CUDA_ARCHS"}
CPP = {".h", ".cpp", ".cu", ".cuh"}
CONTAINER = re.compile(r'\b(namespace|struct|class|union|enum)\b[^()]*$|extern\s*""\s*$|^\s*$')


def python_functions(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """(first line, lines, name, whether it is a kernel) of each function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            decorators = [ast.unparse(d) for d in node.decorator_list]
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            assert node.end_lineno is not None
            yield first, node.end_lineno - first + 1, node.name, any("jit" in d for d in decorators)


def blank(text: str) -> str:
    """C++ without comments, literals' contents and preprocessor lines; line numbers stay."""
    pattern = r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'|^[ \t]*#(?:\\\n|[^\n])*'

    def spaces(match: re.Match[str]) -> str:
        lines = "\n" * match.group(0).count("\n")
        return '""' + lines if match.group(0).startswith(('"', "R")) else lines or " "

    return re.sub(pattern, spaces, text, flags=re.S | re.M)


def cpp_functions(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """As python_functions: a body at namespace or class level whose head has parameters."""
    text = blank(text)
    start, containers, depth, function = 0, 0, 0, None
    for match in re.finditer(r"[{};]", text):
        kind, at = match.group(0), match.start()
        if kind == "{":
            head = text[start:at]
            if depth == containers and CONTAINER.search(head):
                containers += 1
            elif depth == containers and "(" in head and not re.search(r"=\s*$", head):
                function = start + len(head) - len(head.lstrip()), head
            depth += 1
        elif kind == "}":
            depth -= 1
            if function and depth == containers:
                first, head = text.count("\n", 0, function[0]) + 1, function[1]
                name = re.search(
                    r"([\w:~]+|operator\S+)\s*\(", re.sub(r"__\w+__\s*\([^)]*\)", "", head)
                )
                called = name.group(1) if name else "?"
                lines = text.count("\n", 0, at) + 2 - first
                yield first, lines, called, "__global__" in head or "_kernel" in called
                function = None
            containers = min(containers, depth)
        start = match.end()


def complaints(path: Path) -> Iterator[str]:
    text = path.read_text()
    if (count := text.count("\n")) > FILE:
        yield f"{path}: {count} lines, at most {FILE}"
    functions = python_functions(text) if path.suffix == ".py" else cpp_functions(text)
    for first, lines, name, kernel in functions:
        if lines > (limit := KERNEL if kernel else FUNCTION):
            yield f"{path}:{first}: {name} has {lines} lines, at most {limit}"
    read = re.findall(r"""(?:getenv|environ(?:\.get)?)\W{1,2}["']BIGKERNELS_(\w+)["']""", text)
    for name in sorted(set(read) - VARIABLES):
        yield f"{path}: BIGKERNELS_{name} is not one of the variables of docs/design.md"


def main() -> int:
    listed = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout
    paths = [Path(p) for p in listed.splitlines() if Path(p).suffix in CPP | {".py"}]
    found = [complaint for path in paths if path.is_file() for complaint in complaints(path)]
    print("\n".join(found) or f"{len(paths)} files keep the size rules")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
