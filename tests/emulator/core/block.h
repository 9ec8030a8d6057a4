// One thread block: its warps, their order, and every access to memory with its checks.
#pragma once

#include <deque>
#include <mutex>
#include <set>

#include "global_memory.h"
#include "products.h"
#include "shared_memory.h"
#include "transfer.h"
#include "types.h"

namespace emulator {

// Lanes of a warp at the same instruction.
struct Group {
  uint32_t pc, mask;
};

struct CopyRequest {  // of cp.async: what one lane's copy will write
  uint32_t offset, bytes;
  std::array<uint8_t, 16> data;
};

struct Warp {
  uint8_t* bank[2];
  uint32_t id = 0, live = 0, started = 0;
  std::vector<Group> groups;  // by pc
  uint32_t passed = 0;        // lanes that wait for others: these have their turn first
  uint32_t turn = 0;          // instructions since the last such lanes
  Clock seen;                 // what it has seen of every warp's clock, its own among them
  bool suspended = false;     // at barrier `barrier`
  uint32_t barrier = 0;
  std::array<std::vector<CopyRequest>, kLanes> open_copies;
  std::array<std::deque<std::vector<CopyRequest>>, kLanes> copy_groups;
  Clock fenced;       // `seen` at its last fence.proxy.async
  Clock init_fenced;  // and at its last fence.mbarrier_init
  Accumulators accumulators;
  ProductGroup open_products;
  std::vector<uint64_t> spare_chunks;  // memory for the next group's
  std::deque<ProductGroup> product_groups;
  uint64_t product_groups_begun = 0, products = 0;
  const Instruction* last_product = nullptr;
  bool registers_fenced = false;               // by wgmma.fence, since it last waited for products
  std::array<uint64_t, kLanes> bulk_groups{};  // of each lane, committed
};

struct Barrier {
  uint32_t arrived = 0, expected = 0, count = 0;
  Clock seen;
  std::vector<uint32_t> waiting;
};

// Accesses of one instruction, of all lanes and blocks: 32-byte sectors of global memory or
// wavefronts of shared memory, against the least that would do.
struct Traffic {
  uint64_t accesses = 0, bytes = 0, moved = 0, ideal = 0;
};

struct Options {
  bool checked = true, counted = false;
  bool init_fences = true;  // mbarriers need one before the copy engine uses them
  uint64_t seed = 1;
  uint64_t limit = 50'000'000;  // instructions of one block, beyond which it counts as hanging
  int threads = 1;
  uint64_t last = 0;  // so many of the last blocks alone run; 0: all
};

// What blocks running at once share.
struct Launch {
  const Module* module;
  const Kernel* kernel;
  std::array<uint32_t, 3> grid, block;
  uint32_t dynamic_shared = 0;
  std::vector<uint8_t> parameters;
  GlobalMemory memory;
  Options options;

  std::mutex mutex;  // of what follows
  std::vector<std::string> findings;
  std::set<std::string> seen;
  std::string fatal;
  std::vector<uint64_t> executed;  // times, of each instruction
  std::vector<Traffic> traffic;
  std::mutex atomics;
};

class Block {
 public:
  explicit Block(Launch& launch);
  void run(uint64_t index);
  void merge_counters();

  // What instructions ask for.
  void report(const Instruction& instruction, const std::string& what) {
    if (!what.empty()) note(instruction, what);
  }
  // Host addresses of what the lanes access, null where a check failed. Shared and global memory
  // are checked; `fresh` holds the bytes to be stored, `bytes` a lane.
  void locate(Warp& warp, const Instruction& instruction, Space space, uint64_t* address,
              uint32_t mask, uint32_t bytes, Access access, const uint8_t* fresh, uint8_t** host);
  uint8_t* global(const Instruction& instruction, uint64_t address, uint32_t bytes, Access access);
  uint8_t* shared(Warp& warp, const Instruction& instruction, uint32_t lane, uint64_t offset,
                  uint32_t bytes, Access access, const uint8_t* fresh = nullptr);
  // `use`: what the async proxy does, "reads" or "fills".
  std::string used_by_async_proxy(const Warp& user, uint64_t offset, uint32_t bytes,
                                  const char* use);
  void count(const Instruction& instruction, bool is_shared, const uint64_t* address, uint32_t mask,
             uint32_t bytes);
  Actor actor(const Warp& warp, uint32_t lane) const {
    return {warp.id * kLanes + lane, warp.id, &warp.seen, accesses_};
  }
  void arrive_at_barrier(Warp& warp, const Instruction& instruction, uint32_t mask);
  // The mbarrier at an offset, or null; its use by this lane is checked.
  PhaseBarrier* phase_barrier(Warp& warp, const Instruction& instruction, uint32_t lane,
                              uint32_t offset);
  void finish_transfer(size_t index);
  uint32_t random() {
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
    return static_cast<uint32_t>(random_ >> 32);
  }

  Launch& launch;
  const Kernel& kernel;
  SharedMemory shared_memory;
  std::vector<Warp> warps;
  uint64_t steps = 0;
  std::map<uint32_t, PhaseBarrier> phase_barriers;  // by their offsets
  std::vector<Transfer> transfers;
  uint32_t engine_clock = 1;
  bool yielded = false;  // the warp that runs waits for a phase that is not over
  uint32_t idle = 0;     // turns in a row that were given up like this

 private:
  void note(const Instruction& instruction, const std::string& what);
  void start(uint64_t index);
  void fill_specials(Warp& warp);
  uint64_t special(Special which, const Warp& warp, uint32_t thread) const;
  void run_warp(Warp& warp, uint32_t quantum);
  uint32_t run_group(Warp& warp, Group& group, uint32_t stop, uint32_t quantum);
  void branch(Warp& warp, Group& group, uint32_t taken, const Instruction& instruction);
  void leave(Warp& warp, Group& group, uint32_t mask, const Instruction& instruction);
  void regroup(Warp& warp);
  int runnable_group(Warp& warp) const;
  bool complete(const Warp& warp, const Group& group) const;
  void release(uint32_t id);
  std::vector<uint32_t> ready();
  void look_for_hang() const;
  void report_end();
  void run_copy_engine(bool nothing_else);
  std::string where(uint32_t pc) const;
  uint8_t* private_memory(const Instruction& instruction, Space space, uint32_t thread,
                          uint64_t offset, uint32_t bytes);

  uint64_t index_ = 0, random_ = 1;
  std::array<uint32_t, 3> cta_{};
  uint32_t threads_;
  std::vector<uint8_t> registers_;
  std::vector<std::vector<uint8_t>> local_;
  std::vector<uint8_t> constants_;
  std::map<uint32_t, Barrier> barriers_;
  std::vector<uint64_t> executed_;
  std::vector<Traffic> traffic_;
  const Region* last_region_ = nullptr;
  uint32_t accesses_ = 1;  // numbers the instructions that access memory
};

// A row of a bank.
template <typename T>
T* row(const Warp& warp, const Operand& operand) {
  return reinterpret_cast<T*>(warp.bank[operand.bank] + operand.offset);
}

inline uint32_t predicate(const Warp& warp, const Operand& operand) {
  const uint32_t bits = *row<uint32_t>(warp, operand);
  return operand.negated ? ~bits : bits;
}

// Any register as a number.
inline uint64_t lane_value(const Warp& warp, const Operand& operand, int lane) {
  switch (operand.bytes) {
    case 0:
      return predicate(warp, operand) >> lane & 1;
    case 2:
      return row<uint16_t>(warp, operand)[lane];
    case 4:
      return row<uint32_t>(warp, operand)[lane];
    default:
      return row<uint64_t>(warp, operand)[lane];
  }
}

inline void set_lane(const Warp& warp, const Operand& operand, int lane, uint64_t value) {
  if (!operand.present()) return;
  switch (operand.bytes) {
    case 0: {
      uint32_t& bits = *row<uint32_t>(warp, operand);
      bits = (bits & ~(1u << lane)) | (static_cast<uint32_t>(value & 1) << lane);
      break;
    }
    case 2:
      row<uint16_t>(warp, operand)[lane] = static_cast<uint16_t>(value);
      break;
    case 4:
      row<uint32_t>(warp, operand)[lane] = static_cast<uint32_t>(value);
      break;
    default:
      row<uint64_t>(warp, operand)[lane] = value;
  }
}

inline void set_predicate(const Warp& warp, const Operand& operand, uint32_t mask, uint32_t bits) {
  if (!operand.present()) return;
  uint32_t& all = *row<uint32_t>(warp, operand);
  all = (all & ~mask) | (bits & mask);
}

// f(lane) for each lane of the mask. Rows are the same or apart, hence no dependence between lanes.
template <typename F>
inline __attribute__((always_inline)) void for_lanes(uint32_t mask, F f) {
  if (mask == kAllLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  } else {
    for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
  }
}

// d = Operation::of(a) and of(a, b), lane by lane.
template <typename T, typename Operation>
void unary(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  T* d = row<T>(warp, i.d);
  const T* a = row<T>(warp, i.a);
  for_lanes(mask, [=](int lane) { d[lane] = Operation::template of<T>(a[lane]); });
}

template <typename T, typename Operation>
void binary(Block&, Warp& warp, const Instruction& i, uint32_t mask) {
  T* d = row<T>(warp, i.d);
  const T *a = row<T>(warp, i.a), *b = row<T>(warp, i.b);
  for_lanes(mask, [=](int lane) { d[lane] = Operation::template of<T>(a[lane], b[lane]); });
}

}  // namespace emulator
