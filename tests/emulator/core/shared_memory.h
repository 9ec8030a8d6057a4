// A block's shared memory, with who touched each granule last: races by happens-before.
//
// Time is a clock for each warp (and one for the copy engine). An access is ordered before another
// if the second one's warp has seen a later clock of the first one's: barriers merge clocks. The
// lanes of a warp count as concurrent until the warp synchronises.
#pragma once

#include <functional>
#include <vector>

#include "types.h"

namespace emulator {

using Clock = std::vector<uint32_t>;

// Who accesses: the thread's number, its warp, what that warp has seen of the others, and a number
// of the instruction: where lanes write one place in one instruction, one of them wins, which is no
// race.
struct Actor {
  uint32_t thread;
  uint32_t warp;
  const Clock* seen;
  uint32_t instruction;
};

class SharedMemory {
 public:
  void reset(uint32_t bytes, uint32_t granule, uint32_t clocks, bool checked);

  uint8_t* data(uint64_t offset) { return bytes_.data() + offset; }
  bool holds(uint64_t offset, uint64_t bytes) const {
    return offset >= kSharedStart && offset + bytes <= bytes_.size();
  }
  uint64_t size() const { return bytes_.size(); }

  // Each returns what is wrong with the access, or an empty string. `fresh` are the bytes about to
  // be stored: two threads that write the same value do not race. `atomic` ones do not race each
  // other.
  std::string read(uint64_t offset, uint32_t bytes, const Actor& actor);
  // The same of 16 bytes at a multiple of 16, in a hurry: false, and nothing noted, where it takes
  // a closer look.
  bool read_chunk(uint64_t offset, const Actor& actor) {
    if (!checked_) return true;
    Record& record = chunks_[offset / kChunk];
    if (record.parted || record.barrier || record.pending || !record.written || record.atomic ||
        (record.writer != kNobody && !ordered(record.writer, record.writer_clock, actor))) {
      return false;
    }
    add_reader(record, actor);
    return true;
  }
  // Whether an ordinary store may have written the 16 bytes.
  bool stored_chunk(uint64_t offset) const {
    return checked_ && (chunks_[offset / kChunk].generic || chunks_[offset / kChunk].parted);
  }
  std::string write(uint64_t offset, uint32_t bytes, const Actor& actor, const uint8_t* fresh,
                    bool atomic = false);
  // Bytes that an asynchronous copy will fill: nobody may touch them until `arrive`.
  std::string begin_copy(uint64_t offset, uint32_t bytes, const Actor& actor);
  // An mbarrier begins or ends at the offset, or is used: ordinary accesses to it are errors.
  void hold_barrier(uint64_t offset, bool holds);
  void use_barrier(uint64_t offset, const Actor& actor);
  void end_copy(uint64_t offset, uint32_t bytes, const uint8_t* data, const Actor& actor);

  // Ordinary stores and the async proxy's accesses are in order only behind a proxy fence, of the
  // warp that wrote or of the one that uses it: `fences` gives what these had seen at theirs, for
  // the warp that wrote. use: "reads" or "fills".
  std::string use_by_async_proxy(
      uint64_t offset, uint32_t bytes, const char* use,
      const std::function<std::array<const Clock*, 2>(uint32_t writer)>& fences);

 private:
  struct Record {
    uint32_t writer_clock = 0, reader_clock = 0, instruction = 0;
    uint32_t base_clock = 0;
    uint16_t writer = kNobody, reader = kNobody;
    uint16_t base = kNobody;  // wrote before the atomic operations, whose threads are `readers`
    uint16_t readers = 0;     // 1 + index of the clocks of readers in several warps
    bool several = false;     // lanes of one warp read it
    bool written = false, pending = false, atomic = false, generic = false, barrier = false;
    bool parted = false;  // of a chunk: its granules have their own
  };
  static constexpr uint32_t kChunk = 16;  // bytes: the widest access
  static constexpr uint16_t kNobody = 0xffff;

  static bool ordered(uint16_t thread, uint32_t clock, const Actor& actor) {
    return thread == actor.thread || (*actor.seen)[thread / kLanes] > clock;
  }
  bool reads_ordered(const Record& record, const Actor& actor) const;
  void add_reader(Record& record, const Actor& actor) {
    const uint32_t now = (*actor.seen)[actor.warp];
    if (record.readers != 0) {
      readers_[(record.readers - 1) * clocks_ + actor.warp] = now;  // clocks do not go back
    } else if (record.several || (record.reader != kNobody && record.reader != actor.thread)) {
      add_another_reader(record, actor);
    }  // its own read before is covered by this one
    record.reader = static_cast<uint16_t>(actor.thread);
    record.reader_clock = now;
  }
  void add_another_reader(Record& record, const Actor& actor);
  uint32_t* clocks_of(Record& record);
  void forget_readers(Record& record);
  std::string read_special(Record& record, uint64_t at, const Actor& actor) const;
  std::string note_write(Record& record, const Actor& actor, bool same, bool atomic);
  // f(record, offset, bytes) for all of a range until it returns false; one record for a whole
  // chunk where it will do.
  template <typename F>
  void visit(uint64_t offset, uint32_t bytes, F f);
  void part(uint64_t chunk);
  void join(uint64_t offset, uint32_t bytes);

  std::vector<uint8_t> bytes_;
  std::vector<Record> chunks_, parts_;
  std::vector<uint32_t> readers_;  // clocks of the warps that read, `clocks_` for each record
  std::vector<uint16_t> free_;     // records in it that are not used
  uint32_t granule_ = 4, clocks_ = 0;
  bool checked_ = true;
};

}  // namespace emulator
