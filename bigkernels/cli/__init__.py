"""The ``bigkernels`` command. Each subcommand imports what it needs only when it runs."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable
from typing import Any, cast

from bigkernels import __version__

COMMANDS = {
    "doctor": "what was built, which backend serves each operation here, and why not the others",
    "verify": "check an accelerated model against the stock one, in float64",
    "bench": "time every kernel and model against every peer that is installed here",
    "warmup": "compile the GPU kernels that an encoder of given sizes calls, before it calls them",
    "finetune": "fine-tune a classifier, stock or accelerated (run_glue's flags)",
    "demo": "the real MiniLM on real sentences: accelerate, verify, measure, fine-tune",
}


class CommandError(RuntimeError):
    """Something the user can mend; the message is one line and says how."""


def main(argv: list[str] | None = None) -> int:
    """Runs ``bigkernels <command> ...``; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["finetune"]:  # its flags are transformers' own: read by its own parser
        return _guarded("finetune", lambda module: int(module.main(argv[1:])))
    parser, commands = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:  # told by the command that does not know them, with its own usage
        commands[arguments.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return _guarded(arguments.command, lambda module: int(module.run(arguments)))


def print_json(value: dict[str, Any]) -> None:
    """Writes one JSON object to stdout; JSON has no NaN and no infinity, so these are null."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def first_line(error: BaseException) -> str:
    """What an exception says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _guarded(command: str, call: Callable[[Any], int]) -> int:
    try:
        return call(importlib.import_module(f"bigkernels.cli.{command}"))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "bigkernels":
            raise
        missing = cast(str, error.name).partition(".")[0]
        print(
            f'bigkernels {command}: needs {missing}: pip install "bigkernels[hf]"', file=sys.stderr
        )
    except CommandError as error:
        print(f"bigkernels {command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"bigkernels {command}: interrupted", file=sys.stderr)
        return 130
    return 1


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of everything but ``finetune``, and those of the commands."""
    parser = argparse.ArgumentParser(prog="bigkernels", description="Fused Transformer kernels.")
    parser.add_argument("--version", action="version", version=f"bigkernels {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands = {name: subparsers.add_parser(name, help=text) for name, text in COMMANDS.items()}
    for name, command in commands.items():
        command.description = COMMANDS[name]
        command.add_argument("--json", action="store_true", help="print one JSON object")
    verify = commands["verify"]
    verify.add_argument("model_path", help="folder or hub name of a transformers model")
    verify.add_argument("--text", action="append", help="a sentence to run (repeatable)")
    _bench_flags(commands["bench"])
    _warmup_flags(commands["warmup"])
    for command in (commands["bench"], commands["demo"]):
        command.add_argument("--threads", type=_positive, help="torch threads (default: torch's)")
    return parser, commands


def _warmup_flags(warmup: argparse.ArgumentParser) -> None:
    sizes = {"width": 768, "heads": 12, "vocabulary": 30522, "positions": 512}
    for name, default in sizes.items():
        warmup.add_argument(f"--{name}", type=_positive, default=default, help=f"({default})")
    warmup.add_argument("--hidden", type=_positive, help="of the feed-forward (four widths)")
    activations = ("gelu", "gelu_tanh", "relu", "silu")
    warmup.add_argument("--activation", choices=activations, default="gelu", help="its (gelu)")
    dtypes = ("bfloat16", "float16", "float32")
    warmup.add_argument("--dtype", choices=dtypes, default=dtypes[0], help=f"({dtypes[0]})")
    warmup.add_argument(
        "--training", action="store_true", help="gradients, dropout and the loss too"
    )
    warmup.add_argument("--dropout", type=float, default=0.1, help="while training (0.1)")


def _bench_flags(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--quick", action="store_true", help="three minutes instead of forty")
    bench.add_argument("--cases", metavar="REGEX", help="only cases whose id matches")
    bench.add_argument("--peers", metavar="NAME,NAME", help="only these peers")
    bench.add_argument("--rounds", type=_positive, help="undisturbed samples of each peer")
    text = "one thread, CPU time instead of wall time: for a machine that is never quiet"
    bench.add_argument("--cpu-time", action="store_true", help=text)
    bench.add_argument("--list", action="store_true", help="name cases and peers and stop")
    bench.add_argument("--out", metavar="FOLDER", default="bench-results", help="(bench-results)")
    two = ("BEFORE", "AFTER")
    text = "two JSON files: status 1 if ours became slower beyond the noise of both"
    bench.add_argument("--compare", nargs=2, metavar=two, help=text)
    text = "accelerated against stock over batch and length: status 1 if a cell is below stock"
    bench.add_argument("--grid", action="store_true", help=text)
    text = "plots and page of a JSON file beside it, its table into ./README.md"
    bench.add_argument("--readme", metavar="FILE", help=text)
    text = "what JSON files say of the targets, as a table; the last one counts"
    bench.add_argument("--targets", nargs="+", metavar="FILE", help=text)
    bench.add_argument("--mine", metavar="MODEL_PATH", help="your model, stock and accelerated")
    bench.add_argument(
        "--batch-size", type=_positive, default=32, help="sentences a batch (--mine)"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
