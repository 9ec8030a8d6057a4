// The encoder in float32 vectors: every instruction set, and every precision that its tiles do not
// serve.
#pragma once

#include "attention/forward-inl.h"
#include "common/cpu/panels.h"
#include "encoder/rows-inl.h"
#include "ffn/activation-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// Floats from row to row: whole panels, and no multiple of a power of two that would make rows
// compete for the same lines of the cache.
inline int64_t padded_row(int64_t columns) {
  return round_up(round_up(columns, kPanelWidth), 64) + 16;
}

// W: the packed weights' type.
template <class W>
struct VectorEncoder {
  const EncoderForwardParams& p;
  const EncoderLayout layout;
  const RowGroups rows;
  const int64_t width_row, wide_row;  // strides of x and inner; of wide
  float *x, *inner, *wide;            // residual; normalized or attended rows; q k v or hidden
  float* lse;
  char* attention;  // scratch of each thread
  int64_t attention_bytes;
  AttentionCall call;
  int64_t bytes;

  explicit VectorEncoder(const EncoderForwardParams& p)
      : p(p),
        layout(p.shape),
        rows(p.tokens),
        width_row(padded_row(p.shape.width)),
        wide_row(padded_row(max_int(3 * p.shape.width, p.shape.hidden))) {
    Arena arena = {reinterpret_cast<uintptr_t>(p.workspace), 0};
    x = arena.take<float>(p.tokens * width_row);
    inner = arena.take<float>(p.tokens * width_row);
    wide = arena.take<float>(p.tokens * wide_row);
    lse = arena.take<float>(p.shape.heads * p.tokens);
    const int64_t dim = p.shape.width / p.shape.heads;
    call = attention_of(p, DType::kFloat32, dim);
    call.q = {wide, 0, dim, wide_row};
    call.k = {wide + p.shape.width, 0, dim, wide_row};
    call.v = {wide + 2 * p.shape.width, 0, dim, wide_row};
    call.out = {inner, 0, dim, width_row};
    call.lse = lse;
    attention_bytes = forward_scratch_per_thread<Vec>(call);
    attention = arena.take<char>(attention_bytes * p.num_threads);
    bytes = arena.used;
  }

  void end_row(int64_t r, RowEnd end) const {
    float* row = x + r * width_row;
    const auto finish = [&](int64_t c, Vec v, auto extent) {
      if (end.residual) {
        store(row + c, v, extent);
      } else if (!end.last) {
        store(inner + r * width_row + c, v, extent);
      }
      if (end.last) store_output(p, r, c, v, extent);
    };
    if (end.norm == nullptr && !end.last) return;  // x itself is the next product's input
    const RowNorm norm =
        end.norm != nullptr ? norm_of(row, p.shape.width, end.norm, p.eps) : RowNorm{};
    traverse<Vec>(0, p.shape.width, [&](int64_t c, auto extent) {
      const Vec sum = load<Vec>(row + c, extent);
      finish(c, end.norm != nullptr ? norm.apply(sum, c, extent) : sum, extent);
    });
  }

  void start(TeamMember member) const {
    const RowEnd end = row_start(p, layout);
    each_row(member, p.tokens, [&](int64_t r) {
      traverse<Vec>(0, p.shape.width, [&](int64_t c, auto extent) {
        store(x + r * width_row + c, load_input(p, r, c, extent), extent);
      });
      end_row(r, end);
    });
  }

  // epilogue(place, c, sums): sums of columns c on, and their place in out.
  template <class E>
  void multiply(TeamMember member, const LayerWeights& layer, int product, const float* from,
                int64_t from_row, float* out, int64_t out_row, const E& epilogue) const {
    const int64_t depth = product_depth(p.shape, product);
    const PanelWork work(rows, product_rows(p.shape, product), depth);
    const W* weight = static_cast<const W*>(layer.weight(product));
    member.begin(work.count());
    multiply_panels(member, rows, work,
                    PanelProduct<W>{from, from_row, weight, depth, out, out_row}, epilogue);
  }

  // A vector of the product's results: its sums, scaled where weights are integers, and the bias.
  Vec result(const LayerWeights& layer, int product, int64_t c, const float* sums) const {
    const float* bias = layer.bias(product);
    if constexpr (sizeof(W) == 1) {
      const float* scales = bias + round_up(product_rows(p.shape, product), EncoderLayout::kBlock);
      return fma(Vec::load(sums), Vec::load(scales + c), Vec::load(bias + c));
    } else {
      return Vec::load(sums) + Vec::load(bias + c);
    }
  }

  // wide = f(product + bias)
  template <class F>
  void widen(TeamMember member, const LayerWeights& layer, int product, const float* from,
             const F& f) const {
    multiply(member, layer, product, from, width_row, wide, wide_row,
             [&](float* place, int64_t c, const float* sums) {
               for (int64_t v = 0; v < kPanelWidth; v += Vec::kLanes)
                 store(place + v, f(result(layer, product, c + v, sums + v)));
             });
  }

  // x = x + product + bias, then what follows once rows are complete.
  void narrow(TeamMember member, const LayerWeights& layer, int product, const float* from,
              int64_t from_row, RowEnd end) const {
    multiply(member, layer, product, from, from_row, x, width_row,
             [&](float* place, int64_t c, const float* sums) {
               for (int64_t v = 0; v < kPanelWidth; v += Vec::kLanes)
                 store(place + v, Vec::load(place + v) + result(layer, product, c + v, sums + v));
             });
    each_row(member, p.tokens, [&](int64_t r) { end_row(r, end); });
  }

  void attend(TeamMember member) const {
    const int64_t chunk = kPanelsPerWork * kPanelVectors * Vec::kLanes;
    const WorkList list = {p.shape.heads, chunk, 0, p.batch, nullptr};
    const Arena own = {reinterpret_cast<uintptr_t>(attention + member.thread * attention_bytes), 0};
    member.begin(p.batch * p.shape.heads);
    for (int64_t item = member.claim(); item >= 0; item = member.claim()) {
      const int64_t sequence = p.order[item / p.shape.heads], head = item % p.shape.heads;
      const int64_t length = p.starts[sequence + 1] - p.starts[sequence];
      for (int64_t i = 0; i < ceil_div(length, chunk); ++i) {
        forward_work<Vec, float>(call, list, {sequence, head, i}, own);
      }
    }
  }

  void run(TeamMember member) const {
    start(member);
    const float* input = p.norm_first ? inner : x;
    for (int64_t i = 0; i < p.shape.layers; ++i) {
      const LayerWeights layer = layer_of(p, layout, i);
      widen(member, layer, kQueryKeyValue, input, [](Vec v) { return v; });
      attend(member);
      narrow(member, layer, kOut, inner, width_row, row_end(p, layout, i, 0));
      visit_activation(p.activation, [&]<FfnActivation kActivation>() {
        widen(member, layer, kUp, input, [](Vec v) { return activate<kActivation>(v); });
      });
      narrow(member, layer, kDown, wide, wide_row, row_end(p, layout, i, 1));
    }
  }
};

template <class W>
void forward_vectors(const EncoderForwardParams& p) {
  const VectorEncoder<W> encoder(p);
  run_team(p.num_threads, [&](TeamMember member) { encoder.run(member); });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
