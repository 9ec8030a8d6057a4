// torch's side of the attention room on the CPU: checks, allocates, fills the call.
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>

#include "isa/table.h"
#include "tensors.h"

namespace bigkernels {
namespace {

// The tensors of a call, kept alive (a copy where the kernels need another layout), and the call.
class Arguments {
 public:
  Arguments(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t causal,
            int64_t window_left, int64_t window_right)
      : q_(dense_rows(q)), k_(dense_rows(k)), v_(dense_rows(v)) {
    call.dtype = dtype_of(q);
    call.packed = q.dim() == 3;
    const int64_t rank = call.packed ? 3 : 4;
    STD_TORCH_CHECK(q.dim() == rank && k.dim() == rank && v.dim() == rank,
                    "q, k, v: expected (B, H, L, D) or packed (T, H, D)");
    STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                    "k, v: expected the dtype of q");
    const int64_t head = 1, row = call.packed ? 0 : 2;
    const auto q_sizes = q.sizes(), k_sizes = k.sizes(), v_sizes = v.sizes();
    call.batch = call.packed ? 0 : q_sizes[0];
    call.heads = q_sizes[head];
    call.heads_kv = k_sizes[head];
    call.length_q = q_sizes[row];
    call.length_k = k_sizes[row];
    call.dim = q_sizes[rank - 1];
    call.dim_v = v_sizes[rank - 1];
    STD_TORCH_CHECK(
        call.heads_kv > 0 && call.heads % call.heads_kv == 0 && v_sizes[head] == call.heads_kv,
        "k, v: the number of heads must divide that of q");
    STD_TORCH_CHECK(k_sizes[rank - 1] == call.dim && v_sizes[row] == call.length_k,
                    "k, v: sizes do not fit q and each other");
    STD_TORCH_CHECK(call.packed || (k_sizes[0] == call.batch && v_sizes[0] == call.batch),
                    "k, v: expected the batch of q");
    call.q = rows_of_heads(q_);
    call.k = rows_of_heads(k_);
    call.v = rows_of_heads(v_);
    call.scale = scale;
    call.causal = static_cast<int>(causal);
    call.window_left = window_left;
    call.window_right = window_right;
    call.num_threads = num_threads();
  }

  // (B, H, L, D) or packed (T, H, D) by strides; the rows are dense.
  static AttentionRows rows_of_heads(const Tensor& x) {
    const auto strides = x.strides();
    if (x.dim() == 3) return {x.data_ptr(), 0, strides[1], strides[0]};
    return {x.data_ptr(), strides[0], strides[1], strides[2]};
  }

  static Tensor dense_rows(const Tensor& x) {
    const int64_t last = x.dim() - 1;
    if (last < 0 || x.sizes()[last] <= 1 || x.strides()[last] == 1) return x;
    return torch::stable::contiguous(x);
  }

  void set_mask(const OptionalTensor& mask) {
    if (!mask.has_value()) return;
    const Tensor& m = *mask;
    const int64_t full[4] = {call.batch, call.heads, call.length_q, call.length_k};
    STD_TORCH_CHECK(!call.packed && m.dim() == 4, "mask: expected 4-D, beside 4-D q, k, v");
    const auto sizes = m.sizes(), strides = m.strides();
    int64_t steps[4];
    for (int dim = 0; dim < 4; ++dim) {
      STD_TORCH_CHECK(sizes[dim] == 1 || sizes[dim] == full[dim], "mask: dimension ", dim, " is ",
                      sizes[dim], ", expected 1 or ", full[dim]);
      steps[dim] = sizes[dim] == 1 ? 0 : strides[dim];
    }
    MaskType type = MaskType::kSameAsQuery;
    if (m.scalar_type() == ScalarType::Bool) {
      type = MaskType::kBool;
    } else if (dtype_of(m) != call.dtype) {
      STD_TORCH_CHECK(dtype_of(m) == DType::kFloat32, "mask: expected bool, float32 or q's dtype");
      type = MaskType::kFloat32;
    }
    call.mask = {m.const_data_ptr(), type, steps[0], steps[1], steps[2], steps[3]};
  }

  void set_lengths(const OptionalTensor& key_lengths, const OptionalTensor& cu_seq_q,
                   const OptionalTensor& cu_seq_k) {
    STD_TORCH_CHECK(cu_seq_q.has_value() == call.packed && cu_seq_k.has_value() == call.packed,
                    "cu_seq_q, cu_seq_k: both beside packed q, k, v, else neither");
    if (call.packed) {
      call.starts_q = indices(*cu_seq_q, "cu_seq_q", &starts_q_);
      call.starts_k = indices(*cu_seq_k, "cu_seq_k", &starts_k_);
      call.batch = starts_q_.numel() - 1;
      STD_TORCH_CHECK(call.batch >= 0 && starts_k_.numel() == call.batch + 1,
                      "cu_seq_q, cu_seq_k: expected (B + 1,) both");
      check_starts(call.starts_q, call.length_q, "cu_seq_q");
      check_starts(call.starts_k, call.length_k, "cu_seq_k");
    }
    if (key_lengths.has_value()) {
      STD_TORCH_CHECK(!call.packed && key_lengths->numel() == call.batch,
                      "key_lengths: expected (B,), beside 4-D q, k, v");
      call.key_lengths = indices(*key_lengths, "key_lengths", &key_lengths_);
    }
  }

  void set_dropout(double p, const OptionalTensor& seed, const OptionalTensor& offset,
                   const OptionalTensor& rows) {
    call.dropout_p = p;
    if (p <= 0) return;
    call.seed = int_or_zero(seed);
    call.offset = int_or_zero(offset);
    if (!rows.has_value()) return;
    rows_ = torch::stable::contiguous(*rows);
    const int64_t count = call.packed ? call.length_q : call.batch * call.length_q;
    STD_TORCH_CHECK(rows_.numel() == count, "rows: ", rows_.numel(), " elements, expected ", count);
    call.rows = rows_.const_data_ptr<int64_t>();
  }

  AttentionCall call = {};

 private:
  static IndexArray indices(const Tensor& x, const char* name, Tensor* kept) {
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(x.dim() == 1 && (type == ScalarType::Int || type == ScalarType::Long), name,
                    ": expected 1-D int32 or int64");
    *kept = torch::stable::contiguous(x);
    return {kept->const_data_ptr(), type == ScalarType::Long};
  }

  void check_starts(const IndexArray& starts, int64_t total, const char* name) const {
    bool rising = starts[0] == 0 && starts[call.batch] <= total;
    for (int64_t b = 0; b < call.batch; ++b) rising = rising && starts[b] <= starts[b + 1];
    STD_TORCH_CHECK(rising, name, ": expected 0, then rising ends up to ", total, " tokens");
  }

  Tensor q_, k_, v_;
  Tensor starts_q_, starts_k_, key_lengths_, rows_;
};

// The stride rule of contract.py, like_layout.
Tensor empty_like_layout(const Tensor& x, int64_t last) {
  Sizes sizes = sizes_of(x);
  sizes.back() = last;
  if (x.dim() != 4 || x.strides()[1] >= x.strides()[2]) return empty(x, sizes, x.scalar_type());
  const int64_t heads = max_int(1, sizes[1]), length = max_int(1, sizes[2]), row = max_int(1, last);
  return empty_strided(x, sizes, {length * heads * row, row, heads * row, 1}, x.scalar_type());
}

// Rows behind the last sequence, whose end is starts[batch], are no tile's: zeros of (T, H, D)...
void zero_behind(const Tensor& x, const AttentionCall& call, const IndexArray& starts) {
  if (!call.packed || x.numel() == 0) return;
  const int64_t row = x.numel() / x.sizes()[0] * x.element_size(), from = starts[call.batch];
  std::memset(static_cast<char*>(x.mutable_data_ptr()) + from * row, 0,
              (x.sizes()[0] - from) * row);
}

// ... and -infinity of (H, T).
template <typename T>
void fill_behind(T* lse, const AttentionCall& call) {
  if (!call.packed) return;
  for (int64_t h = 0; h < call.heads; ++h) {
    for (int64_t i = call.starts_q[call.batch]; i < call.length_q; ++i) {
      lse[h * call.length_q + i] = -std::numeric_limits<T>::infinity();
    }
  }
}

Tensor empty_statistics(const Tensor& q) {
  const auto sizes = q.sizes();
  const ScalarType type = scalar_type_of(statistics_dtype(dtype_of(q)));
  if (q.dim() == 3) return empty(q, {sizes[1], sizes[0]}, type);
  return empty(q, {sizes[0], sizes[1], sizes[2]}, type);
}

void check_served(double softcap, const OptionalTensor& alibi_slopes, const OptionalTensor& sinks) {
  STD_TORCH_CHECK(softcap == 0 && !alibi_slopes.has_value() && !sinks.has_value(),
                  "softcap, alibi_slopes, sinks: not served by the CPU kernels");
}

// out or dout: of q's sizes but for the last, with dense rows.
Tensor forward_value(const Tensor& x, const Tensor& q, int64_t last, const char* name) {
  Sizes sizes = sizes_of(q);
  sizes.back() = last;
  STD_TORCH_CHECK(sizes_of(x) == sizes && x.scalar_type() == q.scalar_type(), name,
                  ": expected the shape and dtype of the output");
  return Arguments::dense_rows(x);
}

// lse or dlse.
Tensor statistics(const Tensor& x, const Tensor& q, const char* name) {
  const Sizes sizes = sizes_of(q);
  STD_TORCH_CHECK(x.numel() * sizes.back() == q.numel() &&
                      x.scalar_type() == scalar_type_of(statistics_dtype(dtype_of(q))),
                  name, ": expected one number a query and head, of the statistics dtype");
  return torch::stable::contiguous(x);
}

// `lse` null: the room made for it is thrown away.
void run_forward(AttentionCall call, const Tensor& q, const Tensor& out, void* lse) {
  const AttentionKernels& room = kernels().attention;
  call.out = Arguments::rows_of_heads(out);
  const int64_t bytes = room.forward_scratch(call);
  const int64_t statistics = lse != nullptr ? 0 : q.numel() / call.dim * sizeof(double);
  // A call for a single token takes less time than an allocation.
  alignas(64) char local[8192];
  const int64_t lse_at = (bytes + 63) / 64 * 64;
  const bool fits = lse_at + statistics <= static_cast<int64_t>(sizeof(local));
  const Scratch scratch(q, fits ? 0 : lse_at + statistics);
  call.scratch = fits ? local : scratch.data();
  call.lse = lse != nullptr ? lse : static_cast<char*>(call.scratch) + lse_at;
  room.forward(call);
}

std::tuple<Tensor, Tensor> attention_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& mask,
    const OptionalTensor& key_lengths, const OptionalTensor& cu_seq_q,
    const OptionalTensor& cu_seq_k, int64_t, int64_t, double scale, int64_t causal,
    int64_t window_left, int64_t window_right, double softcap, const OptionalTensor& alibi_slopes,
    const OptionalTensor& sinks, double dropout_p, const OptionalTensor& seed,
    const OptionalTensor& offset, const OptionalTensor& rows) {
  check_served(softcap, alibi_slopes, sinks);
  Arguments arguments(q, k, v, scale, causal, window_left, window_right);
  arguments.set_mask(mask);
  arguments.set_lengths(key_lengths, cu_seq_q, cu_seq_k);
  arguments.set_dropout(dropout_p, seed, offset, rows);
  const Tensor out = empty_like_layout(q, arguments.call.dim_v), lse = empty_statistics(q);
  const AttentionCall& call = arguments.call;
  run_forward(call, q, out, lse.mutable_data_ptr());
  zero_behind(out, call, call.starts_q);
  if (call.dtype == DType::kFloat64) {
    fill_behind(lse.mutable_data_ptr<double>(), call);
  } else {
    fill_behind(lse.mutable_data_ptr<float>(), call);
  }
  return {out, lse};
}

// The call with nothing beside q, k and v, for which handling twenty arguments would take longer
// than a small call's arithmetic. No scale: 1 / sqrt(D).
Tensor attention_forward_plain(const Tensor& q, const Tensor& k, const Tensor& v,
                               std::optional<double> scale, int64_t causal) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "q, k, v: expected (B, H, L, D)");
  STD_TORCH_CHECK(q.sizes()[1] == k.sizes()[1], "k: expected as many heads as q has");
  STD_TORCH_CHECK(q.sizes()[3] > 0 && v.dim() == 4 && v.sizes()[3] > 0,
                  "q, v: expected head dimensions of at least 1");
  const Arguments arguments(q, k, v, scale.has_value() ? *scale : std::pow(q.sizes()[3], -0.5),
                            causal, -1, -1);
  const Tensor out = empty_like_layout(q, arguments.call.dim_v);
  run_forward(arguments.call, q, out, nullptr);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& dout, const OptionalTensor& dlse, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& out, const Tensor& lse, const OptionalTensor& mask,
    const OptionalTensor& key_lengths, const OptionalTensor& cu_seq_q,
    const OptionalTensor& cu_seq_k, int64_t, int64_t, double scale, int64_t causal,
    int64_t window_left, int64_t window_right, double softcap, const OptionalTensor& alibi_slopes,
    const OptionalTensor& sinks, double dropout_p, const OptionalTensor& seed,
    const OptionalTensor& offset, const OptionalTensor& rows, bool need_dmask) {
  check_served(softcap, alibi_slopes, sinks);
  Arguments arguments(q, k, v, scale, causal, window_left, window_right);
  arguments.set_mask(mask);
  arguments.set_lengths(key_lengths, cu_seq_q, cu_seq_k);
  arguments.set_dropout(dropout_p, seed, offset, rows);
  AttentionCall& call = arguments.call;
  const Tensor out_rows = forward_value(out, q, call.dim_v, "out");
  const Tensor dout_rows = forward_value(dout, q, call.dim_v, "dout");
  const Tensor lse_rows = statistics(lse, q, "lse");
  const Tensor dlse_rows = dlse.has_value() ? statistics(*dlse, q, "dlse") : lse_rows;
  const Tensor dq = empty_like_layout(q, call.dim), dk = empty_like_layout(k, call.dim),
               dv = empty_like_layout(v, call.dim_v);
  const bool wanted = need_dmask && mask.has_value();
  STD_TORCH_CHECK(!wanted || call.mask.type != MaskType::kBool, "mask: bool has no gradient");
  const Tensor dmask =
      wanted ? empty(q, sizes_of(*mask), mask->scalar_type()) : no_output(q, q.scalar_type());
  call.out = Arguments::rows_of_heads(out_rows);
  call.lse = lse_rows.data_ptr();
  AttentionGradients gradients = {};
  gradients.dout = Arguments::rows_of_heads(dout_rows);
  if (dlse.has_value()) gradients.dlse = dlse_rows.const_data_ptr();
  gradients.dq = Arguments::rows_of_heads(dq);
  gradients.dk = Arguments::rows_of_heads(dk);
  gradients.dv = Arguments::rows_of_heads(dv);
  if (wanted) gradients.dmask = dmask.mutable_data_ptr();
  for (int dim = 0; wanted && dim < 4; ++dim) gradients.mask_sizes[dim] = mask->sizes()[dim];
  const AttentionKernels& room = kernels().attention;
  const Scratch scratch(q, room.backward_scratch(call, gradients));
  call.scratch = scratch.data();
  room.backward(call, gradients);
  zero_behind(dq, call, call.starts_q);
  zero_behind(dk, call, call.starts_k);
  zero_behind(dv, call, call.starts_k);
  return {dq, dk, dv, dmask};
}

}  // namespace
}  // namespace bigkernels

STABLE_TORCH_LIBRARY_IMPL(bigkernels, CPU, m) {
  m.impl("attention_forward_cpu", TORCH_BOX(&bigkernels::attention_forward));
  m.impl("attention_forward_plain_cpu", TORCH_BOX(&bigkernels::attention_forward_plain));
  m.impl("attention_backward_cpu", TORCH_BOX(&bigkernels::attention_backward));
}
