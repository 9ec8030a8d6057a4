// The vector verbs of common/cpu/parts.h on NumPy arrays.
#pragma once

#include "common/philox.h"
#include "module_arrays.h"

namespace bigkernels {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

inline Function function_named(const std::string& name) {
  static constexpr const char* kNames[] = {"exp", "erf", "tanh", "sqrt", "round", "abs"};
  for (int i = 0; i < 6; ++i)
    if (name == kNames[i]) return static_cast<Function>(i);
  throw std::invalid_argument("function: " + name);
}

inline std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const char* name : {"scalar", "avx2", "avx512"})
    if (kernels_for(name) != nullptr) names.push_back(name);
  return names;
}

// Writes into `out`, so that the caller decides on alignment and sees what lies around it.
template <class T>
void map_into(const std::string& isa, const std::string& function, const Array<T>& x,
              Array<T>& out) {
  if (x.size() != out.size()) throw std::invalid_argument("out: must be as long as x");
  const PartKernels& parts = table_of(isa).parts;
  if constexpr (sizeof(T) == 4) {
    parts.map(function_named(function), x.data(), out.mutable_data(), x.size());
  } else {
    parts.map_float64(function_named(function), x.data(), out.mutable_data(), x.size());
  }
}

inline void convert_into(const std::string& isa, const std::string& from, const py::array& x,
                         const std::string& to, py::array& out) {
  check_array(x, "x", dtype_named(from));
  check_array(out, "out", dtype_named(to));
  if (x.ndim() != 1 || out.ndim() != 1 || x.size() != out.size())
    throw std::invalid_argument("x, out: must be 1-D and equally long");
  table_of(isa).parts.convert(dtype_named(from), x.data(), dtype_named(to), out.mutable_data(),
                              x.size());
}

// counters (n, 4) uint32, any n: whole vectors of them at a time.
inline Array<uint32_t> philox_words(const std::string& isa, const Array<uint32_t>& counters,
                                    uint64_t seed) {
  const PartKernels& parts = table_of(isa).parts;
  if (counters.ndim() != 2 || counters.shape(1) != 4)
    throw std::invalid_argument("counters: must be (n, 4)");
  const int64_t n = counters.size();
  std::vector<uint32_t> in(n + parts.lanes), out(n + parts.lanes);
  std::copy(counters.data(), counters.data() + n, in.begin());
  for (int64_t i = 0; i < n; i += parts.lanes) parts.philox(&in[i], seed, &out[i]);
  Array<uint32_t> words({counters.shape(0), counters.shape(1)});
  std::copy(out.begin(), out.begin() + n, words.mutable_data());
  return words;
}

inline Array<uint32_t> scalar_philox(const Array<uint32_t>& counter, uint64_t seed) {
  if (counter.size() != 4) throw std::invalid_argument("counter: must have 4 words");
  PhiloxWords words;
  std::copy(counter.data(), counter.data() + 4, words.word);
  words = philox(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return Array<uint32_t>(4, words.word);
}

inline py::tuple multiply_wide(const std::string& isa, const Array<uint32_t>& a,
                               const Array<uint32_t>& b) {
  const PartKernels& parts = table_of(isa).parts;
  if (a.size() != parts.lanes || b.size() != parts.lanes)
    throw std::invalid_argument("a, b: must have one element per lane");
  Array<uint32_t> high(parts.lanes), low(parts.lanes);
  parts.multiply_wide(a.data(), b.data(), high.mutable_data(), low.mutable_data());
  return py::make_tuple(high, low);
}

inline Array<bool> dropout_mask(const std::string& isa, double p, int64_t seed, int64_t offset,
                                uint32_t i, uint32_t b, int64_t n) {
  Array<bool> keep(n);
  table_of(isa).parts.dropout(p, seed, offset, i, b,
                              reinterpret_cast<uint8_t*>(keep.mutable_data()), n);
  return keep;
}

inline void define_parts(py::module_& m) {
  m.def("instruction_sets", instruction_sets, "Those this machine can run, the plainest first.");
  m.def("chosen", [] { return kernels().isa; }, "The one the kernels use, see BIGKERNELS_ISA.");
  m.def("lanes", [](const std::string& isa) { return table_of(isa).parts.lanes; });
  m.def("map", map_into<float>, py::arg("isa"), py::arg("function"), py::arg("x").noconvert(),
        py::arg("out").noconvert());
  m.def("map", map_into<double>, py::arg("isa"), py::arg("function"), py::arg("x").noconvert(),
        py::arg("out").noconvert());
  m.def("convert", convert_into, py::arg("isa"), py::arg("source"), py::arg("x"), py::arg("target"),
        py::arg("out"));
  m.def("sum", [](const std::string& isa, const Array<float>& x) {
    return table_of(isa).parts.sum(x.data(), x.size());
  });
  m.def("maximum", [](const std::string& isa, const Array<float>& x) {
    return table_of(isa).parts.maximum(x.data(), x.size());
  });
  m.def("multiply_wide", multiply_wide);
  m.def("philox", philox_words);
  m.def("scalar_philox", scalar_philox);
  m.def("dropout_mask", dropout_mask, py::arg("isa"), py::arg("p"), py::arg("seed"),
        py::arg("offset"), py::arg("i"), py::arg("b"), py::arg("n"));
}

}  // namespace bigkernels
