"""Atomics on places that hold something, kinds of numbers, and what a thread knows of itself and of addresses."""

import numpy as np
import pytest
import torch

from tests.emulator import build
from tests.emulator.ptx import kernel, run
from tests.test_emulator_instructions import LANES, STORED, floats, integers

pytestmark = pytest.mark.skipif(
    build.why_no_core() is not None, reason=f"emulated: {build.why_no_core()}"
)


def returned(atom, place, operand, letter, bits):
    """(old values, new ones) of an atomic of each lane on its own place. atom: with {d}, {a} and {b}."""
    places, operands = torch.from_numpy(place.copy()), torch.from_numpy(operand.copy())
    old, size = torch.zeros_like(places), bits // 8
    body = f"  mul.wide.u32 %d40, %r0, {size};\n"
    body += "".join(f"  add.u64 %d{4 + i}, %d{i}, %d40;\n" for i in range(3))
    sort = f"{'f' if letter in 'fg' else 'b'}{bits}"
    body += f"  ld.global.{sort} %{letter}11, [%d5];\n"
    body += f"  {atom.format(d=f'%{letter}12', a='[%d4]', b=f'%{letter}11')};\n"
    body += f"  st.global.{sort} [%d6], %{letter}12;"
    report = run(kernel(body, 3), [places, operands, old])
    assert report, report
    return old.numpy(), places.numpy()


def test_counting_and_comparing_atomics():
    place = np.arange(LANES, dtype=np.uint32) % 7
    limit = (np.arange(LANES, dtype=np.uint32) * 5 + 3) % 8
    place_of, limit_of = place.astype(np.int32), limit.astype(np.int32)
    formulas = {
        "atom.global.inc.u32 {d}, {a}, {b}": np.where(place >= limit, 0, place + 1),
        "atom.global.dec.u32 {d}, {a}, {b}": np.where(
            (place == 0) | (place > limit), limit, place - 1
        ),
        "atom.global.cas.b32 {d}, {a}, 3, {b}": np.where(place == 3, limit, place),
    }
    for text, expected in formulas.items():
        old, new = returned(text, place_of, limit_of, "r", 32)
        np.testing.assert_array_equal(old, place_of, err_msg=text)
        np.testing.assert_array_equal(new, expected.astype(np.int32), err_msg=text)


def test_atomics_of_64_bits_and_of_floats():
    a, b = (integers(64, 1, seed)[0].astype(np.int64) for seed in (21, 22))
    with np.errstate(over="ignore"):
        formulas = {"add.u64": a + b, "min.s64": np.minimum(a, b), "max.s64": np.maximum(a, b)}
    formulas |= {"and.b64": a & b, "exch.b64": b, "cas.b64": np.where(a == 1, b, a)}
    for name, expected in formulas.items():
        middle = "1, " if name.startswith("cas") else ""
        old, new = returned(f"atom.global.{name} {{d}}, {{a}}, {middle}{{b}}", a, b, "d", 64)
        np.testing.assert_array_equal(old, a, err_msg=name)
        np.testing.assert_array_equal(new, expected, err_msg=name)
    for kind, letter, bits in (("f32", "f", 32), ("f64", "g", 64)):
        x, y = floats(2, 23, STORED[kind])
        old, new = returned(f"atom.global.add.{kind} {{d}}, {{a}}, {{b}}", x, y, letter, bits)
        least = np.finfo(STORED[kind]).tiny if kind == "f32" else 0
        with np.errstate(all="ignore"):
            total = np.where(np.abs(x) < least, x * 0, x) + np.where(np.abs(y) < least, y * 0, y)
            total = np.where(np.abs(total) < least, total * 0, total)
        np.testing.assert_array_equal(new, total)
        np.testing.assert_array_equal(old, x)


PREDICATES = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda x: ~np.isnan(x),
    "notanumber": np.isnan,
    "normal": lambda x: np.isfinite(x) & ((x == 0) | (np.abs(x) >= np.finfo(np.float32).tiny)),
    "subnormal": lambda x: (x != 0) & (np.abs(x) < np.finfo(np.float32).tiny),
}


@pytest.mark.parametrize("what", PREDICATES)
def test_kinds_of_numbers(what):
    x = floats(1, 31)[0]
    body = "  add.u64 %d4, %d0, %d32;\n  ld.global.f32 %f1, [%d4];\n"
    body += f"  testp.{what}.f32 %p1, %f1;\n  selp.b32 %r1, 1, 0, %p1;\n"
    body += "  add.u64 %d5, %d1, %d32;\n  st.global.b32 [%d5], %r1;"
    out = torch.zeros(LANES, dtype=torch.int32)
    assert run(kernel(body, 2), [torch.from_numpy(x), out])
    np.testing.assert_array_equal(out.numpy().astype(bool), PREDICATES[what](x))


def stored(body, threads=LANES):
    """What a body leaves in %r1 of each thread."""
    out = torch.zeros(threads, dtype=torch.int32)
    text = f"{body}\n  add.u64 %d5, %d0, %d32;\n  st.global.b32 [%d5], %r1;"
    report = run(kernel(text, 1, 256), [out], threads)
    assert report, report
    return out.numpy()


def test_lanes_know_who_is_with_them():
    lane = np.arange(LANES)
    branch = "  setp.lt.u32 %p1, %r0, 9;\n  mov.b32 %r1, 0;\n  @%p1 bra on;\n  bra over;\non:\n  {};\nover:"
    got = stored(branch.format("activemask.b32 %r1"))
    np.testing.assert_array_equal(got, np.where(lane < 9, 0x1FF, 0))
    got = stored(branch.format("elect.sync %r2|%p2, 0x1ff;\n  selp.b32 %r1, 7, 5, %p2"))
    np.testing.assert_array_equal(got, np.where(lane == 0, 7, np.where(lane < 9, 5, 0)))
    got = stored(
        "  mov.u32 %r1, %laneid;\n  mov.u32 %r2, %warpid;\n  mad.lo.u32 %r1, %r2, 100, %r1;",
        threads=64,
    )
    np.testing.assert_array_equal(got, np.arange(64) % 32 + np.arange(64) // 32 * 100)


def test_addresses_know_their_space():
    for name, space in (("memory", "shared"), ("%d0", "global")):
        body = f"  mov.u64 %d7, {name};\n" + (
            "  cvta.shared.u64 %d7, %d7;\n" if space == "shared" else ""
        )
        for asked in ("shared", "global"):
            got = stored(body + f"  isspacep.{asked} %p1, %d7;\n  selp.b32 %r1, 1, 0, %p1;")
            assert (got == (asked == space)).all(), (name, asked)
    there = "  mov.u64 %d7, memory;\n  cvta.shared.u64 %d8, %d7;\n  cvta.to.shared.u64 %d9, %d8;\n"
    body = there + "  sub.u64 %d10, %d9, %d7;\n  cvt.u32.u64 %r1, %d10;"
    assert (stored(body) == 0).all()


def test_vectors_are_packed_and_unpacked():
    body = "  mov.b32 %r2, 0x12345678;\n  mov.b32 {%h1, %h2}, %r2;\n  mov.b32 %r3, {%h2, %h1};\n"
    body += "  mov.b64 %d7, {%r2, %r3};\n  mov.b64 {%r4, %r5}, %d7;\n  xor.b32 %r1, %r4, %r5;"
    assert (stored(body) == 0x12345678 ^ 0x56781234).all()
