// The encoder on AMX tiles: bfloat16 products, each float32 one as three of those, or int8. Between
// the products everything lies as the next one's tiles read it.
#pragma once

#include "attention/tiles_forward-inl.h"
#include "common/cpu/tile_products.h"
#include "encoder/tiles_int8-inl.h"
#include "ffn/narrow_activation-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

// depth: of K in a tile.
inline bool tiles_serve(const EncoderShape& shape, int64_t depth) {
  if (shape.width % depth != 0 || shape.hidden % depth != 0) return false;
  const int64_t dim = shape.width / shape.heads;
  return dim % kPairSide == 0 && dim <= 256;
}

template <TileKind kKind>
struct TileEncoder {
  static constexpr bool kSplit = kKind == TileKind::kSplit;
  static constexpr bool kIntegers = kKind == TileKind::kInt8 || kKind == TileKind::kInt16;
  static constexpr TileKind kContext = kIntegers ? TileKind::kPlain : kKind;
  // What the attention reads: float32 where products are to be as good as float32's.
  static constexpr DType kAttended = kSplit ? DType::kFloat32 : DType::kBFloat16;

  const EncoderForwardParams& p;
  const EncoderLayout layout;
  const int64_t width, groups, width_row, wide_row, hidden_row;
  float* x;         // residual
  char* heads;      // q k v, rows of kAttended
  float* attended;  // rows of the attention's results (kSplit) or of normalized ones (kIntegers)
  BFloat16* wide;   // kIntegers: rows of the hidden layer
  RowScales input_scales, hidden_scales;
  float* lse;
  LeftRows<kKind> input, hidden;
  LeftRows<kContext> context;
  char* attention;  // scratch of each thread
  float* carried;   // the same
  int64_t attention_bytes, carried_floats;
  AttentionCall call;
  int64_t bytes;

  explicit TileEncoder(const EncoderForwardParams& p)
      : p(p),
        layout(p.shape),
        width(p.shape.width),
        groups(ceil_div(p.tokens, kPairSide)),
        width_row(round_up(width, 64) + 16),
        wide_row(round_up(3 * width, 64) + 32),
        hidden_row(p.shape.hidden + 32),
        input(nullptr, p.tokens, width),
        hidden(nullptr, p.tokens, p.shape.hidden),
        context(nullptr, p.tokens, width) {
    Arena arena = {reinterpret_cast<uintptr_t>(p.workspace), 0};
    const int64_t rows = groups * kPairSide;
    x = arena.take<float>(rows * width_row);
    heads = arena.take<char>(rows * wide_row * element_size(kAttended));
    attended = arena.take<float>(kSplit || kIntegers ? rows * width_row : 0);
    wide = arena.take<BFloat16>(kIntegers ? rows * hidden_row : 0);
    input_scales = {arena.take<float>(rows), arena.take<float>(rows)};
    hidden_scales = {arena.take<float>(rows), arena.take<float>(rows)};
    lse = arena.take<float>(p.shape.heads * p.tokens);
    input.data = arena.take<char>(LeftRows<kKind>::bytes(p.tokens, width));
    context.data = arena.take<char>(LeftRows<kContext>::bytes(p.tokens, width));
    hidden.data = arena.take<char>(LeftRows<kKind>::bytes(p.tokens, p.shape.hidden));
    prepare_attention();
    attention = arena.take<char>(attention_bytes * p.num_threads);
    carried_floats = 0;
    for (int product = 0; product < kEncoderProducts; ++product) {
      const TileWork work = product == kOut ? work_of<kContext>(product) : work_of<kKind>(product);
      carried_floats = max_int(carried_floats, work.carried());
    }
    carried = arena.take<float>(carried_floats * p.num_threads);
    bytes = arena.used;
  }

  void prepare_attention() {
    const int64_t dim = width / p.shape.heads, part = width * element_size(kAttended);
    call = attention_of(p, kAttended, dim);
    call.q = {heads, 0, dim, wide_row};
    call.k = {heads + part, 0, dim, wide_row};
    call.v = {heads + 2 * part, 0, dim, wide_row};
    call.out = {attended, 0, dim, width_row};
    call.lse = lse;
    attention_bytes = kSplit ? forward_scratch_per_thread<Vec>(call) : forward_tile_scratch(call);
  }

  // From the row's sum with the residual on.
  void end_row(int64_t r, RowEnd end) const {
    float* row = x + r * width_row;
    float* result = end.residual ? row : kIntegers ? attended + r * width_row : nullptr;
    const RowNorm norm = end.norm != nullptr ? norm_of(row, width, end.norm, p.eps) : RowNorm{};
    for (int64_t c = 0; c < width; c += kTileDepth) {
      Vec low = Vec::load(row + c), high = Vec::load(row + c + Vec::kLanes);
      if (end.norm != nullptr) {
        low = norm.apply(low, c, Whole{});
        high = norm.apply(high, c + Vec::kLanes, Whole{});
      }
      if (result != nullptr) {
        store(result + c, low);
        store(result + c + Vec::kLanes, high);
      }
      if (end.last) {
        store_output(p, r, c, low, Whole{});
        store_output(p, r, c + Vec::kLanes, high, Whole{});
      } else if constexpr (!kIntegers) {
        input.store(r, c / kTileDepth, low, high);
      }
    }
    if constexpr (kIntegers) {
      if (!end.last) quantize_row(result, r, width, input, input_scales);
    }
  }

  void start(TeamMember member) const {
    const RowEnd end = row_start(p, layout);
    each_row(member, p.tokens, [&](int64_t r) {
      for (int64_t c = 0; c < width; c += Vec::kLanes) {
        store(x + r * width_row + c, load_input(p, r, c, Whole{}));
      }
      end_row(r, end);
    });
  }

  // Rows lie too far apart for the CPU to foresee the next one.
  static void fetch(const void* line) { _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0); }

  template <TileKind kOperand>
  TileWork work_of(int product) const {
    return TileWork(LeftRows<kOperand>::tiles_of(p.tokens), product_rows(p.shape, product),
                    product_depth(p.shape, product) / operand_depth<kOperand>(),
                    operand_bytes<kOperand>(), p.num_threads);
  }

  template <TileKind kOperand, class A, class E>
  void multiply(TeamMember member, const LayerWeights& layer, int product,
                const LeftRows<kOperand>& from, RowScales scales, const A& approach,
                const E& epilogue) const {
    const TileWork work = work_of<kOperand>(product);
    const float* bias = layer.bias(product);
    const ColumnScales by = {scales, bias, product_rows(p.shape, product)};
    member.begin(work.count());
    multiply_tile_panels(
        member, work, from, static_cast<const char*>(layer.weight(product)),
        carried + member.thread * carried_floats, approach,
        [&](int64_t r, int64_t c, const float* sums) __attribute__((always_inline)) {
          if constexpr (kOperand == TileKind::kInt8) {
            epilogue(r, c, by.apply(r, c, sums), by.apply(r, c + Vec::kLanes, sums + Vec::kLanes));
          } else if constexpr (kOperand == TileKind::kInt16) {
            const float* low = sums + kTileSide * kPairSide;
            epilogue(r, c, by.apply_pair(r, c, sums, low),
                     by.apply_pair(r, c + Vec::kLanes, sums + Vec::kLanes, low + Vec::kLanes));
          } else {
            epilogue(r, c, Vec::load(sums) + Vec::load(bias + c),
                     Vec::load(sums + Vec::kLanes) + Vec::load(bias + c + Vec::kLanes));
          }
        });
  }

  void project(TeamMember member, const LayerWeights& layer) const {
    multiply(
        member, layer, kQueryKeyValue, input, input_scales,
        [&](int64_t r, int64_t c) { fetch(heads + (r * wide_row + c) * element_size(kAttended)); },
        [&](int64_t r, int64_t c, Vec low, Vec high) __attribute__((always_inline)) {
          if constexpr (kSplit) {
            float* out = reinterpret_cast<float*>(heads) + r * wide_row + c;
            store(out, low);
            store(out + Vec::kLanes, high);
          } else {
            BFloat16* out = reinterpret_cast<BFloat16*>(heads) + r * wide_row + c;
            store_bits(out, narrow_pair(low, high));
          }
        });
  }

  void raise(TeamMember member, const LayerWeights& layer) const {
    visit_activation(p.activation, [&]<FfnActivation kActivation>() {
      const NarrowActivation<kActivation> narrowed;
      multiply(
          member, layer, kUp, input, input_scales,
          [&](int64_t r, int64_t c) {
            if constexpr (kIntegers) fetch(wide + r * hidden_row + c);
          },
          [&](int64_t r, int64_t c, Vec low, Vec high) __attribute__((always_inline)) {
            if constexpr (kSplit) {
              const Pair<Vec> y = activate<kActivation>(Pair<Vec>{low, high});
              hidden.store(r, c / kTileDepth, y.low, y.high);
            } else if constexpr (kIntegers) {
              store_bits(wide + r * hidden_row + c, narrow_pair(narrowed(low), narrowed(high)));
            } else {
              hidden.store(r, c / kTileDepth, narrowed(low), narrowed(high));
            }
          });
    });
    if constexpr (kIntegers) {
      each_row(member, p.tokens, [&](int64_t r) {
        quantize_row(wide + r * hidden_row, r, p.shape.hidden, hidden, hidden_scales);
      });
    }
  }

  // x = x + product + bias, then what follows once rows are complete.
  template <TileKind kOperand>
  void narrow(TeamMember member, const LayerWeights& layer, int product,
              const LeftRows<kOperand>& from, RowEnd end) const {
    multiply(
        member, layer, product, from, hidden_scales,
        [&](int64_t r, int64_t c) {
          const float* row = x + r * width_row + c;
          fetch(row);
          fetch(row + Vec::kLanes);
        },
        [&](int64_t r, int64_t c, Vec low, Vec high) __attribute__((always_inline)) {
          float* row = x + r * width_row + c;
          store(row, Vec::load(row) + low);
          store(row + Vec::kLanes, Vec::load(row + Vec::kLanes) + high);
        });
    each_row(member, p.tokens, [&](int64_t r) { end_row(r, end); });
  }

  // A panel of queries' results as left operands.
  void store_attended(const Sequence& s, int64_t head, const TilePanel& panel) const {
    const int64_t count = panel.queries.end - panel.queries.begin;
    const int64_t first = s.query + panel.queries.begin;
    for (int64_t r = 0; r < count; ++r) {
      const Vec factor = Vec::broadcast(panel.carry[r]);
      const float* row = panel.out + r * call.dim;
      for (int64_t d = 0; d < call.dim; d += kTileDepth) {
        context.store(first + r, (head * call.dim + d) / kTileDepth, Vec::load(row + d) * factor,
                      Vec::load(row + d + Vec::kLanes) * factor);
      }
    }
  }

  // The same from float32 rows.
  void split_attended(int64_t sequence, int64_t head) const {
    for (int64_t r = p.starts[sequence]; r < p.starts[sequence + 1]; ++r) {
      for (int64_t c = head * call.dim; c < (head + 1) * call.dim; c += kTileDepth) {
        const float* row = attended + r * width_row + c;
        context.store(r, c / kTileDepth, Vec::load(row), Vec::load(row + Vec::kLanes));
      }
    }
  }

  void attend(TeamMember member) const {
    const int64_t chunk =
        kSplit ? kPanelsPerWork * kPanelVectors * Vec::kLanes : kTilePanels * kPairSide;
    const WorkList list = {p.shape.heads, chunk, 0, p.batch, nullptr};
    const Arena own = {reinterpret_cast<uintptr_t>(attention + member.thread * attention_bytes), 0};
    const Exponent exponent = exponent_of(call);
    member.begin(p.batch * p.shape.heads);
    const TileScope tiles;  // kSplit leaves them empty
    for (int64_t item = member.claim(); item >= 0; item = member.claim()) {
      const int64_t sequence = p.order[item / p.shape.heads], head = item % p.shape.heads;
      const int64_t length = p.starts[sequence + 1] - p.starts[sequence];
      for (int64_t i = 0; i < ceil_div(length, chunk); ++i) {
        const Work work = {sequence, head, i};
        if constexpr (kSplit) {
          forward_work<Vec, float>(call, list, work, own);
        } else {
          forward_tile_work(call, list, work, exponent, nullptr, own, nullptr,
                            [&](const AttentionCall&, const Sequence& s, int64_t h,
                                const Exponent& e, TilePanel* panel) {
                              finish_statistics(call, s, h, e, panel);
                              store_attended(s, h, *panel);
                            });
        }
      }
      if constexpr (kSplit) split_attended(sequence, head);
    }
  }

  void run(TeamMember member) const {
    start(member);
    for (int64_t i = 0; i < p.shape.layers; ++i) {
      const LayerWeights layer = layer_of(p, layout, i);
      project(member, layer);
      attend(member);
      narrow(member, layer, kOut, context, row_end(p, layout, i, 0));
      raise(member, layer);
      narrow(member, layer, kDown, hidden, row_end(p, layout, i, 1));
    }
  }
};

template <TileKind kKind>
void forward_tiles(const EncoderForwardParams& p) {
  const TileEncoder<kKind> encoder(p);
  run_team(p.num_threads, [&](TeamMember member) { encoder.run(member); });
}

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
