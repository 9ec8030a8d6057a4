// torch's side of the layer_norm room on CUDA: allocates outputs and partial sums, fills the
// params. The same functions stand under the CPU key, for a library that runs the kernels on the
// CPU; with the real one they refuse CPU tensors.
#include <tuple>

#include "cuda_library.h"
#include "layer_norm_arguments.h"

namespace bigkernels {
namespace {

// A parameter vector where 16-byte accesses reach it.
ParameterRow aligned_row(Parameter& parameter) {
  if (parameter.tensor.has_value()) {
    parameter.tensor = dense_aligned(*parameter.tensor);
    parameter.row.data = parameter.tensor->const_data_ptr();
  }
  return parameter.row;
}

// Rows as rows_of() sees them, or a copy where their start or stride rules out 16-byte accesses.
Rows aligned_rows(const Tensor& tensor, int64_t columns) {
  const Rows rows = rows_of(tensor, columns);
  const int64_t bytes = element_size(dtype_of(tensor));
  const bool aligned = reinterpret_cast<uintptr_t>(rows.data()) % 16 == 0 &&
                       (rows.stride == columns || rows.stride * bytes % 16 == 0);
  return aligned ? rows
                 : Rows{dense_aligned(torch::stable::contiguous(tensor)), rows.count, columns};
}

// Dropout as the kernels take it, kept alive for the call.
struct CudaDropout {
  OptionalTensor rows;
  cuda::RowDropout dropout = {0, 1.0f, nullptr, nullptr, nullptr, 1};

  CudaDropout() = default;
  CudaDropout(const Tensor& x, int64_t row_count, double p, const OptionalTensor& seed,
              const OptionalTensor& offset, const OptionalTensor& given) {
    dropout.threshold = dropout_threshold(p);
    dropout.scale = cuda::dropout_scale(p);
    if (seed.has_value()) dropout.seed = seed->const_data_ptr<int64_t>();
    if (offset.has_value()) dropout.offset = offset->const_data_ptr<int64_t>();
    if (x.dim() > 1) dropout.period = max_int(1, x.sizes()[x.dim() - 2]);
    if (!given.has_value()) return;
    rows = dense(*given);
    dropout.rows = rows->const_data_ptr<int64_t>();
    STD_TORCH_CHECK(rows->numel() == row_count, "rows: ", rows->numel(), " elements, expected ",
                    row_count);
  }
};

int32_t checked_columns(const Tensor& x, int64_t columns) {
  check_rows(x, columns);
  STD_TORCH_CHECK(columns <= cuda::kMaxColumns, "layer_norm: rows of ", columns,
                  " columns, the CUDA kernels take up to ", cuda::kMaxColumns);
  STD_TORCH_CHECK(dtype_of(x) != DType::kFloat64, "layer_norm: the CUDA kernels have no float64");
  return static_cast<int32_t>(columns);
}

void check_centred(bool centred) {
  STD_TORCH_CHECK(centred, "layer_norm: the CUDA kernels have no RMSNorm");
}

// What layer_norm and add_layer_norm have in common; `params` brings the rest.
LayerNormForwardResult run_forward(const CudaCall& call, const Tensor& x,
                                   cuda::LayerNormForwardParams params,
                                   const OptionalTensor& weight, const OptionalTensor& bias,
                                   double eps, bool save_sum) {
  params.dtype = dtype_of(x);
  params.row_count = x.numel() / params.columns;
  params.eps = eps;
  const Tensor out = empty(x, sizes_of(x), x.scalar_type());
  const Tensor sum =
      save_sum ? empty(x, sizes_of(x), x.scalar_type()) : no_output(x, x.scalar_type());
  const Tensor mean = empty(x, {params.row_count}, ScalarType::Float);
  const Tensor rstd = empty(x, {params.row_count}, ScalarType::Float);
  if (params.row_count == 0) return {out, sum, mean, rstd};
  Parameter weight_row(weight, "weight", params.columns, params.dtype);
  Parameter bias_row(bias, "bias", params.columns, params.dtype);
  params.weight = aligned_row(weight_row);
  params.bias = aligned_row(bias_row);
  params.out = out.mutable_data_ptr();
  params.sum = save_sum ? sum.mutable_data_ptr() : nullptr;
  params.mean = static_cast<float*>(mean.mutable_data_ptr());
  params.rstd = static_cast<float*>(rstd.mutable_data_ptr());
  call.check(cuda_library().layer_norm_forward(&params, call.stream()), "layer_norm");
  return {out, sum, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& x, const OptionalTensor& weight,
                                                      const OptionalTensor& bias, int64_t n,
                                                      double eps, bool centred) {
  check_centred(centred);
  const CudaCall call(x, {&weight, &bias});
  cuda::LayerNormForwardParams params = {};
  params.columns = checked_columns(x, n);
  const Rows rows = aligned_rows(x, n);
  params.x = rows.data();
  params.x_stride = rows.stride;
  params.dropout = CudaDropout().dropout;
  const LayerNormForwardResult result = run_forward(call, x, params, weight, bias, eps, false);
  return {result.out, result.mean, result.rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_forward(
    const Tensor& x, const Tensor& residual, const OptionalTensor& weight,
    const OptionalTensor& bias, double eps, const OptionalTensor& x_bias, double dropout_p,
    const OptionalTensor& seed, const OptionalTensor& offset, const OptionalTensor& positions,
    bool save_sum, bool centred) {
  check_centred(centred);
  const OptionalTensor other = residual;
  const CudaCall call(x, {&other, &weight, &bias, &x_bias, &seed, &offset, &positions});
  const int64_t n = x.dim() > 0 ? x.sizes()[x.dim() - 1] : 0;
  cuda::LayerNormForwardParams params = {};
  params.columns = checked_columns(x, n);
  check_like(residual, "residual", x);
  const Rows x_rows = aligned_rows(x, n), residual_rows = aligned_rows(residual, n);
  Parameter x_bias_row(x_bias, "x_bias", n, dtype_of(x));
  const CudaDropout at(x, x_rows.count, dropout_p, seed, offset, positions);
  params.x = x_rows.data();
  params.x_stride = x_rows.stride;
  params.residual = residual_rows.data();
  params.residual_stride = residual_rows.stride;
  params.x_bias = aligned_row(x_bias_row);
  params.dropout = at.dropout;
  const LayerNormForwardResult result = run_forward(call, x, params, weight, bias, eps, save_sum);
  return {result.out, result.sum, result.mean, result.rstd};
}

LayerNormBackwardResult run_backward(const CudaCall& call, const Tensor& dout,
                                     const OptionalTensor& dsum, const Tensor& x,
                                     const Tensor& mean, const Tensor& rstd,
                                     const OptionalTensor& weight, int64_t n,
                                     const cuda::RowDropout& dropout, const LayerNormNeeds& needs) {
  cuda::LayerNormBackwardParams params = {};
  params.columns = checked_columns(x, n);
  check_like(dout, "dout", x);
  if (dsum.has_value()) check_like(*dsum, "dsum", x);
  params.dtype = dtype_of(x);
  params.dropout = dropout;
  const Rows x_rows = aligned_rows(x, n), dout_rows = aligned_rows(dout, n);
  const Rows dsum_rows = dsum.has_value() ? aligned_rows(*dsum, n) : Rows{x, 0, 0};
  params.row_count = x_rows.count;
  STD_TORCH_CHECK(mean.numel() == params.row_count && rstd.numel() == params.row_count &&
                      mean.scalar_type() == ScalarType::Float &&
                      rstd.scalar_type() == ScalarType::Float,
                  "mean, rstd: expected (", params.row_count, ",) float32");
  const Tensor mean_row = dense(mean), rstd_row = dense(rstd);
  Parameter weight_row(weight, "weight", n, params.dtype);
  void *dweight, *dbias, *dx_bias;
  LayerNormBackwardResult result = {
      input_gradient(x, needs.dx, &params.dx),
      input_gradient(x, needs.dx_dropped, &params.dx_dropped),
      parameter_gradient(x, needs.dweight, n, ScalarType::Float, &dweight),
      parameter_gradient(x, needs.dbias, n, ScalarType::Float, &dbias),
      parameter_gradient(x, needs.dx_bias, n, ScalarType::Float, &dx_bias)};
  if (params.row_count == 0) {
    for (Tensor* sum : {&result.dweight, &result.dbias, &result.dx_bias})
      torch::stable::zero_(*sum);
    return result;
  }
  params.x = x_rows.data();
  params.x_stride = x_rows.stride;
  params.dout = dout_rows.data();
  params.dout_stride = dout_rows.stride;
  params.dsum = dsum.has_value() ? dsum_rows.data() : nullptr;
  params.dsum_stride = dsum_rows.stride;
  params.mean = static_cast<const float*>(mean_row.const_data_ptr());
  params.rstd = static_cast<const float*>(rstd_row.const_data_ptr());
  params.weight = aligned_row(weight_row);
  params.dweight = static_cast<float*>(dweight);
  params.dbias = static_cast<float*>(dbias);
  params.dx_bias = static_cast<float*>(dx_bias);
  params.multiprocessors = call.multiprocessors();
  const int64_t partials = 3 * cuda::BackwardGrid(params).partial_rows() * n;
  const Scratch scratch(x, partials * static_cast<int64_t>(sizeof(float)));
  params.partials = static_cast<float*>(scratch.data());
  call.check(cuda_library().layer_norm_backward(&params, call.stream()), "layer_norm");
  return result;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dout, const Tensor& x,
                                                       const Tensor& mean, const Tensor& rstd,
                                                       const OptionalTensor& weight, int64_t n,
                                                       bool need_dx, bool need_dweight,
                                                       bool need_dbias) {
  const OptionalTensor others[] = {dout, mean, rstd};
  const CudaCall call(x, {&others[0], &others[1], &others[2], &weight});
  const LayerNormBackwardResult result =
      run_backward(call, dout, std::nullopt, x, mean, rstd, weight, n, CudaDropout().dropout,
                   {need_dx, false, need_dweight, need_dbias, false});
  return {result.dx, result.dweight, result.dbias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> add_layer_norm_backward(
    const Tensor& dout, const OptionalTensor& dsum, const Tensor& sum, const Tensor& mean,
    const Tensor& rstd, const OptionalTensor& weight, double dropout_p, const OptionalTensor& seed,
    const OptionalTensor& offset, const OptionalTensor& positions, bool need_dx, bool need_dweight,
    bool need_dbias, bool need_dx_bias) {
  const OptionalTensor others[] = {dout, mean, rstd};
  const CudaCall call(
      sum, {&others[0], &others[1], &others[2], &dsum, &weight, &seed, &offset, &positions});
  const int64_t n = sum.dim() > 0 ? sum.sizes()[sum.dim() - 1] : 0;
  check_rows(sum, n);
  const CudaDropout at(sum, sum.numel() / n, dropout_p, seed, offset, positions);
  const LayerNormBackwardResult result =
      run_backward(call, dout, dsum, sum, mean, rstd, weight, n, at.dropout,
                   {true, need_dx && dropout_p > 0.0, need_dweight, need_dbias, need_dx_bias});
  return {result.dx, result.dx_dropped, result.dweight, result.dbias, result.dx_bias};
}

}  // namespace
}  // namespace bigkernels

#define REGISTER_LAYER_NORM(m)                                                           \
  m.impl("layer_norm_forward_cuda", TORCH_BOX(&bigkernels::layer_norm_forward));         \
  m.impl("layer_norm_backward_cuda", TORCH_BOX(&bigkernels::layer_norm_backward));       \
  m.impl("add_layer_norm_forward_cuda", TORCH_BOX(&bigkernels::add_layer_norm_forward)); \
  m.impl("add_layer_norm_backward_cuda", TORCH_BOX(&bigkernels::add_layer_norm_backward));

STABLE_TORCH_LIBRARY_IMPL(bigkernels, CUDA,
                          m){REGISTER_LAYER_NORM(m)} STABLE_TORCH_LIBRARY_IMPL(bigkernels, CPU, m) {
  REGISTER_LAYER_NORM(m)
}
