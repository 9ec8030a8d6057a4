"""How many blocks a multiprocessor holds at once: the CUDA programming guide's table of limits, and
for gfx942 that of the CDNA 3 instruction set manual."""

from __future__ import annotations

# Bytes of shared memory of a multiprocessor; a block costs 1 KiB more than it asks for.
SHARED = {"80": 164 * 1024, "90": 228 * 1024}
WARPS, BLOCKS, REGISTERS, RESERVED = 64, 32, 65536, 1024


def _up(value: int, to: int) -> int:
    return -(-value // to) * to


def cuda(arch: str, warps: int, registers: int, shared: int) -> int:
    """Blocks of sm_80 or sm_90; registers are handed out by 256 a warp, to each quarter."""
    of_a_warp = _up(max(registers, 1) * 32, 256)
    by_registers = 4 * (REGISTERS // 4 // of_a_warp) // warps
    by_shared = SHARED[arch[:2]] // (_up(shared, 128) + RESERVED)
    return min(BLOCKS, WARPS // warps, by_registers, by_shared)


def gfx942(waves: int, registers: int, shared: int) -> int:
    """Workgroups of a compute unit: four SIMDs of at most 8 waves and 512 registers a lane each."""
    by_registers = 4 * min(8, 512 // _up(max(registers, 1), 8)) // waves
    by_shared = 65536 // _up(shared, 128) if shared else BLOCKS
    return min(BLOCKS, by_registers, by_shared)
