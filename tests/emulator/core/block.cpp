// The order of warps and lanes: random warps, each lane group with the lowest pc first, so that
// lanes that parted meet again.
#include "block.h"

#include <algorithm>

namespace emulator {
namespace {

constexpr uint32_t kLongTurn = 2000;  // instructions

}  // namespace

Block::Block(Launch& launch)
    : launch(launch),
      kernel(*launch.kernel),
      threads_(launch.block[0] * launch.block[1] * launch.block[2]),
      constants_(kernel.constants.size() + 32),
      executed_(kernel.code.size()),
      traffic_(launch.options.counted ? kernel.code.size() : 0) {
  const uint32_t count = (threads_ + kLanes - 1) / kLanes;
  warps.resize(count);
  // Rows start at multiples of 32 bytes, in every warp.
  registers_.assign(static_cast<size_t>(kernel.register_bytes) * count + 32, 0xdb);
  const auto aligned = [](std::vector<uint8_t>& bank) {
    return bank.data() + (-reinterpret_cast<uintptr_t>(bank.data()) & 31);
  };
  std::copy(kernel.constants.begin(), kernel.constants.end(), aligned(constants_));
  for (uint32_t id = 0; id < count; ++id) {
    Warp& warp = warps[id];
    warp.id = id;
    warp.bank[0] = aligned(registers_) + static_cast<size_t>(kernel.register_bytes) * id;
    warp.bank[1] = aligned(constants_);
    const uint32_t lanes = std::min<uint32_t>(kLanes, threads_ - id * kLanes);
    warp.started = lanes == kLanes ? kAllLanes : (1u << lanes) - 1;
  }
  if (kernel.local_bytes > 0) local_.resize(warps.size() * kLanes);
}

void Block::start(uint64_t index) {
  index_ = index;
  random_ = (launch.options.seed * 0x9e3779b97f4a7c15 + index + 1) * 0xbf58476d1ce4e5b9 | 1;
  const auto& grid = launch.grid;
  cta_ = {static_cast<uint32_t>(index % grid[0]), static_cast<uint32_t>(index / grid[0] % grid[1]),
          static_cast<uint32_t>(index / grid[0] / grid[1])};
  const uint32_t clocks = static_cast<uint32_t>(warps.size()) + 1;  // the last: the copy engine
  const uint32_t dynamic = (kernel.shared_bytes + kernel.dynamic_alignment - 1) /
                           kernel.dynamic_alignment * kernel.dynamic_alignment;
  shared_memory.reset(dynamic + launch.dynamic_shared, kernel.granule, clocks,
                      launch.options.checked);
  for (std::vector<uint8_t>& memory : local_) memory.assign(kernel.local_bytes, 0xff);
  barriers_.clear();
  phase_barriers.clear();
  transfers.clear();
  engine_clock = 1;
  idle = 0;
  steps = 0;
  for (Warp& warp : warps) {
    warp.live = warp.started;
    warp.groups.assign(1, {0, warp.live});
    warp.passed = warp.turn = 0;
    warp.seen.assign(clocks, 0);
    warp.seen[warp.id] = 1;
    warp.suspended = false;
    for (auto& open : warp.open_copies) open.clear();
    for (auto& groups : warp.copy_groups) groups.clear();
    warp.fenced.assign(clocks, 0);
    warp.init_fenced.assign(clocks, 0);
    warp.accumulators.clear();
    warp.open_products = {};
    warp.registers_fenced = false;
    warp.products = 0;
    warp.last_product = nullptr;
    warp.product_groups.clear();
    warp.product_groups_begun = 0;
    warp.bulk_groups.fill(0);
    fill_specials(warp);
  }
}

std::string Block::where(uint32_t pc) const {
  const Instruction& instruction = kernel.code[pc];
  const Location& location = kernel.locations[instruction.location];
  const auto file = launch.module->files.find(location.file);
  const std::string& path = file == launch.module->files.end() ? std::string() : file->second;
  return format("%s:%u, PTX line %u: %.120s", path.substr(path.rfind('/') + 1).c_str(),
                location.line, instruction.line, instruction.text.c_str());
}

void Block::note(const Instruction& instruction, const std::string& what) {
  const std::string place = where(static_cast<uint32_t>(&instruction - kernel.code.data()));
  const std::lock_guard lock(launch.mutex);
  // Once for each kind and place: the numbers in it differ from lane to lane.
  std::string kind = what.substr(0, 10) + what.substr(what.size() > 12 ? what.size() - 12 : 0);
  if (launch.findings.size() < 40 && launch.seen.insert(kind + place).second) {
    launch.findings.push_back(
        format("%s (block %llu) at ", what.c_str(), static_cast<unsigned long long>(index_)) +
        place);
  }
}

std::vector<uint32_t> Block::ready() {
  std::vector<uint32_t> result;
  for (const Warp& warp : warps) {
    if (warp.live != 0 && !warp.suspended) result.push_back(warp.id);
  }
  return result;
}

void Block::run(uint64_t index) {
  start(index);
  for (std::vector<uint32_t> able = ready();; able = ready()) {
    if (able.empty()) {
      const bool over =
          std::all_of(warps.begin(), warps.end(), [](const Warp& warp) { return warp.live == 0; });
      if (over) {
        report_end();
        return;
      }
      if (!transfers.empty()) {
        finish_transfer(random() % transfers.size());
        continue;
      }
      std::string text;
      for (const Warp& warp : warps) {
        if (warp.live == 0) continue;
        text += format("\n  warp %u at barrier %u, ", warp.id, warp.barrier) +
                where(warp.groups[0].pc > 0 ? warp.groups[0].pc - 1 : 0);
      }
      fail("deadlock in block %llu: these warps wait for others that never come:%s",
           static_cast<unsigned long long>(index), text.c_str());
    }
    Warp& warp = warps[able[random() % able.size()]];
    run_warp(warp, able.size() == 1 ? 1000 : 1 + random() % 200);
    idle = yielded ? idle + 1 : 0;
    yielded = false;
    if (idle > 0 || !transfers.empty()) run_copy_engine(able.size() == 1);
    if (steps > launch.options.limit) {
      fail("block %llu hangs: %llu instructions, warp %u at %s",
           static_cast<unsigned long long>(index), static_cast<unsigned long long>(steps), warp.id,
           warp.groups.empty() ? "its end" : where(warp.groups[0].pc).c_str());
    }
  }
}

// What must not be left when all warps have ended.
void Block::report_end() {
  if (!transfers.empty()) report(*transfers[0].instruction, "a bulk copy outlives its block");
  for (const Warp& warp : warps) {
    const Warp& first = warps[warp.id / 4 * 4];
    const uint32_t last = first.id + 3;
    const bool alone = last >= warps.size() && warp.products > 0;
    if (warp.products == first.products && !alone) continue;
    report(*std::max(warp.last_product, first.last_product),
           format("warps %u to %u are to multiply together: warp %u runs wgmma %llu times, warp %u "
                  "%llu times",
                  first.id, last, warp.id, static_cast<unsigned long long>(warp.products), first.id,
                  static_cast<unsigned long long>(first.products)));
  }
}

// Some transfers end now; all of them, before waiting can be called a hang.
void Block::run_copy_engine(bool nothing_else) {
  const bool stuck = idle > 20 * warps.size() || (nothing_else && idle > 0);
  if (!transfers.empty()) {
    if (stuck || random() % 8 == 0) finish_transfer(random() % transfers.size());
    return;
  }
  if (idle > 200 + 50 * warps.size()) look_for_hang();
}

void Block::look_for_hang() const {
  std::string text;
  for (const auto& [offset, barrier] : phase_barriers) {
    text +=
        format("\n  mbarrier at byte %u, phase %llu: %u of %u arrivals and %lld bytes are missing",
               offset - kSharedStart, static_cast<unsigned long long>(barrier.phase),
               barrier.pending, barrier.count, static_cast<long long>(barrier.bytes));
  }
  for (const Warp& warp : warps) {
    if (warp.live == 0) continue;
    text += format("\n  warp %u at ", warp.id) + where(warp.groups[0].pc);
  }
  fail("block %llu hangs: nobody completes the phase that these warps wait for:%s",
       static_cast<unsigned long long>(index_), text.c_str());
}

bool Block::complete(const Warp& warp, const Group& group) const {
  const Instruction& instruction = kernel.code[group.pc];
  if (instruction.flow == Flow::kBarrier) return (warp.live & ~group.mask) == 0;
  if (instruction.flow != Flow::kConverge) return true;
  uint32_t wanted = warp.live;
  if (instruction.members.present()) {
    wanted &= row<uint32_t>(warp, instruction.members)[__builtin_ctz(group.mask)];
  } else if (instruction.guard.present()) {
    return true;
  }
  return (wanted & ~group.mask) == 0;
}

int Block::runnable_group(Warp& warp) const {
  for (int again = 0; again < 2; ++again) {
    for (size_t i = 0; i < warp.groups.size(); ++i) {
      const Group& group = warp.groups[i];
      if ((group.mask & ~warp.passed) != 0 && complete(warp, group)) return static_cast<int>(i);
    }
    warp.passed = 0;
  }
  // Parts of a warp at a barrier: let them go on, the barrier reports it.
  for (size_t i = 0; i < warp.groups.size(); ++i) {
    if (kernel.code[warp.groups[i].pc].flow == Flow::kBarrier) return static_cast<int>(i);
  }
  fail("deadlock: warp %u waits for lanes %08x that do not come, at %s", warp.id,
       warp.live & ~warp.groups[0].mask, where(warp.groups[0].pc).c_str());
}

void Block::run_warp(Warp& warp, uint32_t quantum) {
  while (quantum > 0 && warp.live != 0 && !warp.suspended) {
    const int chosen = warp.groups.size() == 1 ? 0 : runnable_group(warp);
    const bool last = chosen + 1 == static_cast<int>(warp.groups.size());
    const uint32_t stop = last ? ~0u : warp.groups[chosen + 1].pc;
    const uint32_t lanes = warp.groups[chosen].mask;
    const uint32_t used = run_group(warp, warp.groups[chosen], stop, quantum);
    steps += used;
    // Lanes that spin must not keep from its turn what they wait for.
    warp.turn += used;
    if (yielded || warp.turn > kLongTurn) {
      warp.passed |= lanes;
      warp.turn = 0;
    }
    quantum = yielded ? 0 : quantum - std::min(used, quantum);
    if (warp.groups.size() > 1) regroup(warp);
  }
}

// Runs a group until it meets the next one, parts, is suspended, or has used its time.
uint32_t Block::run_group(Warp& warp, Group& group, uint32_t stop, uint32_t quantum) {
  const Instruction* code = kernel.code.data();
  const bool alone = warp.groups.size() == 1;
  for (uint32_t used = 1;; ++used) {
    const uint32_t pc = group.pc;
    const Instruction& instruction = code[pc];
    ++executed_[pc];
    uint32_t mask = group.mask;
    if (instruction.guard.present()) mask &= predicate(warp, instruction.guard);
    switch (instruction.flow) {
      case Flow::kStraight:
        ++group.pc;
        if (mask != 0) instruction.run(*this, warp, instruction, mask);
        break;
      case Flow::kConverge:
        if (!alone && !complete(warp, group)) return used - 1;
        ++group.pc;
        if (mask != 0) instruction.run(*this, warp, instruction, mask);
        break;
      case Flow::kWait:
        ++group.pc;
        if (mask != 0) instruction.run(*this, warp, instruction, mask);
        if (yielded) return used;
        break;
      case Flow::kBranch:
        if (mask == 0) {
          ++group.pc;
        } else if (mask == group.mask) {
          group.pc = instruction.target;
          if (!alone) return used;
        } else {
          branch(warp, group, mask, instruction);
          return used;
        }
        break;
      case Flow::kExit:
        leave(warp, group, mask, instruction);
        return used;
      case Flow::kBarrier:
        // Other lanes may still come here.
        if (!alone && used > 1 && !complete(warp, group)) return used - 1;
        ++group.pc;
        if (mask != 0) arrive_at_barrier(warp, instruction, mask);
        if (warp.suspended) return used;
        break;
    }
    if (group.pc == stop || used >= quantum) return used;
  }
}

void Block::branch(Warp& warp, Group& group, uint32_t taken, const Instruction& instruction) {
  const Group other{instruction.target, taken};
  group.mask &= ~taken;
  ++group.pc;
  warp.groups.push_back(other);
}

void Block::leave(Warp& warp, Group& group, uint32_t mask, const Instruction& instruction) {
  for (const Transfer& transfer : transfers) {
    if (transfer.store && transfer.thread / kLanes == warp.id &&
        (mask >> transfer.thread % kLanes & 1)) {
      report(instruction,
             format("thread %u ends while its bulk stores are under way", transfer.thread));
    }
  }
  for_lanes(mask, [&](int lane) {
    if (!warp.open_copies[lane].empty() || !warp.copy_groups[lane].empty()) {
      report(instruction, format("thread %u ends while its asynchronous copies are under way",
                                 warp.id * kLanes + lane));
    }
  });
  if (!warp.open_products.empty() || !warp.product_groups.empty()) {
    report(instruction, format("warp %u ends while its wgmma is under way", warp.id));
  }
  warp.live &= ~mask;
  group.mask &= ~mask;
  ++group.pc;
  regroup(warp);
  if (warp.live == 0) {
    for (auto& [id, barrier] : barriers_) {
      if (barrier.arrived > 0) release(id);
    }
  }
}

void Block::regroup(Warp& warp) {
  std::vector<Group>& groups = warp.groups;
  std::erase_if(groups, [](const Group& group) { return group.mask == 0; });
  std::sort(groups.begin(), groups.end(),
            [](const Group& a, const Group& b) { return a.pc < b.pc; });
  for (size_t i = 1; i < groups.size();) {
    if (groups[i].pc == groups[i - 1].pc) {
      groups[i - 1].mask |= groups[i].mask;
      groups.erase(groups.begin() + static_cast<ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

void Block::merge_counters() {
  for (size_t i = 0; i < executed_.size(); ++i) launch.executed[i] += executed_[i];
  for (size_t i = 0; i < traffic_.size(); ++i) {
    launch.traffic[i].accesses += traffic_[i].accesses;
    launch.traffic[i].bytes += traffic_[i].bytes;
    launch.traffic[i].moved += traffic_[i].moved;
    launch.traffic[i].ideal += traffic_[i].ideal;
  }
}

}  // namespace emulator
