#include "shared_memory.h"

#include <algorithm>

namespace emulator {
namespace {

constexpr char kReadRace[] =
    "race: thread %u reads shared memory that thread %u writes, with no barrier between";

}  // namespace

void SharedMemory::reset(uint32_t bytes, uint32_t granule, uint32_t clocks, bool checked) {
  bytes_.assign(bytes, 0xff);  // NaN in every format
  granule_ = granule;
  clocks_ = clocks;
  checked_ = checked;
  chunks_.assign(checked ? (bytes + kChunk - 1) / kChunk : 0, Record());
  parts_.clear();
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

// The granules of a chunk have their own records from now on.
void SharedMemory::part(uint64_t chunk) {
  const Record whole = chunks_[chunk];
  chunks_[chunk].parted = true;
  if (parts_.empty()) parts_.resize(chunks_.size() * (kChunk / granule_));
  for (uint32_t k = 0; k < kChunk / granule_; ++k) {
    Record& made = parts_[chunk * (kChunk / granule_) + k];
    made = whole;
    if (whole.readers == 0 || k == 0) continue;  // the first one has the chunk's
    made.readers = 0;
    if (uint32_t* clocks = clocks_of(made)) {
      std::copy_n(&readers_[(whole.readers - 1) * clocks_], clocks_, clocks);
    }
  }
}

template <typename F>
void SharedMemory::visit(uint64_t offset, uint32_t bytes, F f) {
  const uint64_t end = offset + bytes;
  for (uint64_t at = offset / granule_ * granule_; at < end;) {
    Record& chunk = chunks_[at / kChunk];
    if (!chunk.parted && at % kChunk == 0 && at + kChunk <= end) {
      if (!f(chunk, at, kChunk)) return;
      at += kChunk;
      continue;
    }
    if (!chunk.parted) part(at / kChunk);
    if (!f(parts_[at / granule_], at, granule_)) return;
    at += granule_;
  }
}

// What was just written as a whole has one record a chunk again.
void SharedMemory::join(uint64_t offset, uint32_t bytes) {
  for (uint64_t at = (offset + kChunk - 1) / kChunk; (at + 1) * kChunk <= offset + bytes; ++at) {
    if (chunks_[at].parted) chunks_[at] = parts_[at * (kChunk / granule_)];
  }
}

void SharedMemory::add_another_reader(Record& record, const Actor& actor) {
  if (reads_ordered(record, actor)) {
    record.several = false;
  } else if (record.reader / kLanes == static_cast<int>(actor.warp)) {
    record.several = true;
  } else if (uint32_t* clocks = clocks_of(record)) {
    clocks[actor.warp] = (*actor.seen)[actor.warp];
  }
}

std::string SharedMemory::read(uint64_t offset, uint32_t bytes, const Actor& actor) {
  std::string wrong;
  if (!checked_) return wrong;
  visit(offset, bytes, [&](Record& record, uint64_t at, uint32_t) {
    if (record.barrier || record.pending || !record.written || record.atomic) [[unlikely]] {
      wrong = read_special(record, at, actor);
      if (!wrong.empty()) return false;
    }
    if (record.writer != kNobody && !ordered(record.writer, record.writer_clock, actor)) {
      wrong = format(kReadRace, actor.thread, record.writer);
      return false;
    }
    add_reader(record, actor);
    return true;
  });
  return wrong;
}

std::string SharedMemory::read_special(Record& record, uint64_t at, const Actor& actor) const {
  if (record.barrier) return format("thread %u reads an mbarrier", actor.thread);
  if (record.pending) {
    record.pending = false;
    return format("thread %u reads shared memory that an asynchronous copy has not filled yet",
                  actor.thread);
  }
  if (!record.written) {
    record.written = true;
    return format("thread %u reads shared memory that was never written (byte %llu)", actor.thread,
                  static_cast<unsigned long long>(at - kSharedStart));
  }
  record.atomic = false;
  return reads_ordered(record, actor) ? "" : format(kReadRace, actor.thread, record.writer);
}

std::string SharedMemory::write(uint64_t offset, uint32_t bytes, const Actor& actor,
                                const uint8_t* fresh, bool atomic) {
  std::string wrong;
  if (!checked_) return wrong;
  visit(offset, bytes, [&](Record& record, uint64_t at, uint32_t size) {
    const bool same = fresh != nullptr && at >= offset && at + size <= offset + bytes &&
                      std::memcmp(fresh + (at - offset), data(at), size) == 0;
    std::string found = note_write(record, actor, same, atomic);
    if (!found.empty()) wrong = std::move(found);
    return true;
  });
  if (!atomic) join(offset, bytes);
  return wrong;
}

std::string SharedMemory::note_write(Record& record, const Actor& actor, bool same, bool atomic) {
  std::string wrong;
  if (record.pending) {
    wrong =
        format("thread %u writes shared memory that an asynchronous copy is filling", actor.thread);
  }
  const bool again = atomic && record.atomic;
  const uint16_t before = again ? record.base : record.writer;
  const uint32_t clock = again ? record.base_clock : record.writer_clock;
  if (before != kNobody && !ordered(before, clock, actor) && !same &&
      (again || record.instruction != actor.instruction)) {
    wrong = format("race: threads %u and %u write the same shared memory, with no barrier between",
                   before, actor.thread);
  }
  if (!again && !reads_ordered(record, actor)) {
    wrong =
        format("race: thread %u writes shared memory that thread %u reads, with no barrier between",
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
  return wrong;
}

std::string SharedMemory::begin_copy(uint64_t offset, uint32_t bytes, const Actor& actor) {
  const std::string wrong = write(offset, bytes, actor, nullptr);
  std::memset(data(offset), 0xff, bytes);  // NaN until the copy ends
  if (!checked_) return wrong;
  visit(offset, bytes, [](Record& record, uint64_t, uint32_t) {
    record.pending = true;
    record.generic = false;
    return true;
  });
  return wrong;
}

void SharedMemory::end_copy(uint64_t offset, uint32_t bytes, const uint8_t* from,
                            const Actor& actor) {
  std::memcpy(data(offset), from, bytes);
  if (!checked_) return;
  visit(offset, bytes, [&](Record& record, uint64_t, uint32_t) {
    record.pending = false;
    record.written = true;
    record.generic = false;  // Triton's and CUTLASS's wgmma read what cp.async wrote with no fence
    record.writer = static_cast<uint16_t>(actor.thread);
    record.writer_clock = (*actor.seen)[actor.warp];
    return true;
  });
}

void SharedMemory::hold_barrier(uint64_t offset, bool holds) {
  if (!checked_) return;
  visit(offset, 8, [=](Record& record, uint64_t, uint32_t) {
    record.barrier = holds;
    return true;
  });
}

void SharedMemory::use_barrier(uint64_t offset, const Actor& actor) {
  if (!checked_) return;
  visit(offset, 1, [&](Record& record, uint64_t, uint32_t) {
    add_reader(record, actor);
    return true;
  });
}

std::string SharedMemory::use_by_async_proxy(
    uint64_t offset, uint32_t bytes, const char* use,
    const std::function<std::array<const Clock*, 2>(uint32_t writer)>& fences) {
  std::string wrong;
  if (!checked_) return wrong;
  visit(offset, bytes, [&](Record& record, uint64_t, uint32_t) {
    if (!record.generic || record.writer == kNobody) return true;
    const uint32_t warp = record.writer / kLanes;
    bool fenced = false;
    for (const Clock* fence : fences(warp)) {
      fenced |= fence != nullptr && (*fence)[warp] > record.writer_clock;
    }
    if (fenced) return true;
    record.generic = false;
    wrong = format(
        "the async proxy %s shared memory that thread %u wrote with an ordinary store, "
        "with no fence.proxy.async between",
        use, record.writer);
    return false;
  });
  return wrong;
}

}  // namespace emulator
