// LayerNorm forward: a row lives in the registers of a warp or, above 1,024 columns (512 unaligned
// ones), of a block, so that memory is read once. Statistics are those of the unrounded float32
// sum: mean first, then the variance of centred values.
#include <climits>

#include "common/cuda/launch.h"
#include "common/cuda/pack.h"
#include "common/cuda/reduce.h"
#include "layer_norm/cuda.h"

namespace bigkernels::cuda {
namespace {

// Elements of a row that one thread holds. Where each has its own predicate, more than 16 would not
// fit the registers.
template <int kCount>
constexpr int kWarpElements = kCount == 1 ? 16 : 32;
constexpr int kBlockElements = 16;
constexpr int kMaxThreads = kMaxColumns / kBlockElements;
constexpr int kWarpsPerBlock = 4;

// The threads that share a row: which one this is, how many there are, and their sum.
struct WarpOfRow {
  int rank = threadIdx.x;
  static constexpr int size = kWarp;
  __device__ float sum(float value, int) const { return warp_sum(value); }
};

struct BlockOfRow {
  int rank = threadIdx.x;
  int size = blockDim.x;
  float (*s_sums)[kMaxThreads / kWarp];
  __device__ float sum(float value, int turn) const {
    return sum_over_warps(value, s_sums[turn], 0, blockDim.x / kWarp);
  }
};

// value = x, or residual + dropout(x + x_bias); columns past the end are 0.
template <typename T, bool kAdd, typename Threads, int kChunks, int kCount>
__device__ __forceinline__ void load_row(const LayerNormForwardParams& p, int64_t row,
                                         const Threads& threads, float (&value)[kChunks][kCount]) {
  using P = Pack<T, kCount>;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const T* residual = kAdd ? static_cast<const T*>(p.residual) + row * p.residual_stride : nullptr;
  typename P::Raw raw_x[kChunks], raw_residual[kAdd ? kChunks : 1];
  // All loads first: what hides their latency is that many are on the way. Element by element, they
  // would not fit the registers beside the dropout.
  constexpr bool kResidualFirst = kCount > 1;
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
    const int column = (j * threads.size + threads.rank) * kCount;
    raw_x[j] = column < p.columns ? P::load(x + column) : P::zero();
    if (kAdd && kResidualFirst)
      raw_residual[j] = column < p.columns ? P::load(residual + column) : P::zero();
  }
#pragma unroll
  for (int j = 0; j < kChunks; ++j) P::unpack(raw_x[j], value[j]);
  if (!kAdd) return;
  if (p.x_bias.data != nullptr) {
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int column = (j * threads.size + threads.rank) * kCount;
      if (column >= p.columns) continue;
      float x_bias[kCount];
      load_parameters<T>(p.x_bias.data, p.x_bias.dtype == DType::kFloat32, column, x_bias);
#pragma unroll
      for (int k = 0; k < kCount; ++k) value[j][k] += x_bias[k];
    }
  }
  if (p.dropout.threshold > 0) {
    const RowWords words(p.dropout, row);
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      words.drop(value[j], (j * threads.size + threads.rank) * kCount);
    }
  }
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
    if (!kResidualFirst) {
      const int column = (j * threads.size + threads.rank) * kCount;
      raw_residual[j] = column < p.columns ? P::load(residual + column) : P::zero();
    }
    float residual_value[kCount];
    P::unpack(raw_residual[j], residual_value);
#pragma unroll
    for (int k = 0; k < kCount; ++k) value[j][k] += residual_value[k];
  }
}

template <typename T, typename Threads, int kChunks, int kCount>
__device__ __forceinline__ void store_row(const LayerNormForwardParams& p, int64_t row,
                                          const Threads& threads, float mean, float rstd,
                                          const float (&value)[kChunks][kCount]) {
  T* out = static_cast<T*>(p.out) + row * p.columns;
  T* sum = p.sum != nullptr ? static_cast<T*>(p.sum) + row * p.columns : nullptr;
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
    const int column = (j * threads.size + threads.rank) * kCount;
    if (column >= p.columns) continue;
    if (sum != nullptr) Pack<T, kCount>::store(sum + column, value[j]);
    float scale[kCount], shift[kCount], result[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) scale[k] = 1.0f, shift[k] = 0.0f;
    if (p.weight.data != nullptr) {
      load_parameters<T>(p.weight.data, p.weight.dtype == DType::kFloat32, column, scale);
    }
    if (p.bias.data != nullptr) {
      load_parameters<T>(p.bias.data, p.bias.dtype == DType::kFloat32, column, shift);
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      result[k] = (value[j][k] - mean) * rstd * scale[k] + shift[k];
    }
    Pack<T, kCount>::store(out + column, result);
  }
}

template <typename T, bool kAdd, int kChunks, int kCount, typename Threads>
__device__ __forceinline__ void normalize_row(const LayerNormForwardParams& p, int64_t row,
                                              const Threads& threads) {
  float value[kChunks][kCount];
  load_row<T, kAdd>(p, row, threads, value);
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum += value[j][k];
  }
  const float columns = static_cast<float>(p.columns);
  const float mean = threads.sum(sum, 0) / columns;
  float squares = 0.0f;
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
    const int column = (j * threads.size + threads.rank) * kCount;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const float centred = column < p.columns ? value[j][k] - mean : 0.0f;
      squares += centred * centred;
    }
  }
  const float variance = threads.sum(squares, 1) / columns;
  const float rstd = rsqrtf(variance + static_cast<float>(p.eps));
  if (threads.rank == 0) {
    p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
  store_row<T>(p, row, threads, mean, rstd, value);
}

// Left alone (0), ptxas finds room for the most warps by spilling; it may have 128 registers where
// rows are read element by element.
template <typename T, int kCount, bool kAdd>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kCount == 1 ? 4 : 0)
    layer_norm_forward_kernel_warp(const __grid_constant__ LayerNormForwardParams p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.y;
  if (row >= p.row_count) return;  // the whole warp
  normalize_row<T, kAdd, kWarpElements<kCount> / kCount, kCount>(p, row, WarpOfRow());
}

template <typename T, int kCount, bool kAdd>
__global__ void __launch_bounds__(kMaxThreads, 1)
    layer_norm_forward_kernel_block(const __grid_constant__ LayerNormForwardParams p) {
  __shared__ float s_sums[2][kMaxThreads / kWarp];
  BlockOfRow threads;
  threads.s_sums = s_sums;
  normalize_row<T, kAdd, kBlockElements / kCount, kCount>(p, blockIdx.x, threads);
}

template <typename T, int kCount, bool kAdd>
int launch_rows(const LayerNormForwardParams& p, cudaStream_t stream) {
  if (p.columns <= kWarp * kWarpElements<kCount>) {
    const int64_t blocks = ceil_div(p.row_count, kWarpsPerBlock);
    if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
    const dim3 block(kWarp, kWarpsPerBlock);
    layer_norm_forward_kernel_warp<T, kCount, kAdd>
        <<<static_cast<unsigned>(blocks), block, 0, stream>>>(p);
    return launch_status();
  }
  if (p.row_count > INT_MAX) return cudaErrorInvalidConfiguration;
  int threads = 128;
  while (threads < kMaxThreads && threads * kBlockElements < p.columns) threads *= 2;
  layer_norm_forward_kernel_block<T, kCount, kAdd>
      <<<static_cast<unsigned>(p.row_count), threads, 0, stream>>>(p);
  return launch_status();
}

template <typename T>
int launch(const LayerNormForwardParams& p, cudaStream_t stream) {
  constexpr int kCount = kPackCount<T>;
  const bool wide =
      p.columns % kCount == 0 && p.x_stride % kCount == 0 && p.residual_stride % kCount == 0 &&
      aligned_to_16({p.x, p.residual, p.x_bias.data, p.weight.data, p.bias.data, p.out, p.sum});
  const bool add = p.residual != nullptr;
  if (wide)
    return add ? launch_rows<T, kCount, true>(p, stream) : launch_rows<T, kCount, false>(p, stream);
  return add ? launch_rows<T, 1, true>(p, stream) : launch_rows<T, 1, false>(p, stream);
}

}  // namespace
}  // namespace bigkernels::cuda

BIGKERNELS_CUDA_LAUNCHER int bigkernels_layer_norm_forward(
    const bigkernels::cuda::LayerNormForwardParams* params, void* stream) {
  using bigkernels::DType;
  const auto on = static_cast<cudaStream_t>(stream);
  if (params->columns < 1 || params->columns > bigkernels::cuda::kMaxColumns) {
    return cudaErrorInvalidValue;
  }
  switch (params->dtype) {
    case DType::kFloat32:
      return bigkernels::cuda::launch<float>(*params, on);
    case DType::kFloat16:
      return bigkernels::cuda::launch<__half>(*params, on);
    case DType::kBFloat16:
      return bigkernels::cuda::launch<__nv_bfloat16>(*params, on);
    default:
      return cudaErrorInvalidValue;
  }
}
