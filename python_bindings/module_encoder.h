// The encoder and embedding rooms on NumPy arrays.
#pragma once

#include <cstdlib>
#include <memory>

#include "common/cpu/threads.h"
#include "module_ffn.h"

namespace bigkernels {

// On a cache line, and as large as was asked for: what lies behind belongs to nobody.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t bytes)
      : data_(std::aligned_alloc(64, static_cast<size_t>(round_up(max_int(bytes, 1), 64))),
              std::free) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  char* data() const { return static_cast<char*>(data_.get()); }

 private:
  std::unique_ptr<void, void (*)(void*)> data_;
};

inline EncoderPrecision precision_named(const std::string& name) {
  const char* names[] = {"float32", "high", "bfloat16", "int8", "int8_weights"};
  for (int i = 0; i < 5; ++i)
    if (name == names[i]) return static_cast<EncoderPrecision>(i);
  throw std::invalid_argument("precision: " + name);
}

// x (T, E) float32 through the layers of `weights`, 16 float32 arrays each, empty where absent;
// starts (B + 1,) int64. None: these kernels do not serve it.
inline py::object native_encoder(const std::string& isa, const std::string& precision,
                                 const py::array_t<float>& x, const py::array_t<int64_t>& starts,
                                 const std::vector<py::array_t<float>>& weights, int64_t heads,
                                 double eps, const std::string& activation, bool norm_first,
                                 bool causal, int num_threads) {
  const EncoderKernels& kernels = table_of(isa).encoder;
  const Matrix rows(x, "x", DType::kFloat32);
  EncoderForwardParams params = {};
  params.shape = {static_cast<int64_t>(weights.size()) / kEncoderTensors, heads, rows.columns,
                  weights.at(10).shape(0), precision_named(precision)};
  if (!kernels.serves(params.shape)) return py::none();
  std::vector<EncoderTensor> tensors;
  for (const auto& weight : weights) {
    tensors.push_back({weight.size() > 0 ? weight.data() : nullptr, DType::kFloat32});
  }
  const AlignedBytes packed(params.shape.layers * EncoderLayout(params.shape).bytes);
  std::vector<int32_t> order;
  for (int32_t b = 0; b + 1 < starts.size(); ++b) order.push_back(b);
  py::array out = new_array(x.dtype(), {x.shape(0), x.shape(1)});
  params.x = rows.data;
  params.out = out.mutable_data();
  params.dtype = DType::kFloat32;
  params.tokens = rows.rows;
  params.batch = static_cast<int64_t>(order.size());
  params.starts = {starts.data(), true};
  params.order = order.data();
  params.packed = packed.data();
  params.eps = eps;
  params.activation = activation_named(activation);
  params.norm_first = norm_first;
  params.causal = causal;
  params.num_threads = num_threads;
  const AlignedBytes workspace(kernels.workspace(params));
  params.workspace = workspace.data();
  {
    py::gil_scoped_release no_gil;
    kernels.pack({params.shape, tensors.data(), packed.data(), num_threads});
    kernels.forward(params);
  }
  return out;
}

// Rows of float32 tables (count, N) that ids (M,) int64 name, added, normalized and dropped from;
// returns (out, mean, rstd).
inline py::tuple native_embedding(const std::string& isa,
                                  const std::vector<py::array_t<float>>& tables,
                                  const std::vector<py::array_t<int64_t>>& ids, double eps,
                                  double p, int num_threads) {
  EmbeddingForwardParams params = {};
  params.row_count = ids.at(0).size();
  params.columns = tables.at(0).shape(1);
  for (size_t i = 0; i < tables.size(); ++i) {
    params.tables[i] = {tables[i].data(), ids.at(i).data(), tables[i].shape(0), nullptr, -1};
  }
  params.eps = eps;
  params.dtype = DType::kFloat32;
  params.dropout = {p, 7, 0, nullptr, params.row_count};
  params.num_threads = num_threads;
  py::array out = new_array(tables[0].dtype(), {params.row_count, params.columns});
  py::array mean = new_array(tables[0].dtype(), {params.row_count});
  py::array rstd = new_array(tables[0].dtype(), {params.row_count});
  params.out = out.mutable_data();
  params.mean = mean.mutable_data();
  params.rstd = rstd.mutable_data();
  const AlignedBytes scratch(embedding_forward_scratch(params));
  params.scratch = scratch.data();
  const EmbeddingKernels& kernels = table_of(isa).embedding;
  {
    py::gil_scoped_release no_gil;
    kernels.forward(params);
  }
  return py::make_tuple(out, mean, rstd);
}

// The gradients of the tables for dout (M, N), without dropout and weight.
inline py::list native_embedding_backward(const std::string& isa, const py::array_t<float>& dout,
                                          const py::array_t<float>& mean,
                                          const py::array_t<float>& rstd,
                                          const std::vector<py::array_t<float>>& tables,
                                          const std::vector<py::array_t<int64_t>>& ids,
                                          int num_threads) {
  EmbeddingBackwardParams params = {};
  params.row_count = dout.shape(0);
  params.columns = dout.shape(1);
  py::list found;
  for (size_t i = 0; i < tables.size(); ++i) {
    py::array gradient = new_array(tables[i].dtype(), {tables[i].shape(0), params.columns});
    params.tables[i] = {tables[i].data(), ids.at(i).data(), tables[i].shape(0),
                        gradient.mutable_data(), -1};
    found.append(gradient);
  }
  py::array dweight = new_array(dout.dtype(), {params.columns});
  py::array dbias = new_array(dout.dtype(), {params.columns});
  params.dout = dout.data();
  params.mean = mean.data();
  params.rstd = rstd.data();
  params.dweight = dweight.mutable_data();
  params.dbias = dbias.mutable_data();
  params.dropout = {0.0, 0, 0, nullptr, params.row_count};
  params.dtype = DType::kFloat32;
  params.num_threads = num_threads;
  const AlignedBytes scratch(embedding_backward_scratch(params));
  params.scratch = scratch.data();
  const EmbeddingKernels& kernels = table_of(isa).embedding;
  {
    py::gil_scoped_release no_gil;
    kernels.backward(params);
  }
  found.append(dbias);
  return found;
}

inline void define_encoder(py::module_& m) {
  m.def("encoder", native_encoder, py::arg("isa"), py::arg("precision"), py::arg("x"),
        py::arg("starts"), py::arg("weights"), py::arg("heads"), py::arg("eps") = 1e-5,
        py::arg("activation") = "gelu", py::arg("norm_first") = false, py::arg("causal") = false,
        py::arg("num_threads") = 1);
  m.def("embedding", native_embedding, py::arg("isa"), py::arg("tables"), py::arg("ids"),
        py::arg("eps") = 1e-5, py::arg("p") = 0.0, py::arg("num_threads") = 1);
  m.def("embedding_backward", native_embedding_backward, py::arg("isa"), py::arg("dout"),
        py::arg("mean"), py::arg("rstd"), py::arg("tables"), py::arg("ids"),
        py::arg("num_threads") = 1);
}

}  // namespace bigkernels
