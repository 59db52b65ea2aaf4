// Python's dtype objects and the numbers that the native code has for them, as Python's one table
// of dtypes gives them at import.
#pragma once

#include <Python.h>

#include <optional>
#include <span>

#include "dlpack_abi.h"
#include "dtypes.h"
#include "numpy_api.h"

namespace ndtorch {

// One dtype both sides can hold: every NumPy type number that means it, and torch's names for it.
struct DtypeRow {
  std::span<const int> numpy_numbers;
  PyObject* numpy_dtype;
  PyObject* torch_dtype;
  int scalar_type;
  int kind_rank;  // on the ladder of `same_kind` casts
  uint8_t dlpack_code;
  uint8_t dlpack_bits;
};

// Replaces the table. Written at import, under the GIL, and only read afterwards.
void set_dtypes(std::span<const DtypeRow> rows);

// The table's dtype of a NumPy dtype, in either byte order.
std::optional<Dtype> dtype_of(const PyArray_Descr* numpy_dtype);

// NumPy's dtype of torch's scalar type, borrowed, or nullptr.
PyArray_Descr* numpy_dtype_of(int scalar_type);

// The dtype that an object means: torch.float32, "float32", numpy.float32 or numpy's dtype of it.
// Nothing for other objects, which may mean one all the same.
std::optional<Dtype> dtype_named(PyObject* name);

dlpack::DataType dlpack_type_of(Dtype dtype);

// Whether `same_kind` allows the cast.
bool is_same_kind(Dtype from, Dtype to);

}  // namespace ndtorch
