// The attention room on NumPy arrays.
#pragma once

#include <cstring>
#include <memory>

#include "module_arrays.h"

namespace bigkernels {

// Of exactly the size asked for, and NaN: reads of what nobody wrote show in the results.
inline std::unique_ptr<char[]> poisoned_scratch(int64_t bytes) {
  std::unique_ptr<char[]> scratch(new char[bytes]);
  std::memset(scratch.get(), 0xff, bytes);
  return scratch;
}

inline py::array poisoned_array(const py::dtype& dtype, const std::vector<py::ssize_t>& shape) {
  py::array array = new_array(dtype, shape);
  std::memset(array.mutable_data(), 0xff, array.nbytes());
  return array;
}

// (B, H, L, D) or packed (T, H, D).
inline AttentionRows attention_rows(const py::array& array, const char* name, DType dtype,
                                    bool packed) {
  check_array(array, name, dtype);
  if (array.ndim() != (packed ? 3 : 4))
    throw std::invalid_argument(std::string(name) + ": wrong number of dimensions");
  const int64_t item = array.itemsize();
  AttentionRows rows = {const_cast<void*>(array.data()), 0, array.strides(1) / item,
                        array.strides(packed ? 0 : 2) / item};
  if (!packed) rows.batch = array.strides(0) / item;
  return rows;
}

inline IndexArray attention_indices(const py::array& array) {
  if (array.ndim() != 1 || array.strides(0) != array.itemsize())
    throw std::invalid_argument("starts, lengths: must be 1-D and dense");
  return {array.data(), array.itemsize() == 8};
}

// A call and the arrays it points into.
class NativeAttention {
 public:
  NativeAttention(const std::string& dtype, py::array q, py::array k, py::array v,
                  const py::kwargs& options)
      : q_(q), k_(k), v_(v) {
    call.dtype = dtype_named(dtype);
    call.packed = q.ndim() == 3;
    call.q = attention_rows(q, "q", call.dtype, call.packed);
    call.k = attention_rows(k, "k", call.dtype, call.packed);
    call.v = attention_rows(v, "v", call.dtype, call.packed);
    const int head = 1, row = call.packed ? 0 : 2, last = call.packed ? 2 : 3;
    call.batch = q.shape(0);
    call.heads = q.shape(head);
    call.heads_kv = k.shape(head);
    call.length_q = q.shape(row);
    call.length_k = k.shape(row);
    call.dim = q.shape(last);
    call.dim_v = v.shape(last);
    call.scale = 1;
    call.window_left = call.window_right = -1;
    call.num_threads = 1;
    for (const auto& [key, value] : options) set(py::cast<std::string>(key), value);
  }

  py::array like_q(int64_t last) const {
    std::vector<py::ssize_t> shape(q_.shape(), q_.shape() + q_.ndim());
    shape.back() = last;
    return poisoned_array(q_.dtype(), shape);
  }

  py::array statistics() const {
    const py::dtype dtype = numpy_dtype(statistics_dtype(call.dtype));
    if (call.packed) return poisoned_array(dtype, {call.heads, call.length_q});
    return poisoned_array(dtype, {call.batch, call.heads, call.length_q});
  }

  static py::array like(const py::array& array) {
    return poisoned_array(array.dtype(), {array.shape(), array.shape() + array.ndim()});
  }

  AttentionCall call = {};
  std::optional<py::array> mask;

 private:
  void set(const std::string& name, const py::handle& value) {
    if (name == "mask") return set_mask(py::cast<py::array>(value));
    if (name == "starts_q" || name == "starts_k" || name == "key_lengths") {
      kept_.push_back(py::cast<py::array>(value));
      const IndexArray indices = attention_indices(kept_.back());
      if (name == "key_lengths") {
        call.key_lengths = indices;
      } else {
        (name == "starts_q" ? call.starts_q : call.starts_k) = indices;
        call.batch = kept_.back().size() - 1;
      }
    } else if (name == "scale") {
      call.scale = py::cast<double>(value);
    } else if (name == "causal") {
      call.causal = py::cast<int>(value);
    } else if (name == "window") {
      std::tie(call.window_left, call.window_right) = py::cast<std::pair<int64_t, int64_t>>(value);
    } else if (name == "p") {
      call.dropout_p = py::cast<double>(value);
    } else if (name == "seed") {
      call.seed = py::cast<int64_t>(value);
    } else if (name == "num_threads") {
      call.num_threads = py::cast<int>(value);
    } else {
      throw std::invalid_argument("unknown option: " + name);
    }
  }

  void set_mask(const py::array& array) {
    if (array.ndim() != 4) throw std::invalid_argument("mask: must be 4-D");
    mask = array;
    MaskType type = MaskType::kSameAsQuery;
    if (array.dtype().is(py::dtype::of<bool>())) {
      type = MaskType::kBool;
    } else if (!array.dtype().is(q_.dtype())) {
      type = MaskType::kFloat32;
    }
    int64_t steps[4];
    for (int dim = 0; dim < 4; ++dim) {
      steps[dim] = array.shape(dim) == 1 ? 0 : array.strides(dim) / array.itemsize();
    }
    call.mask = {array.data(), type, steps[0], steps[1], steps[2], steps[3]};
  }

  py::array q_, k_, v_;
  std::vector<py::array> kept_;
};

inline py::tuple native_attention_forward(const std::string& isa, const std::string& dtype,
                                          py::array q, py::array k, py::array v,
                                          const py::kwargs& options) {
  NativeAttention room(dtype, q, k, v, options);
  AttentionCall& call = room.call;
  py::array out = room.like_q(call.dim_v), lse = room.statistics();
  call.out = attention_rows(out, "out", call.dtype, call.packed);
  call.lse = lse.mutable_data();
  const AttentionKernels& kernels = table_of(isa).attention;
  const auto scratch = poisoned_scratch(kernels.forward_scratch(call));
  call.scratch = scratch.get();
  {
    py::gil_scoped_release no_gil;
    kernels.forward(call);
  }
  return py::make_tuple(out, lse);
}

// Returns (dq, dk, dv, dmask or None); dmask where the mask is additive.
inline py::tuple native_attention_backward(const std::string& isa, const std::string& dtype,
                                           py::array dout, std::optional<py::array> dlse,
                                           py::array q, py::array k, py::array v, py::array out,
                                           py::array lse, const py::kwargs& options) {
  NativeAttention room(dtype, q, k, v, options);
  AttentionCall& call = room.call;
  call.out = attention_rows(out, "out", call.dtype, call.packed);
  call.lse = lse.mutable_data();
  py::array dq = NativeAttention::like(q), dk = NativeAttention::like(k),
            dv = NativeAttention::like(v);
  AttentionGradients gradients = {};
  gradients.dout = attention_rows(dout, "dout", call.dtype, call.packed);
  if (dlse.has_value()) gradients.dlse = dlse->data();
  gradients.dq = attention_rows(dq, "dq", call.dtype, call.packed);
  gradients.dk = attention_rows(dk, "dk", call.dtype, call.packed);
  gradients.dv = attention_rows(dv, "dv", call.dtype, call.packed);
  py::object dmask = py::none();
  if (room.mask.has_value() && call.mask.type != MaskType::kBool) {
    py::array array = NativeAttention::like(*room.mask);
    gradients.dmask = array.mutable_data();
    for (int dim = 0; dim < 4; ++dim) gradients.mask_sizes[dim] = array.shape(dim);
    dmask = array;
  }
  const AttentionKernels& kernels = table_of(isa).attention;
  const auto scratch = poisoned_scratch(kernels.backward_scratch(call, gradients));
  call.scratch = scratch.get();
  {
    py::gil_scoped_release no_gil;
    kernels.backward(call, gradients);
  }
  return py::make_tuple(dq, dk, dv, dmask);
}

// Options of both: mask, starts_q, starts_k, key_lengths, scale (1), causal, window, p, seed,
// num_threads.
inline void define_attention(py::module_& m) {
  m.def("attention_forward", native_attention_forward);
  m.def("attention_backward", native_attention_backward);
}

}  // namespace bigkernels
