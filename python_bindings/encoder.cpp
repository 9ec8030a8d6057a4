// torch's side of the encoder room on the CPU: packed weights with a header that says what they
// are, the order of the sequences, fingerprints of weights.
#include "encoder/encoder.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "common/cpu/threads.h"
#include "common/cpu/workspace.h"
#include "isa/table.h"
#include "tensors.h"

namespace bigkernels {
namespace {

using Tensors = std::vector<Tensor>;

// The first bytes of packed weights.
struct PackedHeader {
  uint64_t magic;
  EncoderShape shape;
  char isa[16];
};

constexpr uint64_t kMagic = 0x6b63617042453162;

EncoderPrecision precision_of(const std::string& name) {
  if (name == "float32") return EncoderPrecision::kFloat32;
  if (name == "high") return EncoderPrecision::kHigh;
  if (name == "bfloat16") return EncoderPrecision::kBFloat16;
  if (name == "int8") return EncoderPrecision::kInt8;
  STD_TORCH_CHECK(name == "int8_weights", "precision: unknown '", name, "'");
  return EncoderPrecision::kInt8Weights;
}

FfnActivation activation_of(const std::string& name) {
  if (name == "gelu") return FfnActivation::kGelu;
  if (name == "gelu_tanh") return FfnActivation::kGeluTanh;
  if (name == "relu") return FfnActivation::kRelu;
  STD_TORCH_CHECK(name == "silu", "activation: unknown '", name, "'");
  return FfnActivation::kSilu;
}

void check_shape(const EncoderShape& shape) {
  STD_TORCH_CHECK(shape.layers > 0 && shape.width > 0 && shape.hidden > 0 && shape.heads > 0 &&
                      shape.width % shape.heads == 0,
                  "encoder: ", shape.layers, " layers of width ", shape.width, " and ",
                  shape.hidden, ", ", shape.heads, " heads: not a whole encoder");
  STD_TORCH_CHECK(kernels().encoder.serves(shape), "encoder: the ", kernels().isa,
                  " kernels do not serve this precision at width ", shape.width, ", hidden ",
                  shape.hidden, ", ", shape.heads, " heads");
}

// The number of elements of tensor `index` of a layer.
int64_t size_of(const EncoderShape& shape, size_t index) {
  if (index == 10 || index == 12) return shape.hidden * shape.width;
  if (index == 11) return shape.hidden;
  return index < 8 && index % 2 == 0 ? shape.width * shape.width : shape.width;
}

Tensor encoder_pack(const Tensors& weights, int64_t layers, int64_t heads,
                    const std::string& precision) {
  STD_TORCH_CHECK(layers > 0 && static_cast<int64_t>(weights.size()) == layers * kEncoderTensors,
                  "weights: ", weights.size(), " tensors for ", layers, " layers, expected ",
                  kEncoderTensors, " each");
  STD_TORCH_CHECK(weights[0].dim() == 2 && weights[10].dim() == 2,
                  "weights: query.weight and up.weight must have two dimensions");
  const EncoderShape shape = {layers, heads, weights[0].sizes()[1], weights[10].sizes()[0],
                              precision_of(precision)};
  check_shape(shape);
  Tensors kept;
  std::vector<EncoderTensor> tensors;
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t count = weights[i].numel();
    const size_t place = i % kEncoderTensors;
    const bool matrix = place % 2 == 0 && place != 8 && place != 14;
    STD_TORCH_CHECK(count == size_of(shape, place) || (count == 0 && !matrix), "weights: tensor ",
                    i, " has ", count, " elements, expected ", size_of(shape, place));
    const DType dtype = dtype_of(weights[i]);
    STD_TORCH_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16, "weights: tensor ", i,
                    " is neither float32 nor bfloat16");
    kept.push_back(dense(weights[i]));
    tensors.push_back({count > 0 ? kept.back().const_data_ptr() : nullptr, dtype});
  }
  const int64_t bytes = kEncoderHeader + layers * EncoderLayout(shape).bytes;
  const Tensor packed = empty(weights[0], {bytes}, ScalarType::Byte);
  char* base = static_cast<char*>(packed.mutable_data_ptr());
  advise_huge_pages(base, bytes);
  std::memset(base, 0, static_cast<size_t>(bytes));
  PackedHeader header = {kMagic, shape, {}};
  std::strncpy(header.isa, kernels().isa, sizeof(header.isa) - 1);
  std::memcpy(base, &header, sizeof(header));
  kernels().encoder.pack({shape, tensors.data(), base + kEncoderHeader, num_threads()});
  return packed;
}

// Where the packed weights begin; raises if they are not what the call says.
const char* packed_data(const Tensor& packed, const EncoderShape& shape) {
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.numel() > static_cast<int64_t>(sizeof(PackedHeader)),
                  "packed: expected what encoder_pack returned");
  PackedHeader header;
  const char* base = static_cast<const char*>(packed.const_data_ptr());
  std::memcpy(&header, base, sizeof(header));
  const EncoderShape& made = header.shape;
  const int64_t body = shape.layers * EncoderLayout(shape).bytes;
  STD_TORCH_CHECK(
      header.magic == kMagic && std::strncmp(header.isa, kernels().isa, sizeof(header.isa)) == 0,
      "packed: expected what encoder_pack returned in this process");
  STD_TORCH_CHECK(made.layers == shape.layers && made.heads == shape.heads &&
                      made.width == shape.width && made.hidden == shape.hidden &&
                      made.precision == shape.precision,
                  "packed: made for another encoder: ", made.layers, " layers, ", made.heads,
                  " heads, width ", made.width, ", hidden ", made.hidden);
  STD_TORCH_CHECK(packed.numel() == kEncoderHeader + body, "packed: ", packed.numel(),
                  " bytes, expected ", kEncoderHeader + body);
  return base + kEncoderHeader;
}

// Sequences, the longest first: the last units of work are the short ones.
std::vector<int32_t> longest_first(const IndexArray& starts, int64_t batch, int64_t tokens) {
  std::vector<int32_t> order(static_cast<size_t>(batch));
  STD_TORCH_CHECK(starts[0] == 0 && starts[batch] == tokens, "cu_seq: goes from ", starts[0],
                  " to ", starts[batch], ", expected 0 to ", tokens);
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(starts[b] <= starts[b + 1], "cu_seq: falls at ", b + 1);
    order[static_cast<size_t>(b)] = static_cast<int32_t>(b);
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return starts[a + 1] - starts[a] > starts[b + 1] - starts[b];
  });
  return order;
}

Tensor encoder_forward(const Tensor& x, const Tensor& cu_seq, int64_t, const Tensor& packed,
                       int64_t layers, int64_t heads, int64_t hidden, double eps,
                       const std::string& activation, bool norm_first, bool causal,
                       const std::string& precision) {
  STD_TORCH_CHECK(x.dim() == 2, "x: expected (T, E)");
  STD_TORCH_CHECK(cu_seq.dim() == 1 && cu_seq.numel() > 0, "cu_seq: expected (B + 1,)");
  const bool wide = cu_seq.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || cu_seq.scalar_type() == ScalarType::Int,
                  "cu_seq: expected int32 or int64");
  EncoderForwardParams params = {};
  params.shape = {layers, heads, x.sizes()[1], hidden, precision_of(precision)};
  check_shape(params.shape);
  params.dtype = dtype_of(x);
  STD_TORCH_CHECK(params.dtype == DType::kFloat32 || params.dtype == DType::kBFloat16,
                  "x: expected float32 or bfloat16");
  params.packed = packed_data(packed, params.shape);
  const Tensor rows = dense(x), starts = dense(cu_seq);
  const Tensor out = empty(x, sizes_of(x), x.scalar_type());
  params.x = rows.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.tokens = x.sizes()[0];
  params.batch = cu_seq.numel() - 1;
  STD_TORCH_CHECK(params.tokens < int64_t{1} << 24, "x: too many tokens");
  params.starts = {starts.const_data_ptr(), wide};
  const auto order = longest_first(params.starts, params.batch, params.tokens);
  if (params.tokens == 0) return out;
  params.order = order.data();
  params.eps = eps;
  params.activation = activation_of(activation);
  params.norm_first = norm_first;
  params.causal = causal;
  params.num_threads = num_threads();
  const Workspace workspace(kernels().encoder.workspace(params));
  STD_TORCH_CHECK(workspace.data() != nullptr, "encoder: out of memory");
  params.workspace = workspace.data();
  kernels().encoder.forward(params);
  return out;
}

uint64_t mixed(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15;
  return hash ^ (hash >> 29);
}

// Of a weight's bytes: small ones whole; of larger ones a cache line of every page, or, since that
// would cost more than a short batch, 16 of them, one in each 16th; at a place that varies. What
// changes a weight without a trace (fused optimizers, averages, masks, merges) writes all of it or
// long runs. first: what else the hash is of.
uint64_t fingerprint_of(const char* data, int64_t bytes, bool pages, uint64_t first) {
  constexpr int64_t kLine = 64, kWhole = 4096;
  const int64_t lines = pages ? max_int(16, bytes / kWhole) : 16;
  // One chain a word of a line: a single one would wait for eight multiplications in a row.
  uint64_t chains[kLine / 8] = {first};
  const auto add = [&](int64_t begin, int64_t count) {
    for (int64_t i = 0; i < kLine / 8; ++i) {
      if (8 * i >= count) break;
      uint64_t word = 0;
      std::memcpy(&word, data + begin + 8 * i, static_cast<size_t>(min_int(8, count - 8 * i)));
      chains[i] = mixed(chains[i], word);
    }
  };
  if (bytes <= kWhole) {
    for (int64_t at = 0; at < bytes; at += kLine) add(at, min_int(kLine, bytes - at));
  } else {
    const int64_t part = bytes / lines / kLine;  // in cache lines, at least 4
    const auto place = [=](int64_t turn) { return (turn * part + turn * 37 % part) * kLine; };
    for (int64_t turn = 0; turn < lines; ++turn) {
      // Every line is on a page of its own, whose address no TLB holds: they are asked for ahead.
      __builtin_prefetch(data + place(min_int(turn + 16, lines - 1)));
      add(place(turn), kLine);
    }
    add(bytes - kLine, kLine);
  }
  uint64_t hash = 0x243f6a8885a308d3;
  for (const uint64_t chain : chains) hash = mixed(hash, chain);
  return hash;
}

// Of dtype and shape too.
uint64_t fingerprint_of(const Tensor& weight, bool pages) {
  uint64_t first = static_cast<uint64_t>(dtype_of(weight));
  for (const int64_t size : sizes_of(weight)) first = mixed(first, static_cast<uint64_t>(size));
  const int64_t bytes = weight.numel() * element_size(dtype_of(weight));
  return fingerprint_of(static_cast<const char*>(weight.const_data_ptr()), bytes, pages, first);
}

Tensor encoder_fingerprint(const Tensors& weights, bool pages) {
  STD_TORCH_CHECK(!weights.empty(), "weights: none given");
  Tensors kept;
  for (const Tensor& weight : weights) kept.push_back(dense(weight));
  const Tensor out = empty(weights[0], {static_cast<int64_t>(weights.size())}, ScalarType::Long);
  uint64_t* hashes = static_cast<uint64_t*>(out.mutable_data_ptr());
  parallel_tiles(num_threads(), static_cast<int64_t>(kept.size()), [&](int64_t i, int) {
    hashes[i] = fingerprint_of(kept[static_cast<size_t>(i)], pages);
  });
  return out;
}

}  // namespace
}  // namespace bigkernels

// One fingerprint of the bytes at (count, 2) addresses and sizes; hashes: (count,) scratch.
// Hundreds of tensors cost more on their way through torch's dispatcher than the hashing does.
extern "C" __attribute__((visibility("default"))) uint64_t bigkernels_fingerprint_at(
    int num_threads, int64_t count, const int64_t* places, int pages, uint64_t* hashes) {
  using namespace bigkernels;
  parallel_tiles(num_threads, count, [&](int64_t i, int) {
    const char* data = reinterpret_cast<const char*>(places[2 * i]);
    hashes[i] = fingerprint_of(data, places[2 * i + 1], pages != 0, 0);
  });
  uint64_t hash = 0;
  for (int64_t i = 0; i < count; ++i) hash = mixed(hash, hashes[i]);
  return hash;
}

STABLE_TORCH_LIBRARY_IMPL(bigkernels, CPU, m) {
  m.impl("encoder_pack_cpu", TORCH_BOX(&bigkernels::encoder_pack));
  m.impl("encoder_forward_cpu", TORCH_BOX(&bigkernels::encoder_forward));
  m.impl("encoder_fingerprint_cpu", TORCH_BOX(&bigkernels::encoder_fingerprint));
}
