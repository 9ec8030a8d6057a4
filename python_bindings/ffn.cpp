// torch's side of the ffn room on the CPU: the products are ours on tiles, else torch's; what lies
// between is ours.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <string>
#include <tuple>

#include "common/cpu/workspace.h"
#include "isa/table.h"
#include "tensors.h"

namespace bigkernels {
namespace {

// The products reach torch below autograd and autocast; this keeps the copies inside them there.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

// The same memory seen as (rows, columns) with the given strides.
Tensor as_matrix(const Tensor& tensor, int64_t rows, int64_t columns, int64_t row_stride,
                 int64_t column_stride) {
  const int64_t sizes[2] = {rows, columns}, strides[2] = {row_stride, column_stride};
  AtenTensorHandle handle;
  // The offset counts from the tensor's own first element, not from its storage's.
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(tensor.get(), 2, sizes, strides, 0, &handle));
  return Tensor(handle);
}

// (..., columns) as (rows, columns) with dense rows; copied only where that needs it.
Tensor dense_matrix(const Tensor& tensor, int64_t columns) {
  const Rows rows = rows_of(tensor, columns);
  return as_matrix(rows.tensor, rows.count, columns, rows.count > 1 ? rows.stride : columns, 1);
}

// The same, but what is a matrix already stays as it lies: products take any strides.
Tensor matrix_of(const Tensor& tensor, int64_t columns) {
  return tensor.dim() == 2 ? tensor : dense_matrix(tensor, columns);
}

Tensor transposed(const Tensor& matrix) {
  const auto sizes = matrix.sizes(), strides = matrix.strides();
  return as_matrix(matrix, sizes[1], sizes[0], strides[1], strides[0]);
}

FfnOperand operand_of(const Tensor& matrix) {
  const auto strides = matrix.strides();
  return {matrix.const_data_ptr(), strides[0], strides[1]};
}

// The same by our kernels; false, and nothing done, where they do not serve it.
bool multiply_here(const Tensor& out, const Tensor& a, const Tensor& b,
                   const OptionalTensor& addend) {
  FfnMultiplyParams params = {};
  params.a = operand_of(a);
  params.b = operand_of(b);
  params.out = out.mutable_data_ptr();
  params.add = addend.has_value() && addend->dim() == 2;
  params.bias = params.add ? nullptr : pointer_or_null(addend);
  params.rows = a.sizes()[0];
  params.depth = a.sizes()[1];
  params.columns = b.sizes()[1];
  params.out_row = out.strides()[0];
  params.dtype = dtype_of(a);
  params.num_threads = num_threads();
  const int64_t bytes = kernels().ffn.multiply_scratch(params);
  if (bytes < 0 || b.scalar_type() != a.scalar_type() || out.strides()[1] != 1) return false;
  const Workspace workspace(bytes);
  params.scratch = workspace.data();
  if (params.scratch == nullptr) return false;
  kernels().ffn.multiply(params);
  return true;
}

// torch's products of 16 bits read what lies between the rows of a matrix, times zero: a NaN there
// became one of the result.
Tensor without_gaps(const Tensor& matrix) {
  const auto sizes = matrix.sizes(), strides = matrix.strides();
  const bool rows = strides[1] == 1 && strides[0] == sizes[1];
  const bool columns = strides[0] == 1 && strides[1] == sizes[0];
  return rows || columns || matrix.element_size() > 2 ? matrix : torch::stable::contiguous(matrix);
}

// out = a b, or addend + a b; addend may be out, or a row.
void multiply(const Tensor& out, const Tensor& left, const Tensor& right,
              const OptionalTensor& addend = std::nullopt) {
  if (multiply_here(out, left, right, addend)) return;
  const Tensor a = without_gaps(left), b = without_gaps(right);
  if (addend.has_value()) {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(out.get(), addend->get(), a.get(), b.get(), 1.0, 1.0));
  } else {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  }
}

FfnActivation activation_of(const std::string& name) {
  if (name == "gelu") return FfnActivation::kGelu;
  if (name == "gelu_tanh") return FfnActivation::kGeluTanh;
  if (name == "relu") return FfnActivation::kRelu;
  STD_TORCH_CHECK(name == "silu", "activation: ", name,
                  " is not one of gelu, gelu_tanh, relu, silu");
  return FfnActivation::kSilu;
}

OptionalTensor bias_row(const OptionalTensor& bias, const char* name, const Tensor& x,
                        int64_t columns) {
  if (!bias.has_value()) return std::nullopt;
  STD_TORCH_CHECK(
      bias->dim() == 1 && bias->numel() == columns && bias->scalar_type() == x.scalar_type(), name,
      ": expected (", columns, ",) of the dtype of x");
  return dense(*bias);
}

// The memory of a (..., columns) tensor is read without looking: it must be what the sizes of the
// call say.
const Tensor& checked(const Tensor& tensor, const char* name, const Tensor& x, int64_t elements) {
  STD_TORCH_CHECK(tensor.numel() == elements && tensor.scalar_type() == x.scalar_type(), name,
                  ": expected ", elements, " elements of the dtype of x");
  return tensor;
}

// pre and gate, each (..., F) and contiguous.
struct Products {
  Tensor pre, gate;
  FfnProduct pre_product, gate_product;
  bool own;  // of this call, which may overwrite them
};

// What both directions are given, checked. M rows, E columns of x, F hidden, E2 of the result.
struct Call {
  Tensor x;  // (M, E)
  Tensor weight1;
  OptionalTensor bias1, weight_gate, bias_gate;
  Sizes outer;  // x's without the last
  int64_t rows, in, hidden, out;
  Positions positions;
  FfnActivation activation;

  Call(const Tensor& given, const Tensor& weight1, const OptionalTensor& bias1,
       const Tensor& weight2, const OptionalTensor& weight_gate, const OptionalTensor& bias_gate,
       const std::string& activation, double dropout_p, const OptionalTensor& seed,
       const OptionalTensor& offset, const OptionalTensor& row_ids)
      : x(given),
        weight1(weight1),
        weight_gate(weight_gate),
        outer(sizes_of(given)),
        rows(1),
        positions(given, checked_rows(given), dropout_p, seed, offset, row_ids),
        activation(activation_of(activation)) {
    in = outer.back();
    outer.pop_back();
    rows = given.numel() / in;
    STD_TORCH_CHECK(weight1.dim() == 2 && weight2.dim() == 2, "ffn: weights are matrices");
    hidden = weight1.sizes()[0];
    out = weight2.sizes()[0];
    STD_TORCH_CHECK(
        hidden > 0 && out > 0 && weight1.sizes()[1] == in && weight2.sizes()[1] == hidden,
        "ffn: expected x (..., E), weight1 (F, E), weight2 (E2, F)");
    x = matrix_of(given, in);
    this->bias1 = bias_row(bias1, "bias1", x, hidden);
    this->bias_gate = bias_row(bias_gate, "bias_gate", x, hidden);
  }

  static int64_t checked_rows(const Tensor& x) {
    const int64_t last = x.dim() > 0 ? x.sizes()[x.dim() - 1] : 0;
    STD_TORCH_CHECK(last > 0, "x: expected (..., E) with E of at least 1");
    return x.numel() / last;
  }

  Tensor empty_of(int64_t columns) const {
    Sizes sizes = outer;
    sizes.push_back(columns);
    return empty(x, sizes, x.scalar_type());
  }
  Tensor nothing() const { return no_output(x, x.scalar_type()); }

  // float32 and float64 biases are added between the products: one pass over memory less. 16-bit
  // ones go into the product, before it is rounded.
  bool adds_bias_later() const { return element_size(dtype_of(x)) >= 4; }

  Tensor product(const Tensor& weight, const OptionalTensor& bias, FfnProduct* result) const {
    const Tensor product = empty_of(hidden);
    const bool later = adds_bias_later();
    multiply(matrix_of(product, hidden), x, transposed(weight), later ? std::nullopt : bias);
    *result = {product.mutable_data_ptr(), later ? pointer_or_null(bias) : nullptr};
    return product;
  }

  Products first_products() const {
    Products products = {nothing(), nothing(), {}, {}, true};
    products.pre = product(weight1, bias1, &products.pre_product);
    if (weight_gate.has_value())
      products.gate = product(*weight_gate, bias_gate, &products.gate_product);
    return products;
  }

  Products saved_products(const Tensor& pre, const Tensor& gate) const {
    Products products = {checked_plane(pre, "pre"), gate, {}, {}, false};
    products.pre_product = {products.pre.mutable_data_ptr(), nullptr};
    if (weight_gate.has_value()) {
      products.gate = checked_plane(gate, "gate");
      products.gate_product = {products.gate.mutable_data_ptr(), nullptr};
    }
    return products;
  }

  Tensor checked_plane(const Tensor& tensor, const char* name) const {
    return dense(checked(tensor, name, x, rows * hidden));
  }

  template <class Params>
  Params params(const Products& products) const {
    Params params = {};
    params.pre = products.pre_product;
    params.gate = products.gate_product;
    params.row_count = rows;
    params.columns = hidden;
    params.dropout = positions.dropout;
    params.activation = activation;
    params.dtype = dtype_of(x);
    params.num_threads = num_threads();
    return params;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> ffn_forward(
    const Tensor& x, const Tensor& weight1, const OptionalTensor& bias1, const Tensor& weight2,
    const OptionalTensor& bias2, const OptionalTensor& weight_gate, const OptionalTensor& bias_gate,
    std::string activation, double dropout_p, const OptionalTensor& seed,
    const OptionalTensor& offset, const OptionalTensor& rows, int64_t save) {
  const NoGrad no_grad;
  const Call call(x, weight1, bias1, weight2, weight_gate, bias_gate, activation, dropout_p, seed,
                  offset, rows);
  const Products products = call.first_products();
  FfnForwardParams params = call.params<FfnForwardParams>(products);
  const Tensor hidden = save > 0 ? call.empty_of(call.hidden) : products.pre;
  params.keep_products = save > 0;
  params.hidden = hidden.mutable_data_ptr();
  kernels().ffn.forward(params);
  const Tensor out = call.empty_of(call.out);
  multiply(matrix_of(out, call.out), matrix_of(hidden, call.hidden), transposed(weight2),
           bias_row(bias2, "bias2", x, call.out));
  // Results may not share memory, empty ones neither.
  return {out, save > 0 ? products.pre : call.nothing(), save > 0 ? products.gate : call.nothing(),
          save > 1 ? hidden : call.nothing()};
}

struct Needs {
  bool dx, dweight1, dbias1, dweight2, dbias2, dweight_gate, dbias_gate;

  bool dpre() const { return dx || dweight1 || dbias1; }
  bool dgate() const { return dx || dweight_gate || dbias_gate; }
};

class Backward {
 public:
  Tensor dx, dweight1, dbias1, dweight2, dbias2, dweight_gate, dbias_gate;

  Backward(const Call& call, const Needs& needs)
      : dx(needs.dx ? call.empty_of(call.in) : call.nothing()),
        dweight1(gradient(call, needs.dweight1, {call.hidden, call.in})),
        dbias1(gradient(call, needs.dbias1, {call.hidden})),
        dweight2(gradient(call, needs.dweight2, {call.out, call.hidden})),
        dbias2(gradient(call, needs.dbias2, {call.out})),
        dweight_gate(gradient(call, needs.dweight_gate, {call.hidden, call.in})),
        dbias_gate(gradient(call, needs.dbias_gate, {call.hidden})),
        call_(call),
        needs_(needs) {}

  void run(const Tensor& dout, const Tensor& weight2, const Tensor& pre, const Tensor& gate,
           const Tensor& saved_hidden) {
    const Tensor dout_rows =
        dense_matrix(checked(dout, "dout", call_.x, call_.rows * call_.out), call_.out);
    if (needs_.dbias2) sum_columns(dout_rows);
    const bool has_hidden = saved_hidden.numel() > 0;
    Tensor hidden = has_hidden ? call_.checked_plane(saved_hidden, "hidden") : saved_hidden;
    const bool need_hidden = needs_.dweight2 && !has_hidden;
    const bool through = needs_.dpre() || (call_.weight_gate.has_value() && needs_.dgate());
    if (through || need_hidden) {
      const Products products =
          pre.numel() > 0 ? call_.saved_products(pre, gate) : call_.first_products();
      if (need_hidden) hidden = own_or_new(products, products.pre);
      if (through) {
        differentiate(dout_rows, weight2, products, need_hidden ? &hidden : nullptr);
      } else {
        FfnForwardParams params = call_.params<FfnForwardParams>(products);
        params.hidden = hidden.mutable_data_ptr();
        kernels().ffn.forward(params);
      }
    }
    if (needs_.dweight2) multiply(dweight2, transposed(dout_rows), matrix_of(hidden, call_.hidden));
  }

 private:
  static Tensor gradient(const Call& call, bool needed, const Sizes& sizes) {
    return needed ? empty(call.x, sizes, call.x.scalar_type()) : call.nothing();
  }

  // Memory for a result that may lie over the product it is made of.
  Tensor own_or_new(const Products& products, const Tensor& product) const {
    return products.own ? product : call_.empty_of(call_.hidden);
  }

  // From dout to what comes before the activation, and the gradients of the first products.
  void differentiate(const Tensor& dout, const Tensor& weight2, const Products& products,
                     const Tensor* hidden) {
    const bool gated = call_.weight_gate.has_value();
    const Tensor dpre = call_.empty_of(call_.hidden);  // dhidden, until the kernel has run
    const Tensor dpre_rows = matrix_of(dpre, call_.hidden);
    multiply(dpre_rows, dout, weight2);
    FfnBackwardParams params = call_.params<FfnBackwardParams>(products);
    params.dhidden = dpre.const_data_ptr();
    if (needs_.dpre()) params.dpre = dpre.mutable_data_ptr();
    if (needs_.dbias1) params.dbias1 = dbias1.mutable_data_ptr();
    if (needs_.dbias_gate) params.dbias_gate = dbias_gate.mutable_data_ptr();
    if (hidden != nullptr) params.hidden = hidden->mutable_data_ptr();
    const bool through_gate = gated && needs_.dgate();
    const Tensor dgate = through_gate ? own_or_new(products, products.gate) : call_.nothing();
    if (through_gate) params.dgate = dgate.mutable_data_ptr();
    {
      const Scratch scratch(dout, ffn_backward_scratch(params));
      params.scratch = scratch.data();
      kernels().ffn.backward(params);
    }
    if (needs_.dweight1) multiply(dweight1, transposed(dpre_rows), call_.x);
    if (needs_.dx) multiply(matrix_of(dx, call_.in), dpre_rows, call_.weight1);
    if (!through_gate) return;
    const Tensor dgate_rows = matrix_of(dgate, call_.hidden);
    if (needs_.dweight_gate) multiply(dweight_gate, transposed(dgate_rows), call_.x);
    const Tensor dx_rows = matrix_of(dx, call_.in);
    if (needs_.dx) multiply(dx_rows, dgate_rows, *call_.weight_gate, dx_rows);
  }

  void sum_columns(const Tensor& dout) {
    ColumnSumsParams params = {};
    params.data = dout.const_data_ptr();
    params.out = dbias2.mutable_data_ptr();
    params.row_count = call_.rows;
    params.columns = call_.out;
    params.row_stride = dout.strides()[0];
    params.dtype = dtype_of(dout);
    params.num_threads = num_threads();
    const Scratch scratch(dout, column_sums_scratch(params));
    params.scratch = scratch.data();
    kernels().ffn.column_sums(params);
  }

  const Call& call_;
  const Needs& needs_;
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients ffn_backward(const Tensor& dout, const Tensor& x, const Tensor& weight1,
                       const OptionalTensor& bias1, const Tensor& weight2,
                       const OptionalTensor& weight_gate, const OptionalTensor& bias_gate,
                       const Tensor& pre, const Tensor& gate, const Tensor& hidden,
                       std::string activation, double dropout_p, const OptionalTensor& seed,
                       const OptionalTensor& offset, const OptionalTensor& rows, bool need_dx,
                       bool need_dweight1, bool need_dbias1, bool need_dweight2, bool need_dbias2,
                       bool need_dweight_gate, bool need_dbias_gate) {
  const NoGrad no_grad;
  const Call call(x, weight1, bias1, weight2, weight_gate, bias_gate, activation, dropout_p, seed,
                  offset, rows);
  const Needs needs = {need_dx,     need_dweight1,     need_dbias1,    need_dweight2,
                       need_dbias2, need_dweight_gate, need_dbias_gate};
  Backward b(call, needs);
  b.run(dout, weight2, pre, gate, hidden);
  return {b.dx, b.dweight1, b.dbias1, b.dweight2, b.dbias2, b.dweight_gate, b.dbias_gate};
}

}  // namespace
}  // namespace bigkernels

STABLE_TORCH_LIBRARY_IMPL(bigkernels, CPU, m) {
  m.impl("ffn_forward_cpu", TORCH_BOX(&bigkernels::ffn_forward));
  m.impl("ffn_backward_cpu", TORCH_BOX(&bigkernels::ffn_backward));
}
