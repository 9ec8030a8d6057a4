// torch's side of the layer_norm room on the CPU: allocates outputs and scratch, fills the params.
#include <tuple>

#include "isa/table.h"
#include "layer_norm_arguments.h"

namespace bigkernels {
namespace {

// What layer_norm and add_layer_norm have in common; `params` brings the rest.
LayerNormForwardResult run_forward(const Tensor& x, int64_t columns, LayerNormForwardParams params,
                                   const OptionalTensor& weight, const OptionalTensor& bias,
                                   double eps, bool save_sum, bool centred) {
  params.dtype = dtype_of(x);
  params.columns = columns;
  params.row_count = x.numel() / columns;
  params.eps = eps;
  const ScalarType stat = scalar_type_of(statistics_dtype(params.dtype));
  const Tensor out = empty(x, sizes_of(x), x.scalar_type());
  const Tensor sum =
      save_sum ? empty(x, sizes_of(x), x.scalar_type()) : no_output(x, x.scalar_type());
  const Tensor mean = empty(x, {centred ? params.row_count : 0}, stat);
  const Tensor rstd = empty(x, {params.row_count}, stat);
  if (params.row_count == 0) return {out, sum, mean, rstd};
  const Parameter weight_row(weight, "weight", columns, params.dtype);
  const Parameter bias_row(bias, "bias", columns, params.dtype);
  params.weight = weight_row.row;
  params.bias = bias_row.row;
  params.out = out.mutable_data_ptr();
  params.sum = save_sum ? sum.mutable_data_ptr() : nullptr;
  params.mean = centred ? mean.mutable_data_ptr() : nullptr;
  params.rstd = rstd.mutable_data_ptr();
  params.num_threads = num_threads();
  const Scratch scratch(x, layer_norm_forward_scratch(params));
  params.scratch = scratch.data();
  kernels().layer_norm.forward(params);
  return {out, sum, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& x, const OptionalTensor& weight,
                                                      const OptionalTensor& bias, int64_t n,
                                                      double eps, bool centred) {
  check_rows(x, n);
  const Rows rows = rows_of(x, n);
  LayerNormForwardParams params = {};
  params.x = rows.data();
  params.x_stride = rows.stride;
  params.dropout = kNoDropout;
  const LayerNormForwardResult result =
      run_forward(x, n, params, weight, bias, eps, false, centred);
  return {result.out, result.mean, result.rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_forward(
    const Tensor& x, const Tensor& residual, const OptionalTensor& weight,
    const OptionalTensor& bias, double eps, const OptionalTensor& x_bias, double dropout_p,
    const OptionalTensor& seed, const OptionalTensor& offset, const OptionalTensor& positions,
    bool save_sum, bool centred) {
  const int64_t n = x.dim() > 0 ? x.sizes()[x.dim() - 1] : 0;
  check_rows(x, n);
  check_like(residual, "residual", x);
  const Rows x_rows = rows_of(x, n), residual_rows = rows_of(residual, n);
  const Parameter x_bias_row(x_bias, "x_bias", n, dtype_of(x));
  const Positions at(x, x_rows.count, dropout_p, seed, offset, positions);
  LayerNormForwardParams params = {};
  params.x = x_rows.data();
  params.x_stride = x_rows.stride;
  params.residual = residual_rows.data();
  params.residual_stride = residual_rows.stride;
  params.x_bias = x_bias_row.row;
  params.dropout = at.dropout;
  const LayerNormForwardResult result =
      run_forward(x, n, params, weight, bias, eps, save_sum, centred);
  return {result.out, result.sum, result.mean, result.rstd};
}

LayerNormBackwardResult run_backward(const Tensor& dout, const OptionalTensor& dsum,
                                     const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                     const OptionalTensor& weight, int64_t columns,
                                     const RowDropout& dropout, const LayerNormNeeds& needs) {
  check_rows(x, columns);
  check_like(dout, "dout", x);
  if (dsum.has_value()) check_like(*dsum, "dsum", x);
  LayerNormBackwardParams params = {};
  params.dtype = dtype_of(x);
  params.columns = columns;
  params.dropout = dropout;
  const Rows x_rows = rows_of(x, columns), dout_rows = rows_of(dout, columns);
  const Rows dsum_rows = dsum.has_value() ? rows_of(*dsum, columns) : Rows{x, 0, 0};
  params.row_count = x_rows.count;
  const ScalarType stat = scalar_type_of(statistics_dtype(params.dtype));
  const bool centred = mean.numel() != 0 || params.row_count == 0;
  STD_TORCH_CHECK((!centred || mean.numel() == params.row_count) &&
                      rstd.numel() == params.row_count && mean.scalar_type() == stat &&
                      rstd.scalar_type() == stat,
                  "mean, rstd: expected (", params.row_count, ",) of the statistics dtype");
  const Tensor mean_row = dense(mean), rstd_row = dense(rstd);
  const Parameter weight_row(weight, "weight", columns, params.dtype);
  LayerNormBackwardResult result = {
      input_gradient(x, needs.dx, &params.dx),
      input_gradient(x, needs.dx_dropped, &params.dx_dropped),
      parameter_gradient(x, needs.dweight, columns, stat, &params.dweight),
      parameter_gradient(x, needs.dbias, columns, stat, &params.dbias),
      parameter_gradient(x, needs.dx_bias, columns, stat, &params.dx_bias)};
  params.x = x_rows.data();
  params.x_stride = x_rows.stride;
  params.dout = dout_rows.data();
  params.dout_stride = dout_rows.stride;
  params.dsum = dsum.has_value() ? dsum_rows.data() : nullptr;
  params.dsum_stride = dsum_rows.stride;
  params.mean = centred ? mean_row.const_data_ptr() : nullptr;
  params.rstd = rstd_row.const_data_ptr();
  params.weight = weight_row.row;
  params.num_threads = num_threads();
  const Scratch scratch(x, layer_norm_backward_scratch(params));
  params.scratch = scratch.data();
  kernels().layer_norm.backward(params);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dout, const Tensor& x,
                                                       const Tensor& mean, const Tensor& rstd,
                                                       const OptionalTensor& weight, int64_t n,
                                                       bool need_dx, bool need_dweight,
                                                       bool need_dbias) {
  const LayerNormBackwardResult result =
      run_backward(dout, std::nullopt, x, mean, rstd, weight, n, kNoDropout,
                   {need_dx, false, need_dweight, need_dbias, false});
  return {result.dx, result.dweight, result.dbias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> add_layer_norm_backward(
    const Tensor& dout, const OptionalTensor& dsum, const Tensor& sum, const Tensor& mean,
    const Tensor& rstd, const OptionalTensor& weight, double dropout_p, const OptionalTensor& seed,
    const OptionalTensor& offset, const OptionalTensor& positions, bool need_dx, bool need_dweight,
    bool need_dbias, bool need_dx_bias) {
  const int64_t n = sum.dim() > 0 ? sum.sizes()[sum.dim() - 1] : 0;
  check_rows(sum, n);
  const Positions at(sum, sum.numel() / n, dropout_p, seed, offset, positions);
  const LayerNormBackwardResult result =
      run_backward(dout, dsum, sum, mean, rstd, weight, n, at.dropout,
                   {true, need_dx && dropout_p > 0.0, need_dweight, need_dbias, need_dx_bias});
  return {result.dx, result.dx_dropped, result.dweight, result.dbias, result.dx_bias};
}

}  // namespace
}  // namespace bigkernels

STABLE_TORCH_LIBRARY_IMPL(bigkernels, CPU, m) {
  m.impl("layer_norm_forward_cpu", TORCH_BOX(&bigkernels::layer_norm_forward));
  m.impl("layer_norm_backward_cpu", TORCH_BOX(&bigkernels::layer_norm_backward));
  m.impl("add_layer_norm_forward_cpu", TORCH_BOX(&bigkernels::add_layer_norm_forward));
  m.impl("add_layer_norm_backward_cpu", TORCH_BOX(&bigkernels::add_layer_norm_backward));
}
