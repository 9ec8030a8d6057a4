"""Cases of wgmma: products of tiles in shared memory in every swizzle, either operand either way round, and with
A in registers. Elements are small integers, so that every sum is exact."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from tests.conformance.cases import Case, generator, module
from tests.conformance.driver import Argument

THREADS = 128
OPERAND = 8192  # bytes of shared memory for each of A and B
BITS = {"bf16": 16, "f16": 16, "tf32": 32}
# Bytes from one core matrix, or one block of rows, to the next: (leading, stride), with the swizzle's code.
LAYOUTS = {0: (128, 256, 0), 32: (16, 256, 3), 64: (16, 512, 2), 128: (16, 1024, 1)}


@dataclasses.dataclass(frozen=True)
class Product:
    """D (64, n) = sign * A (64, k) B (k, n) + D. transposed: A and B lie with m and n innermost."""

    dtype: str
    n: int
    swizzle: int = 128
    transposed: bool = False
    registers: bool = False
    sign: int = 1

    @property
    def depth(self) -> int:
        return 256 // BITS[self.dtype]

    @property
    def name(self) -> str:
        words = [f"wgmma m64n{self.n}k{self.depth} {self.dtype} swizzle {self.swizzle}"]
        words += ["transposed"] * self.transposed + ["registers"] * self.registers
        return " ".join(words + ["minus"] * (self.sign < 0))


def elements(dtype: str, made: np.ndarray) -> np.ndarray:
    """Integers as words of elements of the dtype."""
    floats = made.astype(np.float32)
    if dtype == "tf32":
        return floats.view(np.uint32)
    if dtype == "f16":
        return floats.astype(np.float16).view(np.uint32)
    return (floats.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint32)


def arguments(product: Product) -> list[Argument]:
    random = generator(product.name)
    count = OPERAND * 8 // BITS[product.dtype]
    a, b = (elements(product.dtype, random.integers(-4, 5, count)) for _ in range(2))
    return [a, b, np.zeros(64 * product.n, np.float32)]


START = f"""  mov.u32 %r10, memory;
  shl.b32 %r11, %r0, 2;
  mov.u32 %r12, 0;
words:
  mad.lo.u32 %r13, %r12, 512, %r11;
  cvt.u64.u32 %d10, %r13;
  add.u64 %d11, %d0, %d10;
  add.u64 %d12, %d1, %d10;
  ld.global.b32 %r14, [%d11];
  ld.global.b32 %r15, [%d12];
  add.u32 %r16, %r10, %r13;
  st.shared.b32 [%r16], %r14;
  st.shared.b32 [%r16+{OPERAND}], %r15;
  add.u32 %r12, %r12, 1;
  setp.lt.u32 %p1, %r12, {OPERAND // 512};
  @%p1 bra words;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  and.b32 %r17, %r10, 0x3ffff;
  shr.u32 %r17, %r17, 4;
  cvt.u64.u32 %d13, %r17;
"""
FENCE = "  wgmma.fence.sync.aligned;\n"
END = "  wgmma.commit_group.sync.aligned;\n  wgmma.wait_group.sync.aligned 0;\n"


def case(product: Product) -> Case:
    """The product of D = 0, 1, 2, ... by registers."""
    leading, stride, code = LAYOUTS[product.swizzle]
    if product.transposed:
        leading, stride = 8192, 1024
    high = leading // 16 << 16 | stride // 16 << 32 | code << 62
    body = START + f"  or.b64 %d14, %d13, {high:#x};\n  add.u64 %d15, %d14, {OPERAND // 16};\n"
    sums = [f"%f{i}" for i in range(product.n // 2)]
    body += "".join(f"  mov.f32 {name}, 0f{_bits(i):08X};\n" for i, name in enumerate(sums))
    a = "%d14"
    if product.registers:
        # Rows of 16 bytes a thread.
        body += "  shl.b32 %r20, %r0, 4;\n  add.u32 %r20, %r10, %r20;\n"
        body += "  ld.shared.v4.b32 {%r21, %r22, %r23, %r24}, [%r20];\n"
        a = "{%r21, %r22, %r23, %r24}"
    sort = f"{product.dtype}.{product.dtype}"
    turns = "" if product.dtype == "tf32" else ", {t}" if product.registers else ", {t}, {t}"
    body += "  setp.lt.u32 %p2, %r0, 128;\n" + FENCE
    body += f"  wgmma.mma_async.sync.aligned.m64n{product.n}k{product.depth}.f32.{sort} {{{', '.join(sums)}}}, "
    body += f"{a}, %d15, %p2, {product.sign}, 1{turns.format(t=int(product.transposed))};\n{END}"
    body += f"  mul.wide.u32 %d20, %r0, {2 * product.n};\n  add.u64 %d21, %d2, %d20;\n"
    body += "".join(f"  st.global.f32 [%d21+{4 * i}], {name};\n" for i, name in enumerate(sums))
    ptx = module(body, 3, 2 * OPERAND, "sm_90a")
    make = functools.partial(arguments, product)
    return Case(product.name, "wgmma", ptx, make, (2,), ("f32",), threads=THREADS, target="sm_90a")


def _bits(value: int) -> int:
    return int(np.float32(value).view(np.uint32))


def products() -> Iterator[Product]:
    for dtype in BITS:
        for swizzle in LAYOUTS:
            yield Product(dtype, 32, swizzle)
        for n in (8, 64):
            yield Product(dtype, n)
        yield Product(dtype, 64, registers=True)
    for dtype in ("bf16", "f16"):
        yield Product(dtype, 64, transposed=True)
    yield Product("bf16", 64, sign=-1)


def cases() -> Iterator[Case]:
    for product in products():
        yield case(product)
