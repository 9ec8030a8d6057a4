// What the rooms of bigkernels._native share: NumPy arrays seen as the kernels' pointers and
// dtypes.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa/table.h"

namespace bigkernels {

namespace py = pybind11;

inline const KernelTable& table_of(const std::string& isa) {
  const KernelTable* table = kernels_for(isa.c_str());
  if (table == nullptr) throw std::invalid_argument("isa: this machine cannot run " + isa);
  return *table;
}

// NumPy has no bfloat16: 16-bit floats come as uint16 bits, and the dtype is named.
inline DType dtype_named(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float16") return DType::kFloat16;
  if (name == "float64") return DType::kFloat64;
  throw std::invalid_argument("dtype: " + name);
}

inline py::dtype numpy_dtype(DType dtype) {
  if (dtype == DType::kFloat32) return py::dtype::of<float>();
  if (dtype == DType::kFloat64) return py::dtype::of<double>();
  return py::dtype::of<uint16_t>();
}

inline py::array new_array(const py::dtype& dtype, const std::vector<py::ssize_t>& shape) {
  return py::array(dtype, shape);
}

inline void check_array(const py::array& array, const char* name, DType dtype) {
  if (!array.dtype().is(numpy_dtype(dtype)))
    throw std::invalid_argument(std::string(name) + ": wrong dtype");
  const py::ssize_t last = array.ndim() - 1;
  if (last >= 0 && array.shape(last) > 1 && array.strides(last) != array.itemsize())
    throw std::invalid_argument(std::string(name) + ": the last dimension must be dense");
}

// A matrix of dense rows; the stride between rows, in elements, may be anything.
struct Matrix {
  const void* data;
  int64_t rows, columns, stride;

  Matrix(const py::array& array, const char* name, DType dtype) {
    check_array(array, name, dtype);
    if (array.ndim() != 2) throw std::invalid_argument(std::string(name) + ": must be 2-D");
    data = array.data();
    rows = array.shape(0);
    columns = array.shape(1);
    stride = array.strides(0) / array.itemsize();
  }
};

}  // namespace bigkernels
