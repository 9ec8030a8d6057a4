// torch's side of the embedding room on the CPU: checks the ids, allocates, fills the params.
#include "embedding/embedding.h"

#include <tuple>

#include "isa/table.h"
#include "tensors.h"

namespace bigkernels {
namespace {

// A table and the ids of each token in it, kept alive for the call.
struct Table {
  std::optional<Tensor> data, ids;
  EmbeddingTable table = {nullptr, nullptr, 0, nullptr, -1};

  Table(const OptionalTensor& given, const OptionalTensor& given_ids, const char* name,
        int64_t row_count, int64_t columns, ScalarType dtype) {
    if (!given.has_value()) return;
    data = dense(*given);
    STD_TORCH_CHECK(data->dim() == 2 && data->sizes()[1] == columns && data->scalar_type() == dtype,
                    name, ": expected (count, ", columns, ") of the other tables' dtype");
    table.data = data->const_data_ptr();
    table.count = data->sizes()[0];
    if (given_ids.has_value()) {
      ids = dense(*given_ids);
      STD_TORCH_CHECK(ids->scalar_type() == ScalarType::Long && ids->numel() == row_count, name,
                      " ids: expected ", row_count, " int64");
      table.ids = ids->const_data_ptr<int64_t>();
    }
    for (int64_t r = 0; r < (table.ids != nullptr ? row_count : min_int(row_count, 1)); ++r) {
      const int64_t id = table.ids != nullptr ? table.ids[r] : 0;
      STD_TORCH_CHECK(id >= 0 && id < table.count, "index out of range: ", name, " id ", id,
                      " is not in [0, ", table.count, ")");
    }
  }

  // Allocated if needed, else empty.
  Tensor gradient(const Tensor& like, bool needed, int64_t columns, int64_t padding_row) {
    if (!needed) return no_output(like, like.scalar_type());
    const Tensor result = empty(like, {table.count, columns}, like.scalar_type());
    table.gradient = result.mutable_data_ptr();
    table.padding_row = padding_row;
    return result;
  }
};

struct Inputs {
  int64_t row_count, columns;
  Table word, position, types;

  Inputs(const Tensor& ids, const Tensor& word, const OptionalTensor& position_ids,
         const OptionalTensor& position, const OptionalTensor& type_ids,
         const OptionalTensor& types)
      : row_count(ids.numel()),
        columns(word.dim() == 2 ? word.sizes()[1] : 0),
        word(word, ids, "word", row_count, columns, word.scalar_type()),
        position(position, position_ids, "position", row_count, columns, word.scalar_type()),
        types(types, type_ids, "type", row_count, columns, word.scalar_type()) {
    STD_TORCH_CHECK(columns > 0, "word: expected at least one column");
  }
};

RowDropout dropout_of(const Tensor& ids, const OptionalTensor& rows, double p,
                      const OptionalTensor& seed, const OptionalTensor& offset) {
  const int64_t period = ids.dim() > 0 ? max_int(1, ids.sizes()[ids.dim() - 1]) : 1;
  const int64_t* at = rows.has_value() ? rows->const_data_ptr<int64_t>() : nullptr;
  STD_TORCH_CHECK(at == nullptr || rows->numel() == ids.numel(), "rows: ", rows->numel(),
                  " elements, expected ", ids.numel());
  return {p, int_or_zero(seed), int_or_zero(offset), at, period};
}

OptionalTensor dense_or_none(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(dense(*tensor)) : std::nullopt;
}

std::tuple<Tensor, Tensor, Tensor> embedding_forward(
    const Tensor& ids, const Tensor& word, const OptionalTensor& position_ids,
    const OptionalTensor& position, const OptionalTensor& type_ids, const OptionalTensor& types,
    const OptionalTensor& weight, const OptionalTensor& bias, double eps, double dropout_p,
    const OptionalTensor& seed, const OptionalTensor& offset, const OptionalTensor& positions) {
  const Inputs inputs(ids, word, position_ids, position, type_ids, types);
  const OptionalTensor rows = dense_or_none(positions);
  EmbeddingForwardParams params = {};
  params.tables[0] = inputs.word.table;
  params.tables[1] = inputs.position.table;
  params.tables[2] = inputs.types.table;
  params.row_count = inputs.row_count;
  params.columns = inputs.columns;
  params.eps = eps;
  params.dtype = dtype_of(word);
  params.dropout = dropout_of(ids, rows, dropout_p, seed, offset);
  const Parameter weight_row(weight, "weight", params.columns, params.dtype);
  const Parameter bias_row(bias, "bias", params.columns, params.dtype);
  params.weight = weight_row.row;
  params.bias = bias_row.row;
  Sizes sizes = sizes_of(ids);
  sizes.push_back(params.columns);
  const ScalarType stat = scalar_type_of(statistics_dtype(params.dtype));
  const Tensor out = empty(word, sizes, word.scalar_type());
  const Tensor mean = empty(word, {params.row_count}, stat);
  const Tensor rstd = empty(word, {params.row_count}, stat);
  if (params.row_count == 0) return {out, mean, rstd};
  params.out = out.mutable_data_ptr();
  params.mean = mean.mutable_data_ptr();
  params.rstd = rstd.mutable_data_ptr();
  params.num_threads = num_threads();
  const Scratch scratch(word, embedding_forward_scratch(params));
  params.scratch = scratch.data();
  kernels().embedding.forward(params);
  return {out, mean, rstd};
}

Tensor parameter_gradient(const Tensor& word, bool needed, int64_t columns, void** data) {
  const Tensor result =
      empty(word, {needed ? columns : 0}, scalar_type_of(statistics_dtype(dtype_of(word))));
  *data = needed ? result.mutable_data_ptr() : nullptr;
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> embedding_backward(
    const Tensor& dout, const Tensor& mean, const Tensor& rstd, const Tensor& ids,
    const Tensor& word, const OptionalTensor& position_ids, const OptionalTensor& position,
    const OptionalTensor& type_ids, const OptionalTensor& types, const OptionalTensor& weight,
    int64_t padding_idx, int64_t position_padding_idx, double dropout_p, const OptionalTensor& seed,
    const OptionalTensor& offset, const OptionalTensor& positions, bool need_dword,
    bool need_dposition, bool need_dtypes, bool need_dweight, bool need_dbias) {
  Inputs inputs(ids, word, position_ids, position, type_ids, types);
  const OptionalTensor rows = dense_or_none(positions);
  const Tensor dense_dout = dense(dout), dense_mean = dense(mean), dense_rstd = dense(rstd);
  const int64_t n = inputs.columns;
  EmbeddingBackwardParams params = {};
  params.row_count = inputs.row_count;
  params.columns = n;
  params.dtype = dtype_of(word);
  const ScalarType stat = scalar_type_of(statistics_dtype(params.dtype));
  STD_TORCH_CHECK(dout.numel() == params.row_count * n && dout.scalar_type() == word.scalar_type(),
                  "dout: expected the shape and dtype of out");
  STD_TORCH_CHECK(mean.numel() == params.row_count && rstd.numel() == params.row_count &&
                      mean.scalar_type() == stat && rstd.scalar_type() == stat,
                  "mean, rstd: expected (", params.row_count, ",) of the statistics dtype");
  const Tensor dword = inputs.word.gradient(word, need_dword, n, padding_idx);
  const Tensor dposition = inputs.position.gradient(word, need_dposition, n, position_padding_idx);
  const Tensor dtypes = inputs.types.gradient(word, need_dtypes, n, -1);
  const Tensor dweight = parameter_gradient(word, need_dweight, n, &params.dweight);
  const Tensor dbias = parameter_gradient(word, need_dbias, n, &params.dbias);
  params.tables[0] = inputs.word.table;
  params.tables[1] = inputs.position.table;
  params.tables[2] = inputs.types.table;
  params.dropout = dropout_of(ids, rows, dropout_p, seed, offset);
  const Parameter weight_row(weight, "weight", n, params.dtype);
  params.weight = weight_row.row;
  params.dout = dense_dout.const_data_ptr();
  params.mean = dense_mean.const_data_ptr();
  params.rstd = dense_rstd.const_data_ptr();
  params.num_threads = num_threads();
  const Scratch scratch(word, embedding_backward_scratch(params));
  params.scratch = scratch.data();
  kernels().embedding.backward(params);
  return {dword, dposition, dtypes, dweight, dbias};
}

}  // namespace
}  // namespace bigkernels

STABLE_TORCH_LIBRARY_IMPL(bigkernels, CPU, m) {
  m.impl("embedding_forward_cpu", TORCH_BOX(&bigkernels::embedding_forward));
  m.impl("embedding_backward_cpu", TORCH_BOX(&bigkernels::embedding_backward));
}
