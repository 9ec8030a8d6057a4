// LayerNorm backward, deterministic: gradients of parameters are summed per thread in registers
// while a block walks over its rows, written as partial sums, and added up by a second kernel.
//
// With y = normed = (x - mean) * rstd and g = dout * weight:
//   dx = rstd * (g - mean(g) - y * mean(g * y)) + dsum
#include <climits>

#include "common/cuda/launch.h"
#include "common/cuda/pack.h"
#include "common/cuda/reduce.h"
#include "layer_norm/cuda.h"

namespace bigkernels::cuda {
namespace {

// What one launch computes. The three sums of a wide row do not fit the registers together.
enum class Part { kAll, kRows, kColumns };

template <Part kPart>
constexpr int kElements = kPart == Part::kAll ? 8 : 16;
constexpr int kMaxThreads = BackwardGrid::kThreads;
static_assert(kMaxThreads * 8 == BackwardGrid::kNarrow && kMaxThreads * 16 == kMaxColumns);

template <int kChunks, int kCount>
struct Sums {
  float value[kChunks][kCount] = {};

  __device__ __forceinline__ void write(float* partials, int columns) const {
    if (partials == nullptr) return;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int column = (j * blockDim.x + threadIdx.x) * kCount;
      if (column < columns) store_floats(partials + row * columns + column, value[j]);
    }
  }
};

// Columns of a row that this thread holds; zeros where `inside` says there is nothing.
template <typename T, int kChunks, int kCount>
__device__ __forceinline__ void load(const void* data, int64_t stride, int64_t row, int columns,
                                     float (&value)[kChunks][kCount]) {
  using P = Pack<T, kCount>;
  const T* from = static_cast<const T*>(data) + row * stride;
  typename P::Raw raw[kChunks];
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
    const int column = (j * blockDim.x + threadIdx.x) * kCount;
    raw[j] = column < columns ? P::load(from + column) : P::zero();
  }
#pragma unroll
  for (int j = 0; j < kChunks; ++j) P::unpack(raw[j], value[j]);
}

template <typename T, int kChunks, int kCount>
__device__ __forceinline__ void store(void* data, int64_t row, int64_t stride, int columns,
                                      const float (&value)[kChunks][kCount]) {
  T* to = static_cast<T*>(data) + row * stride;
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
    const int column = (j * blockDim.x + threadIdx.x) * kCount;
    if (column < columns) Pack<T, kCount>::store(to + column, value[j]);
  }
}

template <int kChunks, int kCount>
__device__ __forceinline__ void add(const float (&value)[kChunks][kCount],
                                    float (&to)[kChunks][kCount]) {
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) to[j][k] += value[j][k];
  }
}

// dout in `gradient` becomes the gradient of the row's x, before dsum is added.
template <typename T, int kChunks, int kCount>
__device__ __forceinline__ void differentiate(const LayerNormBackwardParams& p, float rstd,
                                              const float (&normed)[kChunks][kCount],
                                              float2* s_sums, float (&gradient)[kChunks][kCount]) {
  float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
    const int column = (j * blockDim.x + threadIdx.x) * kCount;
    if (p.weight.data != nullptr && column < p.columns) {
      float weight[kCount];
      load_parameters<T>(p.weight.data, p.weight.dtype == DType::kFloat32, column, weight);
#pragma unroll
      for (int k = 0; k < kCount; ++k) gradient[j][k] *= weight[k];
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      sum.x += gradient[j][k];
      sum.y += gradient[j][k] * normed[j][k];
    }
  }
  const int warps = blockDim.x / kWarp;
  const float2 total = sum_over_warps(sum, s_sums, threadIdx.y * warps, warps);
  const float along_ones = total.x / p.columns, along_normed = total.y / p.columns;
#pragma unroll
  for (int j = 0; j < kChunks; ++j) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      gradient[j][k] = rstd * (gradient[j][k] - along_ones - normed[j][k] * along_normed);
    }
  }
}

// The gradients of x, written, and what of it goes into dx_bias, in `gradient`.
template <typename T, int kChunks, int kCount>
__device__ __forceinline__ void finish_row(const LayerNormBackwardParams& p, int64_t row,
                                           int columns, float (&gradient)[kChunks][kCount]) {
  if (p.dsum != nullptr) {
    float dsum[kChunks][kCount];
    load<T>(p.dsum, p.dsum_stride, row, columns, dsum);
    add(dsum, gradient);
  }
  if (p.dx != nullptr) store<T>(p.dx, row, p.columns, columns, gradient);
  if (p.dropout.threshold > 0) {
    const RowWords words(p.dropout, row);
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      words.drop(gradient[j], (j * blockDim.x + threadIdx.x) * kCount);
    }
  }
  if (p.dx_dropped != nullptr) store<T>(p.dx_dropped, row, p.columns, columns, gradient);
}

template <typename T, int kCount, Part kPart>
__global__ void __launch_bounds__(kMaxThreads, 1)
    layer_norm_backward_kernel(const __grid_constant__ LayerNormBackwardParams p) {
  constexpr int kChunks = kElements<kPart> / kCount;
  __shared__ float2 s_sums[2][kMaxThreads / kWarp];
  Sums<kChunks, kCount> dweight, dbias, dx_bias;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  int turn = 0;  // sums of one row may still be read while those of the next are written
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < p.row_count;
       first += step, turn ^= 1) {
    // All threads stay for the barriers; one without a row reads nothing and writes nothing.
    const int64_t row = first + threadIdx.y < p.row_count ? first + threadIdx.y : first;
    const int columns = first + threadIdx.y < p.row_count ? p.columns : 0;
    float gradient[kChunks][kCount], normed[kChunks][kCount];
    load<T>(p.dout, p.dout_stride, row, columns, gradient);
    load<T>(p.x, p.x_stride, row, columns, normed);
    const float mean = p.mean[row], rstd = p.rstd[row];
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        normed[j][k] = (normed[j][k] - mean) * rstd;
        if (kPart != Part::kRows) dweight.value[j][k] += gradient[j][k] * normed[j][k];
      }
    }
    if (kPart != Part::kRows) add(gradient, dbias.value);
    if (kPart == Part::kColumns) continue;
    differentiate<T>(p, rstd, normed, s_sums[turn], gradient);
    if (columns == 0) continue;
    finish_row<T>(p, row, columns, gradient);
    add(gradient, dx_bias.value);
  }
  const int64_t partial_size = static_cast<int64_t>(gridDim.x) * blockDim.y * p.columns;
  if (kPart != Part::kRows) {
    dweight.write(p.dweight != nullptr ? p.partials : nullptr, p.columns);
    dbias.write(p.dbias != nullptr ? p.partials + partial_size : nullptr, p.columns);
  }
  if (kPart != Part::kColumns) {
    dx_bias.write(p.dx_bias != nullptr ? p.partials + 2 * partial_size : nullptr, p.columns);
  }
}

// One warp's width of columns a block; grid.y is the sum: dweight, dbias, dx_bias.
__global__ void __launch_bounds__(kWarp* kWarp)
    layer_norm_column_sum_kernel(const __grid_constant__ LayerNormBackwardParams p,
                                 int64_t partial_rows) {
  __shared__ float s_sums[kWarp][kWarp + 1];
  float* to = blockIdx.y == 0 ? p.dweight : blockIdx.y == 1 ? p.dbias : p.dx_bias;
  if (to == nullptr) return;
  const int column = blockIdx.x * kWarp + threadIdx.x;
  const float* from = p.partials + blockIdx.y * partial_rows * p.columns + column;
  float sum = 0.0f;
  if (column < p.columns) {
#pragma unroll 4
    for (int64_t row = threadIdx.y; row < partial_rows; row += kWarp) {
      sum += __ldg(from + row * p.columns);
    }
  }
  s_sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  // Transposed, so that a warp has all sums of one column.
  const float total = warp_sum(s_sums[threadIdx.x][threadIdx.y]);
  const int of = blockIdx.x * kWarp + threadIdx.y;
  if (threadIdx.x == 0 && of < p.columns) to[of] = total;
}

template <typename T, int kCount, Part kPart>
void launch_part(const LayerNormBackwardParams& p, const BackwardGrid& grid, cudaStream_t stream) {
  const dim3 threads(grid.threads_per_row, grid.rows_per_block);
  layer_norm_backward_kernel<T, kCount, kPart>
      <<<static_cast<unsigned>(grid.blocks), threads, 0, stream>>>(p);
}

template <typename T>
int launch(const LayerNormBackwardParams& p, cudaStream_t stream) {
  constexpr int kCount = kPackCount<T>;
  const bool wide = p.columns % kCount == 0 && p.x_stride % kCount == 0 &&
                    p.dout_stride % kCount == 0 && p.dsum_stride % kCount == 0 &&
                    aligned_to_16({p.x, p.dout, p.dsum, p.weight.data, p.dx, p.dx_dropped});
  const BackwardGrid grid(p);
  if (grid.blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  if (p.columns <= BackwardGrid::kNarrow) {
    if (wide) {
      launch_part<T, kCount, Part::kAll>(p, grid, stream);
    } else {
      launch_part<T, 1, Part::kAll>(p, grid, stream);
    }
  } else {
    if (!wide) return cudaErrorInvalidValue;
    launch_part<T, kCount, Part::kRows>(p, grid, stream);
    if (p.dweight != nullptr || p.dbias != nullptr) {
      launch_part<T, kCount, Part::kColumns>(p, grid, stream);
    }
  }
  if (p.dweight != nullptr || p.dbias != nullptr || p.dx_bias != nullptr) {
    const dim3 blocks(static_cast<unsigned>(ceil_div(p.columns, kWarp)), 3);
    layer_norm_column_sum_kernel<<<blocks, dim3(kWarp, kWarp), 0, stream>>>(p, grid.partial_rows());
  }
  return launch_status();
}

}  // namespace
}  // namespace bigkernels::cuda

BIGKERNELS_CUDA_LAUNCHER int bigkernels_layer_norm_backward(
    const bigkernels::cuda::LayerNormBackwardParams* params, void* stream) {
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
