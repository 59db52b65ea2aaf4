#include "dtype_table.h"

#include <array>
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

  Table() { scalar_types.fill(kNone); }
};

Table& table() {
  static auto* const the_table = new Table;  // holds Python objects: never destroyed
  return *the_table;
}

size_t index(Dtype dtype) { return static_cast<size_t>(dtype); }

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
    fresh.torch.emplace_back(Py_NewRef(row.torch_dtype), static_cast<Dtype>(scalar_type));
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

std::optional<Dtype> dtype_of_torch(PyObject* torch_dtype) {
  for (const auto& [object, dtype] : table().torch) {
    if (object == torch_dtype) return dtype;
  }
  return std::nullopt;
}

dlpack::DataType dlpack_type_of(Dtype dtype) { return table().dlpack[index(dtype)]; }

bool is_same_kind(Dtype from, Dtype to) {
  return table().kind_rank[index(from)] <= table().kind_rank[index(to)];
}

}  // namespace ndtorch
