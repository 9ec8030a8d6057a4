"""Triton's interpreter without what makes it ten times slower than it has to be.

Every call of a function inside a kernel replaces all of triton.language once more, for which it looks at each of its
members. The launch has done so already; only the module inside it, triton.language.core, is left to the first call.
"""

from __future__ import annotations

from triton.language import core
from triton.runtime import interpreter


def install() -> None:
    """Until the process ends."""
    patched: list[bool] = []

    def call(self, *args, **kwargs):
        if not patched and any(value is core for value in self.fn.__globals__.values()):
            interpreter._patch_lang(self.fn)
            patched.append(True)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call
