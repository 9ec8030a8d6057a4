// The ffn room on NumPy arrays: its products on tiles, and what lies between products.
#pragma once

#include "common/cpu/workspace.h"
#include "module_arrays.h"

namespace bigkernels {

inline FfnActivation activation_named(const std::string& name) {
  const char* names[] = {"gelu", "gelu_tanh", "relu", "silu"};
  for (int i = 0; i < 4; ++i)
    if (name == names[i]) return static_cast<FfnActivation>(i);
  throw std::invalid_argument("activation: " + name);
}

// A (M, F) array, F adjacent elements a row and no gaps; null where the array is absent.
inline void* plane_data(std::optional<py::array>& array, const char* name, DType dtype,
                        int64_t rows, int64_t columns) {
  if (!array.has_value()) return nullptr;
  const Matrix matrix(*array, name, dtype);
  if (matrix.rows != rows || matrix.columns != columns || (rows > 1 && matrix.stride != columns))
    throw std::invalid_argument(std::string(name) + ": must be dense and of the shape of pre");
  return array->mutable_data();
}

inline const void* bias_data(const std::optional<py::array>& array, const char* name, DType dtype,
                             int64_t columns) {
  if (!array.has_value()) return nullptr;
  check_array(*array, name, dtype);
  if (array->size() != columns) throw std::invalid_argument(std::string(name) + ": wrong size");
  return array->data();
}

using OptionalPlane = std::optional<py::array>;

template <class Params>
Params ffn_params(const std::string& dtype, const std::string& activation, py::array& pre,
                  OptionalPlane& gate, const OptionalPlane& pre_bias,
                  const OptionalPlane& gate_bias, double p, int64_t seed, int num_threads) {
  Params params = {};
  params.dtype = dtype_named(dtype);
  const Matrix matrix(pre, "pre", params.dtype);
  params.row_count = matrix.rows;
  params.columns = matrix.columns;
  OptionalPlane pre_plane = pre;
  params.pre = {plane_data(pre_plane, "pre", params.dtype, matrix.rows, matrix.columns),
                bias_data(pre_bias, "pre_bias", params.dtype, matrix.columns)};
  params.gate = {plane_data(gate, "gate", params.dtype, matrix.rows, matrix.columns),
                 bias_data(gate_bias, "gate_bias", params.dtype, matrix.columns)};
  params.activation = activation_named(activation);
  params.dropout = {p, seed, 0, nullptr, max_int(1, matrix.rows)};
  params.num_threads = num_threads;
  return params;
}

// Writes `hidden`, which may be `pre`; with keep_products also pre + bias to `pre` (gate alike).
inline void native_ffn_forward(const std::string& isa, const std::string& dtype,
                               const std::string& activation, py::array pre, py::array hidden,
                               OptionalPlane gate, const OptionalPlane& pre_bias,
                               const OptionalPlane& gate_bias, bool keep_products, double p,
                               int64_t seed, int num_threads) {
  auto params = ffn_params<FfnForwardParams>(dtype, activation, pre, gate, pre_bias, gate_bias, p,
                                             seed, num_threads);
  OptionalPlane hidden_plane = hidden;
  params.hidden =
      plane_data(hidden_plane, "hidden", params.dtype, params.row_count, params.columns);
  params.keep_products = keep_products;
  const FfnKernels& kernels = table_of(isa).ffn;
  py::gil_scoped_release no_gil;
  kernels.forward(params);
}

// Turns dhidden into dpre in place, fills dgate and hidden where given; returns (dbias1,
// dbias_gate).
inline py::tuple native_ffn_backward(const std::string& isa, const std::string& dtype,
                                     const std::string& activation, py::array pre,
                                     py::array dhidden, OptionalPlane gate, OptionalPlane dgate,
                                     OptionalPlane hidden, const OptionalPlane& pre_bias,
                                     const OptionalPlane& gate_bias, double p, int64_t seed,
                                     int num_threads) {
  auto params = ffn_params<FfnBackwardParams>(dtype, activation, pre, gate, pre_bias, gate_bias, p,
                                              seed, num_threads);
  const int64_t rows = params.row_count, columns = params.columns;
  OptionalPlane dhidden_plane = dhidden;
  params.dpre = plane_data(dhidden_plane, "dhidden", params.dtype, rows, columns);
  params.dhidden = params.dpre;
  params.dgate = plane_data(dgate, "dgate", params.dtype, rows, columns);
  params.hidden = plane_data(hidden, "hidden", params.dtype, rows, columns);
  py::array dbias1 = new_array(pre.dtype(), {columns}),
            dbias_gate = new_array(pre.dtype(), {columns});
  params.dbias1 = dbias1.mutable_data();
  params.dbias_gate = params.gate.data != nullptr ? dbias_gate.mutable_data() : nullptr;
  std::vector<double> scratch(ffn_backward_scratch(params) / 8 + 1);
  params.scratch = scratch.data();
  const FfnKernels& kernels = table_of(isa).ffn;
  {
    py::gil_scoped_release no_gil;
    kernels.backward(params);
  }
  return py::make_tuple(dbias1, dbias_gate);
}

inline py::array native_column_sums(const std::string& isa, const std::string& dtype,
                                    const py::array& data, int num_threads) {
  ColumnSumsParams params = {};
  params.dtype = dtype_named(dtype);
  const Matrix matrix(data, "data", params.dtype);
  py::array out = new_array(data.dtype(), {matrix.columns});
  params.data = matrix.data;
  params.out = out.mutable_data();
  params.row_count = matrix.rows;
  params.columns = matrix.columns;
  params.row_stride = matrix.stride;
  params.num_threads = num_threads;
  std::vector<double> scratch(column_sums_scratch(params) / 8 + 1);
  params.scratch = scratch.data();
  const FfnKernels& kernels = table_of(isa).ffn;
  {
    py::gil_scoped_release no_gil;
    kernels.column_sums(params);
  }
  return out;
}

// A matrix by strides, rows or columns dense.
inline FfnOperand strided_operand(const py::array& array, const char* name) {
  if (!array.dtype().is(numpy_dtype(DType::kBFloat16)) || array.ndim() != 2)
    throw std::invalid_argument(std::string(name) + ": expected the bits of a bfloat16 matrix");
  return {array.data(), array.strides(0) / 2, array.strides(1) / 2};
}

// out (M, N) = a (M, K) b (K, N), or out + a b, or bias (N,) + a b, in bfloat16. False, and nothing
// done, where this instruction set does not serve it.
inline bool native_ffn_multiply(const std::string& isa, const py::array& a, const py::array& b,
                                py::array& out, const std::optional<py::array>& bias, bool add,
                                int num_threads) {
  FfnMultiplyParams params = {};
  params.dtype = DType::kBFloat16;
  params.a = strided_operand(a, "a");
  params.b = strided_operand(b, "b");
  const Matrix result(out, "out", params.dtype);
  params.rows = a.shape(0);
  params.depth = a.shape(1);
  params.columns = b.shape(1);
  if (b.shape(0) != params.depth || result.rows != params.rows || result.columns != params.columns)
    throw std::invalid_argument("a, b, out: shapes do not fit");
  params.out = out.mutable_data();
  params.out_row = result.stride;
  params.bias = bias_data(bias, "bias", params.dtype, params.columns);
  params.add = add;
  params.num_threads = num_threads;
  const FfnKernels& kernels = table_of(isa).ffn;
  const int64_t bytes = kernels.multiply_scratch(params);
  if (bytes < 0) return false;
  const Workspace scratch(bytes);
  params.scratch = scratch.data();
  {
    py::gil_scoped_release no_gil;
    kernels.multiply(params);
  }
  return true;
}

inline void define_ffn(py::module_& m) {
  m.def("ffn_multiply", native_ffn_multiply, py::arg("isa"), py::arg("a"), py::arg("b"),
        py::arg("out"), py::arg("bias") = py::none(), py::arg("add") = false,
        py::arg("num_threads") = 1);
  m.def("ffn_forward", native_ffn_forward, py::arg("isa"), py::arg("dtype"), py::arg("activation"),
        py::arg("pre"), py::arg("hidden"), py::arg("gate") = py::none(),
        py::arg("pre_bias") = py::none(), py::arg("gate_bias") = py::none(),
        py::arg("keep_products") = false, py::arg("p") = 0.0, py::arg("seed") = 0,
        py::arg("num_threads") = 1);
  m.def("ffn_backward", native_ffn_backward, py::arg("isa"), py::arg("dtype"),
        py::arg("activation"), py::arg("pre"), py::arg("dhidden"), py::arg("gate") = py::none(),
        py::arg("dgate") = py::none(), py::arg("hidden") = py::none(),
        py::arg("pre_bias") = py::none(), py::arg("gate_bias") = py::none(), py::arg("p") = 0.0,
        py::arg("seed") = 0, py::arg("num_threads") = 1);
  m.def("column_sums", native_column_sums, py::arg("isa"), py::arg("dtype"), py::arg("data"),
        py::arg("num_threads") = 1);
}

}  // namespace bigkernels
