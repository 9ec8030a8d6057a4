// The layer_norm room on NumPy arrays.
#pragma once

#include "module_arrays.h"

namespace bigkernels {

using OptionalArray = std::optional<py::array>;

inline ParameterRow parameter_row(const OptionalArray& array, DType dtype) {
  if (!array.has_value()) return {nullptr, dtype};
  check_array(*array, "parameter", dtype);
  return {array->data(), dtype};
}

// x (M, N), residual (M, N) or None; parameters (N,) of x's dtype. Returns (out, sum, mean, rstd).
inline py::tuple native_layer_norm_forward(const std::string& isa, const std::string& dtype,
                                           const py::array& x, const OptionalArray& residual,
                                           const OptionalArray& x_bias, const OptionalArray& weight,
                                           const OptionalArray& bias, double eps, double p,
                                           int64_t seed, int num_threads) {
  LayerNormForwardParams params = {};
  params.dtype = dtype_named(dtype);
  const Matrix rows(x, "x", params.dtype);
  params.x = rows.data;
  params.x_stride = rows.stride;
  params.row_count = rows.rows;
  params.columns = rows.columns;
  if (residual.has_value()) {
    const Matrix residual_rows(*residual, "residual", params.dtype);
    params.residual = residual_rows.data;
    params.residual_stride = residual_rows.stride;
  }
  params.x_bias = parameter_row(x_bias, params.dtype);
  params.weight = parameter_row(weight, params.dtype);
  params.bias = parameter_row(bias, params.dtype);
  params.eps = eps;
  params.dropout = {p, seed, 0, nullptr, max_int(1, rows.rows)};
  params.num_threads = num_threads;
  const py::dtype stat = numpy_dtype(statistics_dtype(params.dtype));
  py::array out = new_array(x.dtype(), {rows.rows, rows.columns});
  py::array sum = new_array(x.dtype(), {rows.rows, rows.columns});
  py::array mean = new_array(stat, {rows.rows}), rstd = new_array(stat, {rows.rows});
  params.out = out.mutable_data();
  params.sum = residual.has_value() ? sum.mutable_data() : nullptr;
  params.mean = mean.mutable_data();
  params.rstd = rstd.mutable_data();
  std::vector<double> scratch(layer_norm_forward_scratch(params) / 8 + 1);
  params.scratch = scratch.data();
  const LayerNormKernels& kernels = table_of(isa).layer_norm;
  {
    py::gil_scoped_release no_gil;
    kernels.forward(params);
  }
  return py::make_tuple(out, sum, mean, rstd);
}

// Returns (dx, dx_dropped, dweight, dbias, dx_bias).
inline py::tuple native_layer_norm_backward(const std::string& isa, const std::string& dtype,
                                            const py::array& dout, const OptionalArray& dsum,
                                            const py::array& x, const py::array& mean,
                                            const py::array& rstd, const OptionalArray& weight,
                                            double p, int64_t seed, int num_threads) {
  LayerNormBackwardParams params = {};
  params.dtype = dtype_named(dtype);
  const Matrix rows(x, "x", params.dtype), dout_rows(dout, "dout", params.dtype);
  params.x = rows.data;
  params.x_stride = rows.stride;
  params.dout = dout_rows.data;
  params.dout_stride = dout_rows.stride;
  params.row_count = rows.rows;
  params.columns = rows.columns;
  if (dsum.has_value()) {
    const Matrix dsum_rows(*dsum, "dsum", params.dtype);
    params.dsum = dsum_rows.data;
    params.dsum_stride = dsum_rows.stride;
  }
  check_array(mean, "mean", statistics_dtype(params.dtype));
  check_array(rstd, "rstd", statistics_dtype(params.dtype));
  params.mean = mean.data();
  params.rstd = rstd.data();
  params.weight = parameter_row(weight, params.dtype);
  params.dropout = {p, seed, 0, nullptr, max_int(1, rows.rows)};
  params.num_threads = num_threads;
  const py::dtype stat = numpy_dtype(statistics_dtype(params.dtype));
  py::array dx = new_array(x.dtype(), {rows.rows, rows.columns});
  py::array dropped = new_array(x.dtype(), {rows.rows, rows.columns});
  py::array dweight = new_array(stat, {rows.columns}), dbias = new_array(stat, {rows.columns});
  py::array dx_bias = new_array(stat, {rows.columns});
  params.dx = dx.mutable_data();
  params.dx_dropped = dropped.mutable_data();
  params.dweight = dweight.mutable_data();
  params.dbias = dbias.mutable_data();
  params.dx_bias = dx_bias.mutable_data();
  std::vector<double> scratch(layer_norm_backward_scratch(params) / 8 + 1);
  params.scratch = scratch.data();
  const LayerNormKernels& kernels = table_of(isa).layer_norm;
  {
    py::gil_scoped_release no_gil;
    kernels.backward(params);
  }
  return py::make_tuple(dx, dropped, dweight, dbias, dx_bias);
}

inline void define_layer_norm(py::module_& m) {
  m.def("layer_norm_forward", native_layer_norm_forward, py::arg("isa"), py::arg("dtype"),
        py::arg("x"), py::arg("residual") = py::none(), py::arg("x_bias") = py::none(),
        py::arg("weight") = py::none(), py::arg("bias") = py::none(), py::arg("eps") = 1e-5,
        py::arg("p") = 0.0, py::arg("seed") = 0, py::arg("num_threads") = 1);
  m.def("layer_norm_backward", native_layer_norm_backward, py::arg("isa"), py::arg("dtype"),
        py::arg("dout"), py::arg("dsum"), py::arg("x"), py::arg("mean"), py::arg("rstd"),
        py::arg("weight") = py::none(), py::arg("p") = 0.0, py::arg("seed") = 0,
        py::arg("num_threads") = 1);
}

}  // namespace bigkernels
