#include "shared_memory.h"

#include <algorithm>

namespace emulator {

void SharedMemory::reset(uint32_t bytes, uint32_t granule, uint32_t clocks, bool checked) {
  bytes_.assign(bytes, 0xff);  // NaN in every format
  granule_ = granule;
  clocks_ = clocks;
  checked_ = checked;
  records_.assign(checked ? (bytes + granule - 1) / granule : 0, Record());
  readers_.clear();
  free_.clear();
}

bool SharedMemory::reads_ordered(const Record& record, const Actor& actor) const {
  if (record.reader == kNobody) return true;
  if (record.readers == 0) {
    return (!record.several && record.reader == actor.thread) ||
           (*actor.seen)[record.reader / kLanes] > record.reader_clock;
  }
  const uint32_t* clocks = &readers_[(record.readers - 1) * clocks_];
  for (uint32_t warp = 0; warp < clocks_; ++warp) {
    if (clocks[warp] > 0 && (*actor.seen)[warp] <= clocks[warp]) return false;
  }
  return true;
}

// Null when there is no room for more: then these readers are not watched.
uint32_t* SharedMemory::clocks_of(Record& record) {
  if (record.readers == 0) {
    if (!free_.empty()) {
      record.readers = free_.back();
      free_.pop_back();
    } else if (readers_.size() / clocks_ < 0xffff) {
      readers_.resize(readers_.size() + clocks_);
      record.readers = static_cast<uint16_t>(readers_.size() / clocks_);
    } else {
      return nullptr;
    }
    std::fill_n(&readers_[(record.readers - 1) * clocks_], clocks_, 0);
    readers_[(record.readers - 1) * clocks_ + record.reader / kLanes] = record.reader_clock;
  }
  return &readers_[(record.readers - 1) * clocks_];
}

void SharedMemory::forget_readers(Record& record) {
  if (record.readers != 0) free_.push_back(record.readers);
  record.readers = 0;
  record.reader = kNobody;
  record.several = false;
}

void SharedMemory::add_reader(Record& record, const Actor& actor) {
  const uint32_t now = (*actor.seen)[actor.warp];
  if (record.readers == 0 && reads_ordered(record, actor)) {
    record.several = false;
  } else if (record.readers == 0 && record.reader / kLanes == static_cast<int>(actor.warp)) {
    record.several = true;
  } else if (uint32_t* clocks = clocks_of(record)) {
    clocks[actor.warp] = std::max(clocks[actor.warp], now);
  }
  record.reader = static_cast<uint16_t>(actor.thread);
  record.reader_clock = now;
}

std::string SharedMemory::read(uint64_t offset, uint32_t bytes, const Actor& actor) {
  if (!checked_) return {};
  for (uint64_t at = offset / granule_; at <= (offset + bytes - 1) / granule_; ++at) {
    Record& record = records_[at];
    if (record.barrier) return format("thread %u reads an mbarrier", actor.thread);
    if (record.pending) {
      record.pending = false;
      return format("thread %u reads shared memory that an asynchronous copy has not filled yet",
                    actor.thread);
    }
    if (!record.written) {
      record.written = true;
      return format("thread %u reads shared memory that was never written (byte %llu)",
                    actor.thread, static_cast<unsigned long long>(at * granule_ - kSharedStart));
    }
    const bool after_atomics = !record.atomic || reads_ordered(record, actor);
    record.atomic = false;
    if (!after_atomics ||
        (record.writer != kNobody && !ordered(record.writer, record.writer_clock, actor))) {
      return format(
          "race: thread %u reads shared memory that thread %u writes, with no barrier "
          "between",
          actor.thread, record.writer);
    }
    add_reader(record, actor);
  }
  return {};
}

std::string SharedMemory::write(uint64_t offset, uint32_t bytes, const Actor& actor,
                                const uint8_t* fresh, bool atomic) {
  if (!checked_) return {};
  std::string wrong;
  for (uint64_t at = offset / granule_; at <= (offset + bytes - 1) / granule_; ++at) {
    Record& record = records_[at];
    if (record.pending) {
      wrong = format("thread %u writes shared memory that an asynchronous copy is filling",
                     actor.thread);
    }
    const uint64_t start = at * granule_;
    const bool same = fresh != nullptr && start >= offset && start + granule_ <= offset + bytes &&
                      std::memcmp(fresh + (start - offset), data(start), granule_) == 0;
    const bool again = atomic && record.atomic;
    const uint16_t before = again ? record.base : record.writer;
    const uint32_t clock = again ? record.base_clock : record.writer_clock;
    if (before != kNobody && !ordered(before, clock, actor) && !same &&
        (again || record.instruction != actor.instruction)) {
      wrong =
          format("race: threads %u and %u write the same shared memory, with no barrier between",
                 before, actor.thread);
    }
    if (!again && !reads_ordered(record, actor)) {
      wrong = format(
          "race: thread %u writes shared memory that thread %u reads, with no barrier "
          "between",
          actor.thread, record.reader);
    }
    if (record.barrier) wrong = format("thread %u writes over an mbarrier", actor.thread);
    if (!again) {
      forget_readers(record);
      record = Record();
      record.base = before;
      record.base_clock = clock;
    }
    if (atomic) add_reader(record, actor);
    record.writer = static_cast<uint16_t>(actor.thread);
    record.writer_clock = (*actor.seen)[actor.warp];
    record.written = true;
    record.generic = true;
    record.atomic = atomic;
    record.instruction = actor.instruction;
  }
  return wrong;
}

std::string SharedMemory::begin_copy(uint64_t offset, uint32_t bytes, const Actor& actor) {
  const std::string wrong = write(offset, bytes, actor, nullptr);
  std::memset(data(offset), 0xff, bytes);  // NaN until the copy ends
  if (!checked_) return wrong;
  for (uint64_t at = offset / granule_; at <= (offset + bytes - 1) / granule_; ++at) {
    records_[at].pending = true;
    records_[at].generic = false;
  }
  return wrong;
}

void SharedMemory::end_copy(uint64_t offset, uint32_t bytes, const uint8_t* from,
                            const Actor& actor) {
  std::memcpy(data(offset), from, bytes);
  if (!checked_) return;
  for (uint64_t at = offset / granule_; at <= (offset + bytes - 1) / granule_; ++at) {
    Record& record = records_[at];
    record.pending = false;
    record.written = true;
    record.generic = false;  // Triton's and CUTLASS's wgmma read what cp.async wrote with no fence
    record.writer = static_cast<uint16_t>(actor.thread);
    record.writer_clock = (*actor.seen)[actor.warp];
  }
}

void SharedMemory::hold_barrier(uint64_t offset, bool holds) {
  if (!checked_) return;
  for (uint64_t at = offset / granule_; at <= (offset + 7) / granule_; ++at) {
    records_[at].barrier = holds;
  }
}

void SharedMemory::use_barrier(uint64_t offset, const Actor& actor) {
  if (checked_) add_reader(records_[offset / granule_], actor);
}

std::string SharedMemory::use_by_async_proxy(
    uint64_t offset, uint32_t bytes, const char* use,
    const std::function<std::array<const Clock*, 2>(uint32_t writer)>& fences) {
  if (!checked_) return {};
  for (uint64_t at = offset / granule_; at <= (offset + bytes - 1) / granule_; ++at) {
    Record& record = records_[at];
    if (!record.generic || record.writer == kNobody) continue;
    const uint32_t warp = record.writer / kLanes;
    bool fenced = false;
    for (const Clock* fence : fences(warp)) {
      fenced |= fence != nullptr && (*fence)[warp] > record.writer_clock;
    }
    if (fenced) continue;
    record.generic = false;
    return format(
        "the async proxy %s shared memory that thread %u wrote with an ordinary store, "
        "with no fence.proxy.async between",
        use, record.writer);
  }
  return {};
}

}  // namespace emulator
