// For tests of the emulator, on sm_90a: C (64, 64) = A (64, K) B (64, K)^T. Warp 4 fills a ring of
// two buffers by TMA; warps 0 to 3 multiply by wgmma and store the result by TMA. FAULT plants an
// error.
#include <cuda_bf16.h>
#include <stdint.h>

#ifndef FAULT
#define FAULT 0
#endif

namespace {

constexpr int kDepth = 64, kStages = 2, kTileBytes = 64 * kDepth * 2;

struct alignas(64) TensorMap {
  uint8_t bytes[128];
};

__device__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ void init_barrier(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

__device__ void expect_bytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ void wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ void load_tile(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

__device__ void store_tile(const TensorMap* map, uint32_t from) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %2}], [%1];" ::"l"(map),
      "r"(from), "r"(0)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  if (FAULT != 8) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// 64 rows of 128 bytes, in the 128-byte swizzle.
__device__ uint64_t descriptor(uint32_t address) {
  constexpr uint64_t kStride = FAULT == 11 ? 512 : 1024;
  return (address & 0x3ffff) >> 4 | 1ull << 16 | (kStride >> 4) << 32 | 1ull << 62;
}

__device__ void multiply(float (&d)[32], uint64_t a, uint64_t b, bool adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;\n}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b), "r"(static_cast<int>(adds)));
}

__device__ void fence_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

struct Ring {
  uint32_t tiles, full, empty;
  __device__ uint32_t tile(int step) const { return tiles + step % kStages * 2 * kTileBytes; }
  __device__ uint32_t is_full(int step) const { return full + step % kStages * 8; }
  __device__ uint32_t is_empty(int step) const { return empty + step % kStages * 8; }
  __device__ static int parity(int step) { return step / kStages & 1; }
};

__device__ void produce(const Ring& ring, const TensorMap* a, const TensorMap* b, int steps) {
  constexpr int kBytes = FAULT == 1 ? kTileBytes : FAULT == 2 ? 4 * kTileBytes : 2 * kTileBytes;
  for (int step = 0; step < steps; ++step) {
    if (FAULT != 3) wait(ring.is_empty(step), Ring::parity(step) ^ 1);
    expect_bytes(ring.is_full(step), kBytes);
    load_tile(ring.tile(step), a, step * kDepth, 0, ring.is_full(step));
    load_tile(ring.tile(step) + kTileBytes, b, step * kDepth, 0, ring.is_full(step));
  }
}

__device__ void consume(const Ring& ring, float (&d)[32], int steps) {
  for (int step = 0; step < steps; ++step) {
    const uint32_t a = ring.tile(step), b = a + kTileBytes;
    if (FAULT != 5) wait(ring.is_full(step), Ring::parity(step));
    if (FAULT == 6 && step == 1) {
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(a + threadIdx.x * 4), "r"(0) : "memory");
      asm volatile("bar.sync 1, 128;" ::: "memory");
    }
    if (FAULT == 14 && step == 2) {
      for (float& sum : d) sum *= 0.5f;
    } else if (FAULT != 13) {
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    }
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      multiply(d, descriptor(a + k * 32), descriptor(b + k * 32), step > 0 || k > 0);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (FAULT != 4) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    arrive(ring.is_empty(step));
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(160, 1)
    pipeline_kernel(const __grid_constant__ TensorMap a,  // (64, K)
                    const __grid_constant__ TensorMap b,  // (64, K)
                    const __grid_constant__ TensorMap c,  // (64, 64) float32
                    const void*, const void*, const void*, int steps) {
  extern __shared__ __align__(1024) uint8_t s_memory[];
  __shared__ uint64_t s_full[kStages], s_empty[kStages];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Ring ring{shared_address(s_memory), shared_address(s_full), shared_address(s_empty)};
  const uint32_t result = ring.tiles + kStages * 2 * kTileBytes;
  if (threadIdx.x == 128) {
    for (int i = 0; i < kStages; ++i) {
      init_barrier(ring.is_full(i), 1);
      init_barrier(ring.is_empty(i), 128);
    }
    if (FAULT != 12) fence_proxy();
    if (FAULT == 15) asm volatile("st.shared.b32 [%0], %1;" ::"r"(ring.tiles), "r"(0) : "memory");
  }
  if (FAULT != 9) __syncthreads();
  if (warp == 4) {
    if (lane == 0) produce(ring, &a, &b, steps);
    return;
  }
  float d[32] = {};
  consume(ring, d, FAULT == 16 && warp == 3 ? steps - 1 : steps);
  for (int i = 0; i < 32; ++i) {
    const int row = warp * 16 + lane / 4 + 8 * (i / 2 % 2),
              column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(result + (row * 64 + column) * 4), "f"(d[i])
                 : "memory");
  }
  if (FAULT != 7) fence_proxy();
  if (FAULT != 10) asm volatile("bar.sync 1, 128;" ::: "memory");
  if (threadIdx.x == 0) store_tile(&c, result);
}
