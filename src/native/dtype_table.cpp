#include "dtype_table.h"

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "numpy_api.h"

namespace ndtorch {
namespace {

constexpr size_t kNumpyNumbers = 512;  // NumPy's own count from 0, registered ones from 256
constexpr int8_t kNone = -1;

struct Table {
  std::array<int8_t, kNumpyNumbers> scalar_types;
  std::array<dlpack::DataType, kDtypeCount> dlpack{};
  std::array<PyArray_Descr*, kDtypeCount> numpy{};
  std::array<int, kDtypeCount> kind_rank{};
  std::vector<std::pair<PyObject*, Dtype>> torch;
  std::vector<std::pair<PyObject*, Dtype>> names;  // other objects that mean the same

  Table() { scalar_types.fill(kNone); }
};

Table& table() {
  static auto* const the_table = new Table;  // holds Python objects: never destroyed
  return *the_table;
}

size_t index(Dtype dtype) { return static_cast<size_t>(dtype); }

// "float32" of torch.float32, as the one object that most such literals are. New reference.
PyObject* interned_name(PyObject* torch_dtype) {
  PyObject* text = PyObject_Str(torch_dtype);
  const char* name = text == nullptr ? nullptr : PyUnicode_AsUTF8(text);
  const char* last = name == nullptr ? nullptr : std::strrchr(name, '.');
  PyObject* interned = last == nullptr ? nullptr : PyUnicode_InternFromString(last + 1);
  Py_XDECREF(text);
  PyErr_Clear();
  return interned;
}

}  // namespace

void set_dtypes(std::span<const DtypeRow> rows) {
  Table fresh;
  for (const DtypeRow& row : rows) {
    const auto scalar_type = static_cast<size_t>(row.scalar_type);
    if (scalar_type >= kDtypeCount || item_size(static_cast<Dtype>(scalar_type)) == 0) continue;
    for (int number : row.numpy_numbers) {
      if (static_cast<size_t>(number) >= kNumpyNumbers) continue;
      fresh.scalar_types[static_cast<size_t>(number)] = static_cast<int8_t>(scalar_type);
    }
    fresh.dlpack[scalar_type] = {row.dlpack_code, row.dlpack_bits, 1};
    fresh.kind_rank[scalar_type] = row.kind_rank;
    // The dtypes of this table live as long as the process; the references make sure.
    fresh.numpy[scalar_type] = reinterpret_cast<PyArray_Descr*>(Py_NewRef(row.numpy_dtype));
    const auto dtype = static_cast<Dtype>(scalar_type);
    fresh.torch.emplace_back(Py_NewRef(row.torch_dtype), dtype);
    auto* scalar = reinterpret_cast<PyObject*>(fresh.numpy[scalar_type]->typeobj);
    for (PyObject* name :
         {interned_name(row.torch_dtype), Py_NewRef(row.numpy_dtype), Py_NewRef(scalar)}) {
      if (name != nullptr) fresh.names.emplace_back(name, dtype);
    }
  }
  table() = std::move(fresh);
}

std::optional<Dtype> dtype_of(const PyArray_Descr* numpy_dtype) {
  const auto number = static_cast<size_t>(numpy_dtype->type_num);
  if (number >= kNumpyNumbers || table().scalar_types[number] == kNone) return std::nullopt;
  return static_cast<Dtype>(table().scalar_types[number]);
}

PyArray_Descr* numpy_dtype_of(int scalar_type) {
  const auto number = static_cast<size_t>(scalar_type);
  return number < kDtypeCount ? table().numpy[number] : nullptr;
}

std::optional<Dtype> dtype_named(PyObject* name) {
  for (const auto* known : {&table().torch, &table().names}) {
    for (const auto& [object, dtype] : *known) {
      if (object == name) return dtype;
    }
  }
  if (!PyUnicode_CheckExact(name)) return std::nullopt;
  for (const auto& [object, dtype] : table().names) {  // a string that is not a literal
    if (PyUnicode_CheckExact(object) && PyUnicode_Compare(object, name) == 0) return dtype;
  }
  return std::nullopt;
}

dlpack::DataType dlpack_type_of(Dtype dtype) { return table().dlpack[index(dtype)]; }

bool is_same_kind(Dtype from, Dtype to) {
  return table().kind_rank[index(from)] <= table().kind_rank[index(to)];
}

}  // namespace ndtorch
