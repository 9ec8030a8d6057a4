// Sums over the threads that share a row, in an order that depends on their number only.
#pragma once

namespace bigkernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Every lane gets the sum of the warp.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

__device__ __forceinline__ float2 warp_sum(float2 value) {
  return make_float2(warp_sum(value.x), warp_sum(value.y));
}

// Every thread gets the sum of the warps [first_warp, first_warp + warps) of its block, its own
// among them. All threads of the block must come here, with the same number of warps; `s_sums` (one
// value a warp) may be used again only after the next __syncthreads() but one.
template <typename T>
__device__ __forceinline__ T sum_over_warps(T value, T* s_sums, int first_warp, int warps) {
  const int lane = threadIdx.x % kWarp;
  const T sum = warp_sum(value);
  if (warps == 1) return sum;
  if (lane == 0) s_sums[first_warp + threadIdx.x / kWarp] = sum;
  __syncthreads();
  return warp_sum(lane < warps ? s_sums[first_warp + lane] : T());
}

}  // namespace bigkernels::cuda
