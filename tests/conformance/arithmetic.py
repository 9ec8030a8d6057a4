"""Cases of one thread alone: integers, bits, floats, halves, conversions, comparisons."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from tests.conformance.cases import Case, operation

HALVES = ("f16", "bf16", "f16x2", "bf16x2")


def _divisors(arrays: list[np.ndarray]) -> None:
    """Small positive ones: nothing is promised of 0, and of the least integer over -1."""
    arrays[1][:] = (arrays[1] & arrays[1].dtype.type(0x7F)) | arrays[1].dtype.type(1)


def _counts(places: tuple[int, ...], limit: int, arrays: list[np.ndarray]) -> None:
    for place in places:
        arrays[place][:] %= np.uint32(limit)


def integers() -> Iterator[Case]:
    make = functools.partial(operation, family="integer")
    for bits in ("16", "32", "64"):
        for sign in "su":
            kind = f"{sign}{bits}"
            for name in ("add", "sub", "mul.lo", "mul.hi", "min", "max"):
                yield make(f"{name}.{kind}", f"{bits} {bits} {bits}")
            for name in ("div", "rem"):
                yield make(f"{name}.{kind}", f"{bits} {bits} {bits}", clean=_divisors)
            yield make(f"mad.lo.{kind}", f"{bits} {bits} {bits} {bits}")
            if bits != "64":
                wide = str(2 * int(bits))
                yield make(f"mul.wide.{kind}", f"{wide} {bits} {bits}")
                yield make(f"mad.wide.{kind}", f"{wide} {bits} {bits} {wide}")
        yield make(f"abs.s{bits}", f"{bits} {bits}")
        yield make(f"neg.s{bits}", f"{bits} {bits}")


def bits() -> Iterator[Case]:
    make = functools.partial(operation, family="bits")
    for size in ("16", "32", "64"):
        for name in ("and", "or", "xor"):
            yield make(f"{name}.b{size}", f"{size} {size} {size}")
        for name in ("not", "cnot"):
            yield make(f"{name}.b{size}", f"{size} {size}")
        counts = functools.partial(_counts, (1,), 70)
        for name in (f"shl.b{size}", f"shr.u{size}", f"shr.s{size}"):
            yield make(name, f"{size} {size} 32", clean=counts)
    for size in ("32", "64"):
        for name in ("popc.b", "clz.b", "bfind.u", "bfind.s"):
            yield make(f"{name}{size}", f"32 {size}")
        yield make(f"brev.b{size}", f"{size} {size}")
        yield make(
            f"bfi.b{size}",
            f"{size} {size} {size} 32 32",
            clean=functools.partial(_counts, (2, 3), 40),
        )
        for sign in "su":
            clean = functools.partial(_counts, (1, 2), 40)
            yield make(f"bfe.{sign}{size}", f"{size} {size} 32 32", clean=clean)
    for direction in "lr":
        for mode in ("wrap", "clamp"):
            clean = functools.partial(_counts, (2,), 70)
            yield make(f"shf.{direction}.{mode}.b32", "32 32 32 32", clean=clean)
    yield make("prmt.b32", "32 32 32 32")
    for table in (0x00, 0x96, 0xE8, 0xCA, 0x1B):
        yield make("lop3.b32", "32 32 32 32", tail=f", {table}")


def floats() -> Iterator[Case]:
    make = functools.partial(operation, family="float")
    for kind in ("f32", "f64"):
        for name in ("add", "sub", "mul"):
            yield make(f"{name}.rn.{kind}", f"{kind} {kind} {kind}")
        yield make(f"fma.rn.{kind}", f"{kind} {kind} {kind} {kind}")
        yield make(f"div.rn.{kind}", f"{kind} {kind} {kind}")
        for name in ("rcp.rn", "sqrt.rn", "abs", "neg"):
            yield make(f"{name}.{kind}", f"{kind} {kind}")
        for name in ("min", "max"):
            yield make(f"{name}.{kind}", f"{kind} {kind} {kind}")
        yield make(f"copysign.{kind}", f"{kind} {kind} {kind}")
    for name in ("add.ftz", "mul.ftz", "min.ftz", "max.NaN", "min.NaN"):
        yield make(f"{name}.f32", "f32 f32 f32")
    for name in ("add.sat", "mul.sat"):
        yield make(f"{name}.f32", "f32 f32 f32", clean=_no_zeros)
    yield make("fma.rn.ftz.f32", "f32 f32 f32 f32")
    # Approximate: the instruction set gives the error.
    for name, bound in (("ex2", 2**-22), ("rcp", 2**-23), ("sqrt", 2**-22), ("rsqrt", 2**-22)):
        yield make(f"{name}.approx.ftz.f32", "f32 f32", clean=_moderate, bound=2 * bound)
    yield make("tanh.approx.f32", "f32 f32", clean=_moderate, bound=2**-10)
    yield make("lg2.approx.ftz.f32", "f32 f32", clean=_moderate, bound=2**-20)
    yield make("div.full.f32", "f32 f32 f32", clean=_moderate, bound=2**-21)


def _moderate(arrays: list[np.ndarray]) -> None:
    for index, array in enumerate(arrays):
        array[:] = np.linspace(1.1 + index, 7.3, array.size, dtype=np.float32)


def halves() -> Iterator[Case]:
    make = functools.partial(operation, family="half")
    for kind in HALVES:
        # Sums and products of bfloat16 alone came with sm_90; before, fma does them.
        target = "sm_90" if kind.startswith("bf16") else "sm_80"
        for name in ("add", "sub", "mul"):
            yield make(f"{name}.{kind}", f"{kind} {kind} {kind}", target=target)
        yield make(f"fma.rn.{kind}", f"{kind} {kind} {kind} {kind}")
        for name in ("min", "max", "min.NaN", "max.NaN"):
            yield make(f"{name}.{kind}", f"{kind} {kind} {kind}")
        for name in ("neg", "abs"):
            yield make(f"{name}.{kind}", f"{kind} {kind}", clean=_numbers)


def _numbers(arrays: list[np.ndarray]) -> None:
    """No NaN: whether its sign changes is not promised."""
    for array in arrays:
        halves = array.view(np.uint16)
        halves[(halves & 0x7C00) == 0x7C00] = 0x1234


def conversions() -> Iterator[Case]:
    make = functools.partial(operation, family="convert")
    for kind in ("f16", "bf16"):
        for rounding in ("rn", "rz"):
            yield make(f"cvt.{rounding}.{kind}.f32", f"{kind} f32")
            yield make(f"cvt.{rounding}.{kind}x2.f32", f"{kind}x2 f32 f32")
        yield make(f"cvt.rn.relu.{kind}x2.f32", f"{kind}x2 f32 f32", clean=_no_zeros)
        yield make(f"cvt.f32.{kind}", f"f32 {kind}")
    yield make("cvt.rna.tf32.f32", "tf32 f32", clean=_finite)
    for rounding in ("rni", "rzi", "rmi", "rpi"):
        for kind in ("s32", "u32"):
            yield make(f"cvt.{rounding}.{kind}.f32", "32 f32")
        yield make(f"cvt.{rounding}.f32.f32", "f32 f32")
        yield make(f"cvt.{rounding}.s64.f64", "64 f64", clean=_finite)
    for rounding in ("rn", "rz", "rm", "rp"):
        for sign in "su":
            yield make(f"cvt.{rounding}.f32.{sign}32", "f32 32")
            yield make(f"cvt.{rounding}.f64.{sign}64", "f64 64")
        yield make(f"cvt.{rounding}.f32.f64", "f32 f64")
    yield make("cvt.f64.f32", "f64 f32")
    yield make("cvt.sat.f32.f32", "f32 f32", clean=_no_zeros)
    for name, kinds in (
        ("cvt.s64.s32", "64 32"),
        ("cvt.u64.u32", "64 32"),
        ("cvt.u32.u64", "32 64"),
        ("cvt.s32.s8", "32 32"),
        ("cvt.u32.u8", "32 32"),
        ("cvt.s32.s16", "32 16"),
        ("cvt.u16.u32", "16 32"),
        ("cvt.sat.s16.s32", "16 32"),
        ("cvt.sat.u32.s32", "32 32"),
    ):
        yield make(name, kinds)


def _no_zeros(arrays: list[np.ndarray]) -> None:
    """Of what is kept above 0, whether -0 is not promised."""
    for array in arrays:
        array[np.abs(array) < 1e-30] = 0.25


def _finite(arrays: list[np.ndarray]) -> None:
    for array in arrays:
        array[~np.isfinite(array)] = 3


def comparisons() -> Iterator[Case]:
    make = functools.partial(operation, family="select")
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        for kind in ("s32", "u32"):
            yield make(f"set.{name}.u32.{kind}", "32 32 32")
        yield make(f"set.{name}.u32.f32", "32 f32 f32")
        yield make(f"set.{name}u.u32.f32", "32 f32 f32")
    for name in ("num", "nan"):
        yield make(f"set.{name}.u32.f32", "32 f32 f32")
    yield make("slct.s32.s32", "32 32 32 32")
    yield make("slct.f32.f32", "f32 f32 f32 f32")


def cases() -> Iterator[Case]:
    for family in (integers, bits, floats, halves, conversions, comparisons):
        yield from family()
