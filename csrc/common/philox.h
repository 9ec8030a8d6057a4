// Philox4x32-10, the counter-based generator behind dropout (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). The scalar form; cpu/simd_philox.h is the vector form.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define BIGKERNELS_HOST_DEVICE __host__ __device__
#else
#define BIGKERNELS_HOST_DEVICE
#endif

namespace bigkernels {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct PhiloxWords {
  uint32_t word[4];
};

BIGKERNELS_HOST_DEVICE static inline PhiloxWords philox(PhiloxWords counter, uint32_t key0,
                                                        uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// An element is kept iff its word >= threshold; 2^32 (p = 1) keeps none.
BIGKERNELS_HOST_DEVICE static inline uint64_t dropout_threshold(double p) {
  return static_cast<uint64_t>(p * 4294967296.0);
}

}  // namespace bigkernels
