"""Barriers, waits and fences that keep nothing apart, found in the PTX itself.

Compilers put some where an analysis finer than theirs needs none. What the emulator does not miss is therefore
looked at once more: `reason` names the rule by which it can go, or says that there is none. Each rule
holds for all data, as the flow of control and the registers show; which places of shared memory meet is for the
emulator to see, whose clocks find two accesses that nothing orders whichever came first.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator

NOTHING_READ = "behind it are stores and copies alone, to places that nobody has touched since the barrier before"
NOTHING_SUMMED = "the next wait comes before anybody touches the sums, and waits for all products"
NOTHING_PENDING = "all products before it have been waited for"
NOTHING_HANDED_OVER = (
    "what is stored between the fence before it and itself, ordinary loads alone read"
)
NOTHING_CHANGED = "its registers have not changed since the fence before it"

_BARRIER = re.compile(r"(bar|barrier)\.(sync|cta)")
_READ = re.compile(
    r"ld\.shared|ldmatrix|wgmma\.mma|(atom|red)\.shared|mbarrier|bulk|^(ld|atom|red)\.\w*b"
)
_REGISTER = re.compile(r"%[a-z]+\d+")


class Flow:
    """A kernel's instructions by their lines of the PTX, and which come before and behind which."""

    def __init__(self, ptx: str, kernel: str) -> None:
        begin = ptx.index(kernel + "(")
        end = ptx.find(".entry", begin)
        first = ptx.count("\n", 0, begin)
        body = ptx[:end].splitlines()[first:] if end >= 0 else ptx.splitlines()[first:]
        self.text: dict[int, str] = {}
        waiting: list[str] = []
        labels: dict[str, int] = {}
        for number, line in enumerate(body, first + 1):
            text = line.split("//")[0].strip()
            if found := re.match(r"(\$\w+):", text):
                waiting.append(found[1])
            elif text and not text.startswith((".", "{", "}", "(", ")", kernel)):
                self.text[number] = text
                labels |= dict.fromkeys(waiting, number)
                waiting = []
        self.behind: dict[int, list[int]] = {}
        self.before: dict[int, list[int]] = {number: [] for number in self.text}
        order = list(self.text)
        for number, after in zip(order, [*order[1:], 0], strict=True):
            text = self.text[number]
            jump = re.search(r"\bbra(?:\.uni)?\s+(\$\w+)", text)
            ends = not text.startswith("@") and (jump or re.match(r"(ret|exit)\b", text))
            self.behind[number] = [labels[jump[1]]] if jump else []
            self.behind[number] += [after] if after and not ends else []
        for number, others in self.behind.items():
            for other in others:
                self.before[other].append(number)

    def until(
        self, line: int, stop: re.Pattern[str] | None, forward: bool
    ) -> Iterator[tuple[int, str]]:
        """(line, text) of what is reached from a line before something that matches, on every path."""
        step = self.behind if forward else self.before
        seen: set[int] = set()
        todo = list(step[line])
        while todo:
            number = todo.pop()
            text = self.text[number]
            if number in seen or (stop and stop.search(text)):
                continue
            seen.add(number)
            yield number, text
            todo += step[number]

    def rounds(self, line: int, executed: dict[int, int]) -> float:
        """How often, at least, a line is run each time its loop is entered; infinite outside of loops."""
        ways = [{n for n, _ in self.until(line, None, forward)} for forward in (True, False)]
        loop = ways[0] & ways[1]
        entries = {n for inside in loop for n in self.before[inside]} - loop
        return executed[line] / sum(executed.get(n, 0) for n in entries) if loop else math.inf


flow = functools.lru_cache(maxsize=4)(Flow)


def reason(ptx: str, kernel: str, line: int) -> str | None:
    """Why an instruction at a line keeps nothing apart that the emulator has not seen together, or None."""
    found = flow(ptx, kernel)
    text = found.text[line]
    if _BARRIER.search(text):
        reads = any(_READ.search(t) for _, t in found.until(line, _BARRIER, forward=True))
        return None if reads else NOTHING_READ
    if "wgmma.wait_group" in text:
        if not _products_are_pending(found, line):
            return NOTHING_PENDING
        return None if _sums_are_touched(found, line) else NOTHING_SUMMED
    if "wgmma.fence" in text:
        return None if _registers_change(found, line) else NOTHING_CHANGED
    if "fence.proxy" in text:
        return None if _is_first(found, line) else NOTHING_HANDED_OVER
    return None


def _is_first(found: Flow, line: int) -> bool:
    """Whether a way leads from the kernel's beginning to a fence with no other one on it."""
    start = next(iter(found.text))
    return start in {n for n, _ in found.until(line, re.compile(r"fence\.proxy"), forward=False)}


def _products_are_pending(found: Flow, line: int) -> bool:
    """Whether a way leads to a wait from a product, with no wait for all products on it."""
    wait = re.compile(r"wgmma\.wait_group\S* +0;")
    return any("wgmma.mma" in text for _, text in found.until(line, wait, forward=False))


def _sums_are_touched(found: Flow, line: int) -> bool:
    """Whether anything but wgmma reads or writes, before the next wait, what the products before this one add to."""
    wait = re.compile(r"wgmma\.wait_group\S* +0;")
    sums: set[str] = set()
    for _, text in found.until(line, re.compile(r"wgmma\.wait_group"), forward=False):
        sums |= _sums(text)
    behind = list(found.until(line, wait, forward=True))
    ends = any(re.match(r"(ret|exit)\b", text) for _, text in behind)
    others = (t for _, t in behind if "wgmma" not in t)
    return ends or not sums or any(sums & set(_REGISTER.findall(t)) for t in others)


def _sums(text: str) -> set[str]:
    return set(_REGISTER.findall(text.split("}")[0])) if "wgmma.mma" in text else set()


def _registers_change(found: Flow, line: int) -> bool:
    """Whether anything but wgmma writes a register of the products behind a fence, since the fence before."""
    fence = re.compile(r"wgmma\.fence")
    used: set[str] = set()
    for _, text in found.until(line, re.compile(r"wgmma\.(fence|commit)"), forward=True):
        if "wgmma.mma" in text:
            used |= {r for part in re.findall(r"\{(.*?)\}", text) for r in _REGISTER.findall(part)}
    for _, text in found.until(line, fence, forward=False):
        if "wgmma" in text:
            continue
        words = re.sub(r"^@\S+\s+", "", text).split(None, 1)
        target = words[1].split("[")[0] if len(words) > 1 else ""
        target = target.split("}")[0] if target.startswith("{") else target.split(",")[0]
        if used & set(_REGISTER.findall(target)):
            return True
    return False
