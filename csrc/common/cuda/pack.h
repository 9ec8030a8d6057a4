// Elements in memory to float32 in registers and back, kCount adjacent ones at a time: 16 bytes an
// access, or element by element (kCount 1) where rows are not aligned to that.
//
// The wide accesses go through uint4 itself: a 16-byte struct of smaller members compiles to four
// 32-bit accesses.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace bigkernels::cuda {

template <typename T>
constexpr int kPackCount = 16 / sizeof(T);

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void from_float(float value, float* to) { *to = value; }
__device__ __forceinline__ void from_float(float value, __half* to) {
  *to = __float2half_rn(value);
}
__device__ __forceinline__ void from_float(float value, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(value);
}

__device__ __forceinline__ float2 unpack_pair(uint32_t word, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}
__device__ __forceinline__ float2 unpack_pair(uint32_t word, __nv_bfloat16) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}

__device__ __forceinline__ uint32_t pack_pair(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack_pair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Loads go through the read-only path: nothing that a kernel loads is written by it.
template <typename T, int kCount>
struct Pack;

template <typename T>
struct Pack<T, 1> {
  using Raw = T;
  static __device__ __forceinline__ Raw zero() { return T(0.0f); }
  static __device__ __forceinline__ Raw load(const T* from) { return __ldg(from); }
  static __device__ __forceinline__ void unpack(Raw raw, float (&values)[1]) {
    values[0] = to_float(raw);
  }
  static __device__ __forceinline__ void store(T* to, const float (&values)[1]) {
    from_float(values[0], to);
  }
};

struct WidePack {
  using Raw = uint4;
  static __device__ __forceinline__ Raw zero() { return make_uint4(0, 0, 0, 0); }
  static __device__ __forceinline__ Raw load(const void* from) {
    return __ldg(static_cast<const uint4*>(from));
  }
};

template <>
struct Pack<float, 4> : WidePack {
  static __device__ __forceinline__ void unpack(Raw raw, float (&values)[4]) {
    values[0] = __uint_as_float(raw.x);
    values[1] = __uint_as_float(raw.y);
    values[2] = __uint_as_float(raw.z);
    values[3] = __uint_as_float(raw.w);
  }
  static __device__ __forceinline__ void store(float* to, const float (&values)[4]) {
    *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
  }
};

template <typename T>
struct Pack<T, 8> : WidePack {
  static __device__ __forceinline__ void unpack(Raw raw, float (&values)[8]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = unpack_pair(words[i], T());
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
  static __device__ __forceinline__ void store(T* to, const float (&values)[8]) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack_pair(values[0], values[1], T()), pack_pair(values[2], values[3], T()),
                   pack_pair(values[4], values[5], T()), pack_pair(values[6], values[7], T()));
  }
};

// kCount floats, at 16-byte boundaries if kCount > 1.
template <int kCount>
__device__ __forceinline__ void store_floats(float* to, const float (&values)[kCount]) {
  constexpr int kFloats = kCount < 4 ? kCount : 4;
#pragma unroll
  for (int i = 0; i < kCount; i += kFloats) {
    float part[kFloats];
#pragma unroll
    for (int k = 0; k < kFloats; ++k) part[k] = values[i + k];
    Pack<float, kFloats>::store(to + i, part);
  }
}

// kCount parameters of dtype float32 or T, at 16-byte boundaries if kCount > 1.
template <typename T, int kCount>
__device__ __forceinline__ void load_parameters(const void* data, bool is_float, int64_t column,
                                                float (&values)[kCount]) {
  if (!is_float) {
    Pack<T, kCount>::unpack(Pack<T, kCount>::load(static_cast<const T*>(data) + column), values);
    return;
  }
  constexpr int kFloats = kCount < 4 ? kCount : 4;
#pragma unroll
  for (int i = 0; i < kCount; i += kFloats) {
    float part[kFloats];
    const float* from = static_cast<const float*>(data) + column + i;
    Pack<float, kFloats>::unpack(Pack<float, kFloats>::load(from), part);
#pragma unroll
    for (int k = 0; k < kFloats; ++k) values[i + k] = part[k];
  }
}

}  // namespace bigkernels::cuda
