// wgmma of sm_90a: four warps multiply tiles that lie in shared memory (A may lie in registers).
//
// Results are in their registers only after wgmma.wait_group: until then those hold NaN. Shared
// memory is read by way of the async proxy: ordinary stores need a fence.proxy.async before it.
#include "block.h"
#include "decoder.h"
#include "sums.h"

namespace emulator {
namespace {

constexpr uint32_t kPoison = 0x7fc0dead;
enum Mode { kFence, kCommit, kWait };

// A tile in shared memory, as its 64-bit descriptor gives it.
struct Tile {
  uint64_t start, leading, stride;  // bytes
  int swizzle;                      // 0 none, 1 of 128 bytes, 2 of 64, 3 of 32
  explicit Tile(uint64_t bits)
      : start((bits & 0x3fff) << 4),
        leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4),
        swizzle(static_cast<int>(bits >> 62)) {}

  uint64_t swizzled(uint64_t at) const {
    static constexpr uint64_t kRows[] = {0, 7, 3, 1};
    return at ^ ((at >> 7 & kRows[swizzle]) << 4);
  }

  // Address of element (mn, k) of 1 << shift bytes: rows of 8 (16-byte chunks) make up core
  // matrices.
  uint64_t at(bool mn_major, int mn, int k, int shift) const {
    static constexpr int kRowShift[] = {4, 7, 6, 5};
    const int row_shift = kRowShift[swizzle], chunk_shift = 4 - shift;
    const int in_core = mn & 7;
    uint64_t offset;
    if (!mn_major && swizzle != 0) {
      offset = static_cast<uint64_t>(mn >> 3) * stride +
               static_cast<uint64_t>((in_core << row_shift) + (k << shift));
    } else if (!mn_major) {
      const int in_chunk = k & ((1 << chunk_shift) - 1);
      offset = static_cast<uint64_t>(mn >> 3) * stride +
               static_cast<uint64_t>(k >> chunk_shift) * leading +
               static_cast<uint64_t>(in_core * 16 + (in_chunk << shift));
    } else if (swizzle != 0) {
      const int in_row = mn & ((1 << (row_shift - shift)) - 1);
      offset = static_cast<uint64_t>(mn >> (row_shift - shift)) * leading +
               static_cast<uint64_t>(k >> 3) * stride +
               static_cast<uint64_t>(((k & 7) << row_shift) + (in_row << shift));
    } else {
      offset = static_cast<uint64_t>(mn >> 3) * stride + static_cast<uint64_t>(k >> 3) * leading +
               static_cast<uint64_t>((k & 7) * 16 + in_core * 2);
    }
    return swizzled(start + offset);
  }
};

struct Product {
  Block& block;
  Warp& warp;
  const Instruction& i;
  const int bytes = i.source_type.bits / 8, shift = bytes == 4 ? 2 : 1;
  const Actor by = block.actor(warp, 0);

  // The 16 bytes from element (mn, k) on, checked; null if they are out of bounds.
  const uint8_t* chunk(const Tile& tile, bool mn_major, int mn, int k) {
    const uint64_t at = tile.at(mn_major, mn, k, shift) & ~15ull;
    SharedMemory& memory = block.shared_memory;
    if (!memory.holds(at, 16) || !memory.read_chunk(at, by) || memory.stored_chunk(at)) {
      return look_closer(at);
    }
    warp.open_products.chunks.push_back(at);
    return memory.data(at);
  }

  [[gnu::noinline]] const uint8_t* look_closer(uint64_t at) {
    if (!block.shared_memory.holds(at, 16)) {
      block.report(i, "wgmma reads shared memory out of bounds");
      return nullptr;
    }
    block.shared(warp, i, 0, at, 16, Access::kRead);
    block.report(i, block.used_by_async_proxy(warp, at, 16, "reads"));
    warp.open_products.chunks.push_back(at);
    return block.shared_memory.data(at);
  }

  __m256 values(const Tile& tile, bool mn_major, int mn, int k) {
    const uint8_t* data = chunk(tile, mn_major, mn, k);
    return data != nullptr ? widen_chunk(data, i.source_type.kind) : _mm256_set1_ps(NAN);
  }

  // The chunks of eight columns from (column, k) on.
  void each_of(const Tile& tile, int column, int k, __m256 (&columns)[8]) {
    for (int c = 0; c < 8; ++c) columns[c] = values(tile, false, column + c, k);
  }

  // set(mn, k, values) of `count` rows from `first` on, in the order of memory: chunk by chunk.
  template <typename F>
  void each(const Tile& tile, bool mn_major, int first, int count, int depth, F set) {
    const int outer_count = mn_major ? depth : count, inner_count = mn_major ? count : depth;
    const int step = 16 / bytes;
    for (int outer = 0; outer < outer_count; ++outer) {
      for (int inner = 0; inner < inner_count; inner += step) {
        const int mn = mn_major ? inner : outer, k = mn_major ? outer : inner;
        set(mn, k, values(tile, mn_major, first + mn, k));
      }
    }
  }
};

// Ordinary accesses to registers and wgmma's are in order only behind wgmma.fence; its own
// accumulators need none while nobody else changes them.
void check_registers(Block& block, Warp& warp, const Instruction& i, bool adds) {
  if (i.unfenced) {
    block.report(i, "wgmma uses registers that ordinary instructions write behind the wgmma.fence");
  }
  if (warp.registers_fenced) return;
  bool ordered = adds && (i.a.present() || !warp.open_products.fragments.empty());
  for (size_t r = 0; r < i.count * size_t{4} && ordered; ++r) {
    const Accumulator* found = warp.accumulators.find(i.vector[r].offset);
    ordered = found != nullptr &&
              (found->pending || std::memcmp(found->values.data(), row<uint32_t>(warp, i.vector[r]),
                                             sizeof found->values) == 0);
  }
  if (ordered) return;
  block.report(i,
               "wgmma uses registers that ordinary instructions touched, with no wgmma.fence "
               "between");
  warp.registers_fenced = true;  // once is enough
}

// The 16 rows of A that belong to this warp.
void read_a(Product& product, Left& a, int depth) {
  Warp& warp = product.warp;
  const Instruction& i = product.i;
  const bool mn_major = i.mode & 1;
  const int per = 4 / product.bytes, chunk = 4 * per;
  if (i.a.present()) {
    const Tile tile(row<uint64_t>(warp, i.a)[0]);
    product.each(tile, mn_major, static_cast<int>(warp.id % 4 * 16), 16, depth,
                 [&](int m, int k, __m256 values) {
                   for (int e = 0; e < chunk; ++e) {
                     a.set(mn_major ? m + e : m, mn_major ? k : k + e, values[e]);
                   }
                 });
    return;
  }
  for (int k = 0; k < 4; ++k) {
    const Operand& held = i.vector[i.count * size_t{4} + static_cast<size_t>(k)];
    auto& [operand, values] = warp.open_products.fragments.emplace_back();
    operand = held;
    std::copy_n(row<uint32_t>(warp, held), kLanes, values.begin());
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t bits = values[static_cast<size_t>(lane)];
      for (int h = 0; h < per; ++h) {
        a.set(lane / 4 + 8 * (k % 2), lane % 4 * per + h + chunk * (k / 2),
              widen(bits >> (16 * h), i.source_type.kind));
      }
    }
  }
}

void read_b(Product& product, Right<256>& b, int n, int depth) {
  const Instruction& i = product.i;
  const bool mn_major = i.mode & 2;
  const Tile tile(row<uint64_t>(product.warp, i.b)[0]);
  if (mn_major) {  // 16-bit elements only
    return product.each(tile, true, 0, n, depth,
                        [&](int column, int k, __m256 values) { b.set_eight(k, column, values); });
  }
  const int count = 16 / product.bytes;
  for (int column = 0; column < n; column += 8) {
    for (int k = 0; k < depth; k += count) {
      __m256 columns[8];
      product.each_of(tile, column, k, columns);
      b.set_columns(k, column, count, columns);
    }
  }
}

void multiply(Block& block, Warp& warp, const Instruction& i, uint32_t mask) {
  if (mask != kAllLanes) return block.report(i, "divergence: a part of a warp runs wgmma");
  const int n = i.count * 8, depth = 256 / i.source_type.bits;
  const bool adds = (predicate(warp, i.c) & 1) != 0;
  check_registers(block, warp, i, adds);
  ++warp.products;
  warp.last_product = &i;
  Product product{block, warp, i};
  Left a;
  Right<256> b;
  read_a(product, a, depth);
  read_b(product, b, n, depth);
  if (i.option < 0) a.negate(depth);
  for (size_t r = 0; r < static_cast<size_t>(n / 2); r += 2) {
    const uint32_t* from[2] = {};
    uint32_t* to[2];
    for (size_t e = 0; e < 2; ++e) warp.accumulators.at(i.vector[r + e].offset);
    for (size_t e = 0; e < 2; ++e) {
      const Operand& d = i.vector[r + e];
      Accumulator& sums = *warp.accumulators.find(d.offset);
      to[e] = sums.values.data();
      if (adds) from[e] = sums.pending ? to[e] : row<uint32_t>(warp, d);
      sums.group = warp.product_groups_begun;
      sums.pending = true;
    }
    add_products(a, b, static_cast<int>(r / 2 % 2), static_cast<int>(r / 4), depth, from, to);
    for (size_t e = 0; e < 2; ++e) {
      std::fill_n(row<uint32_t>(warp, i.vector[r + e]), kLanes, kPoison);
    }
  }
}

void synchronise(Block& block, Warp& warp, const Instruction& i, uint32_t) {
  if (i.mode == kFence) {
    warp.registers_fenced = true;
    return;
  }
  if (i.mode == kCommit) {
    warp.product_groups.push_back(std::move(warp.open_products));
    warp.open_products = {};
    warp.open_products.chunks.swap(warp.spare_chunks);
    ++warp.product_groups_begun;
    return;
  }
  for (; warp.product_groups.size() > static_cast<size_t>(i.option);
       warp.product_groups.pop_front()) {
    // Read until now: who overwrites it without waiting for this warp races.
    for (const uint64_t chunk : warp.product_groups.front().chunks) {
      if (block.shared_memory.read_chunk(chunk, block.actor(warp, 0))) continue;
      block.shared(warp, i, 0, chunk, 16, Access::kRead);
    }
    for (const auto& [operand, values] : warp.product_groups.front().fragments) {
      if (std::memcmp(row<uint32_t>(warp, operand), values.data(), sizeof values) != 0) {
        block.report(i, "registers of A were overwritten before wgmma was waited for");
      }
    }
    warp.spare_chunks.swap(warp.product_groups.front().chunks);
    warp.spare_chunks.clear();
  }
  warp.registers_fenced = false;
  const uint64_t done = warp.product_groups_begun - warp.product_groups.size();
  for (Accumulator& held : warp.accumulators) {
    if (!held.pending || held.group >= done) continue;
    const Operand d{Operand::kRegisters, 4, false, held.offset, 0};
    std::copy_n(held.values.begin(), kLanes, row<uint32_t>(warp, d));
    held.pending = false;
  }
}

bool decode_product(Decoder& decoder) {
  Instruction& out = decoder.out;
  int n = 0, k = 0;
  for (const std::string_view modifier : decoder.modifiers) {
    sscanf(std::string(modifier).c_str(), "m64n%dk%d", &n, &k);
  }
  out.source_type = decoder.type(1);
  if (out.type != Type{Type::kFloat, 32} || out.source_type != decoder.type(2) || n == 0 ||
      n > 256 || k * out.source_type.bits != 256) {
    decoder.unsupported("shape or operand types");
  }
  out.count = static_cast<uint8_t>(n / 8);
  out.vector = decoder.elements(0, 4);
  if (out.vector.size() != static_cast<size_t>(n / 2)) decoder.unsupported("number of registers");
  const bool in_registers = decoder.operands.at(1).front() == '{';
  if (in_registers) {
    for (const Operand& a : decoder.elements(1, 4)) out.vector.push_back(a);
  } else {
    out.a = decoder.row(1, 8);
  }
  out.b = decoder.row(2, 8);
  out.c = decoder.predicate(3);
  out.option = static_cast<int>(decoder.literal(4) * decoder.literal(5));
  const size_t count = decoder.operands.size();
  const bool flags = count > 6;
  out.mode = flags && decoder.literal(count - 1) ? 2 : 0;
  if (flags && !in_registers && decoder.literal(6)) out.mode |= 1;
  out.run = &multiply;
  return true;
}

enum Fenced { kAsyncProxy, kInitialised, kElsewhere };

void fence(Block&, Warp& warp, const Instruction& i, uint32_t) {
  if (i.mode == kElsewhere) return;
  ++warp.seen[warp.id];  // so that earlier writes can be told from later ones
  (i.mode == kAsyncProxy ? warp.fenced : warp.init_fenced) = warp.seen;
}

// Fences between proxies. Those of global memory, tensor maps and aliases order nothing in shared
// memory.
void decode_fence(Decoder& decoder) {
  decoder.allow({"proxy", "async", "alias", "global", "shared::cta", "shared::cluster",
                 "tensormap::generic", "mbarrier_init", "acquire", "release", "cta", "cluster",
                 "gpu", "sys"});
  decoder.out.mode = decoder.has("mbarrier_init")                     ? kInitialised
                     : decoder.has("async") && !decoder.has("global") ? kAsyncProxy
                                                                      : kElsewhere;
  decoder.out.run = &fence;
}

}  // namespace

std::string Block::used_by_async_proxy(const Warp& user, uint64_t offset, uint32_t bytes,
                                       const char* use) {
  return shared_memory.use_by_async_proxy(offset, bytes, use, [&](uint32_t warp) {
    std::array<const Clock*, 2> fences = {warp < warps.size() ? &warps[warp].fenced : nullptr,
                                          &user.fenced};
    return fences;
  });
}

bool decode_wgmma(Decoder& decoder) {
  Instruction& out = decoder.out;
  if (decoder.name == "fence") {
    decode_fence(decoder);
    return true;
  }
  if (decoder.name != "wgmma") return false;
  out.flow = Flow::kConverge;
  if (decoder.has("mma_async")) return decode_product(decoder);
  out.mode = decoder.which({"fence", "commit_group", "wait_group"});
  if (out.mode < 0) decoder.unsupported("form");
  if (out.mode == kWait) out.option = static_cast<int>(decoder.literal(0));
  out.run = &synchronise;
  return true;
}

}  // namespace emulator
