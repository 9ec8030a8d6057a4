"""The GPU drawers of all rooms and their kernels, as the sources have them: what the gates must not miss."""

import ast
import importlib
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = sorted((ROOT / "bigkernels" / "ops").glob("*/contract.py"))
DRAWERS = [
    (folder.parent.name, backend)
    for folder in FOLDERS
    for backend in importlib.import_module(f"bigkernels.ops.{folder.parent.name}.contract").BACKENDS
    if backend in ("cuda", "triton")
]
ROOMS = list(dict.fromkeys(room for room, _ in DRAWERS))


def kernels(room: str, backend: str) -> set[str]:
    """Names of what a drawer launches."""
    if backend == "cuda":
        sources = (path.read_text() for path in (ROOT / "csrc" / room).glob("*.cu"))
        return {
            n for text in sources for n in re.findall(r"__global__[^{;]*?(\w+_kernel\w*)\(", text)
        }
    files = (ROOT / "bigkernels" / "ops" / room).glob("triton*.py")
    functions = (n for file in files for n in ast.walk(ast.parse(file.read_text())))
    return {
        f.name
        for f in functions
        if isinstance(f, ast.FunctionDef) and f.name.endswith("_kernel") and f.decorator_list
    }
