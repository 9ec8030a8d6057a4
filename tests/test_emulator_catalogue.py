"""The stored programs of one thread, of memory and of a warp against formulas of the PTX manual, so that what
is stored for a GPU to confirm has two sources."""

import math
import operator
from fractions import Fraction

import numpy as np
import pytest

from tests.conformance.__main__ import canonical
from tests.conformance.cases import KINDS, catalogue
from tests.emulator import build
from tests.test_emulator_tiles import run

pytestmark = pytest.mark.skipif(
    build.why_no_core() is not None, reason=f"emulated: {build.why_no_core()}"
)
# Digits, least exponent, largest number of each kind of float.
FORMATS = {
    "f16": (11, -14, Fraction(65504)),
    "bf16": (8, -126, Fraction(255 * 2**120)),
    "f32": (24, -126, Fraction((2**24 - 1) * 2**104)),
    "f64": (53, -1022, Fraction((2**53 - 1) * 2**971)),
}
NEAREST = {"n": round, "z": int, "m": math.floor, "p": math.ceil}


def rounded(exact, kind, mode="n"):
    """An exact number as a Python float of a kind; to nearest even, towards zero, down or up."""
    if exact == 0:
        return 0.0
    digits, least, largest = FORMATS[kind]
    top = abs(exact).numerator.bit_length() - abs(exact).denominator.bit_length()
    top -= Fraction(2) ** top > abs(exact)
    unit = Fraction(2) ** (max(top, least) - digits + 1)
    result = NEAREST[mode](Fraction(exact) / unit) * unit
    if abs(result) <= largest:
        return float(result) or math.copysign(0.0, exact)
    outward = mode == "n" or mode == ("p" if exact > 0 else "m")
    return math.copysign(math.inf if outward else float(largest), exact)


def numbers(words, kind):
    """Python floats of an array as a case holds it; pairs one after another."""
    kind = kind.removesuffix("x2")
    if kind in ("f32", "f64"):
        return words.astype(np.float64)
    halves = words.view(np.uint16)
    if kind == "f16":
        return halves.view(np.float16).astype(np.float64)
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def words(values, kind):
    """The array that holds Python floats which are numbers of a kind."""
    stored, kind = KINDS[kind][1], kind.removesuffix("x2")
    if kind in ("f32", "f64"):
        return np.array(values, stored)
    singles = np.array(values, np.float32)
    if kind == "bf16":
        nan = np.where(np.isnan(singles), np.uint32(0x7FFF0000), singles.view(np.uint32))
        return (nan >> np.uint32(16)).astype(np.uint16).view(stored)
    return singles.astype(np.float16).view(stored)


def arithmetic(formula):
    """Of floats: exact on finite ones, then rounded once; by the rules of infinity and NaN on others."""

    def one(kind, *operands):
        if not all(map(math.isfinite, operands)):
            return formula(*operands)
        exact = formula(*map(Fraction, operands))
        return rounded(exact, kind) if exact != 0 else formula(*operands)

    return one


def smaller(a, b, sign=1):
    """The lesser of two numbers, or the greater; -0 is less than 0. A number, if one is none."""
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    first = (sign * a, sign * math.copysign(1, a)) <= (sign * b, sign * math.copysign(1, b))
    return a if first else b


def or_nan(formula):
    return lambda _, a, b: math.nan if math.isnan(a) or math.isnan(b) else formula(a, b)


HALVES = {
    "add": arithmetic(operator.add),
    "sub": arithmetic(operator.sub),
    "mul": arithmetic(operator.mul),
    "fma.rn": arithmetic(lambda a, b, c: a * b + c),
    "min": lambda _, a, b: smaller(a, b),
    "max": lambda _, a, b: smaller(a, b, -1),
    "min.NaN": or_nan(smaller),
    "max.NaN": or_nan(lambda a, b: smaller(a, b, -1)),
    "neg": lambda _, a: -a,
    "abs": lambda _, a: abs(a),
}


def half(name, arrays):
    operation, _, kind = name.rpartition(".")
    rows = zip(*(numbers(a, kind).tolist() for a in arrays), strict=True)
    return words([HALVES[operation](kind.removesuffix("x2"), *row) for row in rows], kind)


def single(name, arrays):
    """Of float32 and float64: what test_emulator_instructions.py has not."""
    operation, _, kind = name.rpartition(".")
    if operation == "copysign":
        return np.copysign(arrays[1], arrays[0])
    if operation.startswith(("min", "max")):
        flushed = operation.endswith("ftz")
        rows = zip(*(numbers(a, kind).tolist() for a in arrays), strict=True)
        if flushed:
            rows = (
                [math.copysign(0.0, x) if abs(x) < 2.0**-126 else x for x in row] for row in rows
            )
        formula = HALVES[operation.removesuffix(".ftz")]
        return words([formula(kind, *row) for row in rows], kind)
    return None


def whole(value, mode, kind):
    """A float as the integer of a kind that is next to it, or nearest to it; NaN as 0."""
    signed, bits = kind[0] == "s", int(kind[1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if not math.isfinite(value):
        return 0 if math.isnan(value) else high if value > 0 else low
    return min(max(NEAREST[mode](Fraction(value)), low), high)


def extended(word, kind):
    """The integer that the low bits of a word are."""
    bits = int(kind[1:])
    word &= (1 << bits) - 1
    return word - (1 << bits) if kind[0] == "s" and word >> bits - 1 else word


def convert(name, arrays):
    *_, to, source = name.split(".")
    options = set(name.split(".")[1:-2])
    floats, exact = source in FORMATS, to.removesuffix("x2") in FORMATS
    mode = next((o[1] for o in options if o[0] == "r" and o not in ("relu", "rna")), "n")
    if to == "tf32":
        away = arrays[0].view(np.uint32) + np.uint32(0x1000)
        return away & np.uint32(0xFFFFE000)
    given = [numbers(a, source).tolist() if floats else a.tolist() for a in arrays]
    if not exact and floats:
        made = [whole(x, mode, to) for x in given[0]]
    elif not exact:
        made = [extended(x, source) for x in given[0]]
        if "sat" in options:
            made = [whole(float(x), "n", to) for x in made]
    else:
        # Of a pair, the first operand is the upper half.
        pairs = [x for row in zip(*reversed(given), strict=True) for x in row]
        floats_of = [x if floats else Fraction(extended(x, source)) for x in pairs]
        made = [to_float(x, to.removesuffix("x2"), mode, options) for x in floats_of]
        return words(made, to)
    size = 64 if to.endswith("64") else 16 if to.endswith("16") else 32
    return np.array([x & (1 << size) - 1 for x in made], f"uint{size}")


def to_float(x, kind, mode, options):
    if options & {"rni", "rzi", "rmi", "rpi"}:
        if not math.isfinite(x):
            return x
        return math.copysign(float(NEAREST[mode](Fraction(x))), x)
    if "sat" in options:
        return 0.0 if not x > 0 else min(x, 1.0)
    if "relu" in options and x <= 0:
        return 0.0
    if x == 0 or not math.isfinite(x):
        return float(x)
    return rounded(Fraction(x), kind, mode)


ORDERED = {
    **{"eq": operator.eq, "ne": operator.ne, "lt": operator.lt},
    **{"le": operator.le, "gt": operator.gt, "ge": operator.ge},
}


def select(name, arrays):
    operation, how, *_, kind = name.split(".")
    if operation == "slct":
        return np.where(arrays[2].view("i4" if kind == "s32" else "f4") >= 0, *arrays[:2])
    a, b = (x.view("i4") if kind == "s32" else x for x in arrays)
    nan = (a != a) | (b != b)
    if how in ("num", "nan"):
        holds = nan == (how == "nan")
    else:
        holds = ORDERED[how[:2]](a, b)
        holds = holds | nan if how.endswith("u") else holds & ~nan
    return np.where(holds, np.uint32(0xFFFFFFFF), np.uint32(0))


def memory(name, arrays):
    (held,) = arrays
    if name.startswith("ld.st"):
        return held
    if name.startswith("ld."):
        kind = name[3:]
        loaded = held.view(f"{'i' if kind[0] == 's' else 'u'}{int(kind[1:]) // 8}")[:64]
        return loaded.astype(np.int64).astype(np.uint32)
    return held[::-1]


ATOMICS = {
    "min.s32": lambda x: np.minimum(x.view("i4"), 0),
    "max.s32": lambda x: np.maximum(x.view("i4"), 0),
    "and.b32": np.zeros_like,
    "min.u32": np.zeros_like,
    # In global memory subnormal numbers count as zeros; 0 + -0 is 0.
    "add.f32": lambda x: np.where(np.abs(x) < 2.0**-126, 0, x),
    # From 0 up, unless that is the limit; from 0 down to the limit.
    "inc.u32": lambda x: x > 0,
    "dec.u32": lambda x: x,
}


def atomic(name, arrays):
    """On zeros: the new values, then the old ones."""
    (x,) = arrays
    if name.startswith("red.global of"):
        exclusive = np.bitwise_xor.reduce(x)
        return np.array([x.sum(dtype=np.uint32), exclusive, x.max()], np.uint32)
    if name.startswith("red.shared of"):
        return np.full_like(x, x.sum(dtype=np.uint32))
    if name == "red.shared.add.f32":
        with np.errstate(over="ignore"):
            return x + x
    if name.startswith("red."):
        return None
    new = ATOMICS.get(name.removeprefix("atom.global."), lambda x: x)(x)
    return np.concatenate([np.asarray(new).astype(x.dtype), np.zeros_like(x)])


def shuffled(name, lane):
    """The lane whose value a lane gets."""
    mode, by, clamp = name.split(".")[2], *map(int, name.split(", ")[1:3])
    low, segment = clamp & 31, clamp >> 8
    first, last = lane & segment, lane & segment | low & ~segment
    other = {"bfly": lane ^ by, "up": lane - by, "down": lane + by, "idx": first | by & ~segment}[
        mode
    ]
    return other if (other >= last if mode == "up" else other <= last) else lane


REDUCTIONS = {"add": sum, "min": min, "max": max}
BITWISE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def warp(name, arrays):
    """Of each warp by itself: 32 words."""
    if name.startswith("bra"):
        return None
    results = []
    for held in arrays[0].reshape(2, 32):
        on = held.view("i4") > 0
        if name.startswith("shfl"):
            results += [held[shuffled(name, lane)] for lane in range(32)]
        elif name.startswith("match"):
            results += [sum(1 << i for i in range(32) if held[i] == mine) for mine in held]
        elif name.startswith("redux"):
            what, kind = name.partition(",")[0].split(".")[2:]
            if what in BITWISE:
                results += [BITWISE[what].reduce(held)] * 32
            else:
                typed = held.view("i4") if kind == "s32" else held
                results += [REDUCTIONS[what](typed.tolist()) & 0xFFFFFFFF] * 32
        else:
            votes = {"all": on.all(), "any": on.any(), "uni": on.all() or not on.any()}
            votes["ballot"] = sum(1 << i for i in range(32) if on[i])
            results += [int(votes[name.split(".")[2]])] * 32
    return np.array(results, np.uint32)


FAMILIES = {
    **{"half": half, "float": single, "convert": convert, "select": select},
    **{"memory": memory, "atomic": atomic, "warp": warp},
}
# Which have formulas of their own elsewhere: test_emulator_instructions.py, _tiles, _bulk, _barriers, _wgmma.
ELSEWHERE = {"integer", "bits", "matrix", "async", "bulk", "wgmma"}


def test_every_family_has_formulas():
    assert {case.family for case in catalogue().values()} == set(FAMILIES) | ELSEWHERE


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_programs_do_what_the_manual_says(family):
    compared = 0
    for name, case in catalogue().items():
        if case.family != family or case.bound:
            continue
        before, got = run(name)
        expected = FAMILIES[family](name, before[: case.results[0]])
        if expected is None:
            continue
        compared += 1
        (kind,) = case.kinds
        assert expected.dtype == got.dtype, name
        np.testing.assert_array_equal(
            canonical(got, kind), canonical(expected, kind), err_msg=name, strict=True
        )
        if kind in ("f32", "f64"):
            assert (np.signbit(got) == np.signbit(expected))[~np.isnan(got)].all(), name
    assert compared >= {"float": 9, "memory": 10}.get(family, 16)
