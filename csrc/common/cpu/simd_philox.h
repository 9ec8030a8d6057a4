// Philox4x32-10 in registers, and the dropout rule built on it.
//
// A VecU holds kLanes / 4 counters, four words each in adjacent lanes, so the words of the result
// lie in the order of the elements they decide: lane l of the words for column c belongs to column
// c + l.
#pragma once

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

struct PhiloxKey {
  VecU round_key[kPhiloxRounds];  // (key0, 0, key1, 0) of each round
  VecU multipliers;               // (M0, *, M1, *)
};

// Lanes repeat the quad (a, b, c, d).
inline VecU repeat_quad(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  uint32_t lanes[VecU::kLanes];
  for (int i = 0; i < VecU::kLanes; i += 4) {
    lanes[i] = a;
    lanes[i + 1] = b;
    lanes[i + 2] = c;
    lanes[i + 3] = d;
  }
  return VecU::load(lanes);
}

inline PhiloxKey make_philox_key(uint64_t seed) {
  PhiloxKey key;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    key.round_key[round] = repeat_quad(key0, 0, key1, 0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  key.multipliers = repeat_quad(kPhiloxMultiplier0, 0, kPhiloxMultiplier1, 0);
  return key;
}

// One round maps (c0, c1, c2, c3) to (high(M1 c2) ^ c1 ^ k0, low(M1 c2), high(M0 c0) ^ c3 ^ k1,
// low(M0 c0)). The products of the even lanes are (low0, high0, low2, high2): reversed, they stand
// where they belong, and c1, c3 moved one lane down meet the two high halves.
inline VecU philox(VecU counters, const PhiloxKey& key) {
  VecU x = counters;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const VecU products = multiply_even(x, key.multipliers);
    x = reverse_quads(products) ^ odd_to_even(x) ^ key.round_key[round];
  }
  return x;
}

// The other layout: one counter a lane. words[w] gets word w of every lane's counter (c0, c1, c2,
// c3), where c0 and c3 are the same in all lanes.
struct LaneWords {
  VecU words[4];
};

// The counters of the even and of the odd lanes run apart, each in the low half of 64 bits. The
// high halves hold leftovers that no product reads.
inline void philox_half(VecU (&c)[4], uint32_t key0, uint32_t key1) {
  const VecU multiplier0 = VecU::broadcast(kPhiloxMultiplier0);
  const VecU multiplier1 = VecU::broadcast(kPhiloxMultiplier1);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const VecU product0 = multiply_even(c[0], multiplier0);
    const VecU product1 = multiply_even(c[2], multiplier1);
    c[0] = odd_to_even(product1) ^ c[1] ^ VecU::broadcast(key0);
    c[1] = product1;
    c[2] = odd_to_even(product0) ^ c[3] ^ VecU::broadcast(key1);
    c[3] = product0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
}

inline LaneWords philox_lanes(uint32_t c0, VecU c1, VecU c2, uint32_t c3, uint64_t seed) {
  const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  VecU even[4] = {VecU::broadcast(c0), c1, c2, VecU::broadcast(c3)};
  VecU odd[4] = {even[0], odd_to_even(c1), odd_to_even(c2), even[3]};
  philox_half(even, key0, key1);
  philox_half(odd, key0, key1);
  LaneWords result;
  for (int w = 0; w < 4; ++w) result.words[w] = interleave_even(even[w], odd[w]);
  return result;
}

// The dropout of one call: key, threshold and the scale of what is kept.
struct Dropout {
  PhiloxKey key;
  VecU threshold;
  VecU quad_index;   // (0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, ...)
  VecU first_words;  // all ones in the first lane of each quad
  Vec::Mask alive;   // no lane when p = 1
  uint32_t offset;
  double scale;  // 1 / (1 - p), 0 when p = 1
};

inline Dropout make_dropout(double p, int64_t seed, int64_t offset) {
  Dropout dropout;
  dropout.key = make_philox_key(static_cast<uint64_t>(seed));
  const uint64_t threshold = dropout_threshold(p);
  dropout.threshold = VecU::broadcast(static_cast<uint32_t>(threshold));
  dropout.alive = Vec::Mask::first(threshold >> 32 ? 0 : Vec::kLanes);
  uint32_t lanes[VecU::kLanes];
  for (int i = 0; i < VecU::kLanes; ++i) lanes[i] = i % 4 == 0 ? i / 4 : 0;
  dropout.quad_index = VecU::load(lanes);
  dropout.first_words = repeat_quad(0xffffffffu, 0, 0, 0);
  dropout.offset = static_cast<uint32_t>(offset);
  dropout.scale = p < 1.0 ? 1.0 / (1.0 - p) : 0.0;
  return dropout;
}

// The counters of a row at column 0: row operations pass (i, b), attention (i, b * H + h).
inline VecU dropout_row(const Dropout& dropout, uint32_t c1, uint32_t c2) {
  return repeat_quad(0, c1, c2, dropout.offset) + dropout.quad_index;
}

// The random words of columns column .. column + kLanes - 1; column is a multiple of 4.
inline VecU dropout_words(const Dropout& dropout, VecU row, int64_t column) {
  const VecU block = VecU::broadcast(static_cast<uint32_t>(column / 4)) & dropout.first_words;
  return philox(row + block, dropout.key);
}

// Which of those columns are kept.
inline Vec::Mask dropout_keep(const Dropout& dropout, VecU row, int64_t column) {
  const VecU words = dropout_words(dropout, row, column);
  return greater_equal(words, dropout.threshold) & dropout.alive;
}

// x where kept, times 1 / (1 - p); 0 where dropped. x holds the columns from `column` on.
inline Vec drop(const Dropout& dropout, VecU row, int64_t column, Vec x) {
  const Vec scale = Vec::broadcast(static_cast<float>(dropout.scale));
  return select(dropout_keep(dropout, row, column), x * scale, Vec::zero());
}

// A VecD covers a part of one vector of words.
inline VecD drop(const Dropout& dropout, VecU row, int64_t column, VecD x) {
  const int64_t first = column % VecU::kLanes;
  const Vec::Mask keep = dropout_keep(dropout, row, column - first);
  float kept[Vec::kLanes];
  store(kept, select(keep, Vec::broadcast(1.0f), Vec::zero()));
  const VecD on = VecD::load(kept + first);
  return select(less(VecD::zero(), on), x * VecD::broadcast(dropout.scale), VecD::zero());
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
