#include "common/cpu/core_state.h"

#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <cstdint>

#include "common/cpu/threads.h"

namespace bigkernels {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kSteps = 64;                        // of four loads and four products each
constexpr double kOperations = 2 * 16 * 16 * 32;  // of a bfloat16 tile product
constexpr int kMultiplies =
    700;  // a chain of them takes three cycles each, whatever a sibling does

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

double now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::nano>(time).count();
}

void products(const uint8_t* tiles, int steps) {
  for (int i = 0; i < steps; ++i) {
    _tile_loadd(4, tiles, 64);
    _tile_loadd(6, tiles + 1024, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, tiles + 2048, 64);
    _tile_loadd(5, tiles + 3072, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

double nanoseconds_of_a_cycle() {
  uint64_t x = 3;
  const double start = now();
  for (int i = 0; i < kMultiplies; ++i) asm volatile("imul %0, %0" : "+r"(x));
  return (now() - start) / (3 * kMultiplies);
}

double nanoseconds_of_a_product(const uint8_t* tiles) {
  const TileConfig config;
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  products(tiles, 4);
  const double start = now();
  products(tiles, kSteps);
  const double spent = now() - start;
  _tile_release();
  return spent / (4 * kSteps);
}

}  // namespace

CoreState core_state(int num_threads) {
  num_threads = num_threads < 1 ? 1 : num_threads > kMaxThreads ? kMaxThreads : num_threads;
  alignas(64) static const uint8_t tiles[4096] = {};
  double cycles[kMaxThreads] = {}, rates[kMaxThreads] = {};
  std::atomic<int> started = 0;
  parallel_tiles(num_threads, num_threads, [&](int64_t tile, int) {
    // Nobody starts before all are there, so that each measures a core of its own.
    const double end = now() + 2e5;
    started.fetch_add(1);
    while (started.load() < num_threads && now() < end) {
    }
    const double product = nanoseconds_of_a_product(tiles);
    cycles[tile] = product / nanoseconds_of_a_cycle();
    rates[tile] = kOperations / product * 1e9;
  });
  CoreState state{cycles[0], cycles[0], rates[0]};
  for (int i = 1; i < num_threads; ++i) {
    if (cycles[i] < state.best) state.best = cycles[i];
    if (cycles[i] > state.worst) state.worst = cycles[i];
    state.operations += rates[i];
  }
  return state;
}

}  // namespace bigkernels
