// What mbarriers and the copy engine (TMA) keep for a block.
#pragma once

#include "shared_memory.h"
#include "types.h"

namespace emulator {

// An mbarrier: a phase ends when as many threads have arrived, and as many bytes, as are expected.
struct PhaseBarrier {
  uint32_t count = 0, pending = 0;
  int64_t bytes = 0;  // expected and not there yet
  uint64_t phase = 0;
  Clock seen, done;     // by those who arrived; by those who wait for the phase that ended
  uint32_t thread = 0;  // that initialised it,
  uint32_t born = 0;    // when its warp's clock was this
  void arrive(const Clock& by);
  void advance();
};

// 16 bytes of shared memory; of them [low, high) have a place in global memory.
struct Piece {
  uint32_t shared, low, high;
  uint64_t global;  // of byte `low`
};

// A bulk copy under way.
struct Transfer {
  const Instruction* instruction;
  uint32_t thread;
  uint64_t group;    // of a store: the thread's bulk group
  uint32_t barrier;  // of a load: the mbarrier that is told
  bool store;
  int reduction;  // of a store: what it does with what is there, or -1
  Type type;      // of a reduction
  Clock seen;     // what its thread had seen
  std::vector<Piece> pieces;
};

// What an atomic operation of this name (add, min, ...) leaves; -1 for a name that is none.
int atomic_operation(std::string_view name);
uint64_t atomic_result(int operation, Type type, uint64_t old, uint64_t operand);

}  // namespace emulator
