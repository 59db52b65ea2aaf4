#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "dtypes.h"
#include "gather_calls.h"
#include "kernels.h"
#include "numpy_api.h"
#include "permutation.h"
#include "shards.h"
#include "table.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ndtorch {
namespace {

// Numbers of an order from one place to another, into an array of as many.
void fill_order(const Permutation& order, int64_t begin,
                nb::ndarray<nb::numpy, int64_t, nb::ndim<1>, nb::c_contig> out) {
  const auto count = static_cast<int64_t>(out.shape(0));
  if (begin < 0 || count > order.count() - begin) throw nb::value_error("no such places");
  order.fill(begin, begin + count, out.data());
}

Permutation permutation(int64_t count, uint64_t key) {
  if (count < 0) throw nb::value_error("a negative count");
  return {count, key};
}

using Places = std::vector<std::tuple<int64_t, int64_t>>;

// Batches of the rows at places of an order, from one to before another each, or of an array of
// their numbers. Neither where the object is None and there are no places.
Wanted wanted_of(nb::handle order, const Places& places) {
  Wanted wanted;
  int64_t end_of_all;
  if (places.empty()) return wanted;
  if (nb::isinstance<Permutation>(order)) {
    wanted.order = &nb::cast<const Permutation&>(order);
    end_of_all = wanted.order->count();
  } else {
    if (!is_row_numbers(order.ptr())) throw nb::value_error("no numbers of rows");
    auto* numbers = reinterpret_cast<PyArrayObject*>(order.ptr());
    wanted.numbers = static_cast<const int64_t*>(PyArray_DATA(numbers));
    end_of_all = PyArray_DIM(numbers, 0);
  }
  constexpr auto kMostNumbers = static_cast<int64_t>(PTRDIFF_MAX / sizeof(int64_t));
  int64_t at = 0, count = 0;
  for (const auto& [begin, end] : places) {
    if (begin < 0 || begin >= end || end > end_of_all) throw nb::value_error("no such places");
    // Numbers are one batch after the other.
    if (wanted.order == nullptr && begin != at) throw nb::value_error("rows between the batches");
    at = end;
    // More rows than there is memory for their numbers.
    if (__builtin_add_overflow(count, end - begin, &count) || count > kMostNumbers) {
      throw std::bad_alloc();
    }
    wanted.begins.push_back(begin);
    wanted.counts.push_back(end - begin);
  }
  return wanted;
}

nb::object gather_batches(const Table& table, const Blocks& blocks, nb::handle order,
                          const Places& places, nb::handle later_order,
                          const Places& later_places) {
  PyObject* made = table.gather(wanted_of(order, places), wanted_of(later_order, later_places),
                                blocks.recycler());
  if (made == nullptr && PyErr_Occurred() != nullptr) nb::raise_python_error();
  return none_if_null(made);
}

void make_shards(Shards* self, nb::ndarray<nb::numpy, int64_t, nb::ndim<1>, nb::c_contig> starts,
                 int64_t row_nbytes, nb::callable open, nb::callable check, int64_t most) {
  std::vector<int64_t> rows(starts.data(), starts.data() + starts.shape(0));
  if (rows.empty() || rows[0] != 0 || !std::is_sorted(rows.begin(), rows.end()) ||
      rows.size() > size_t{1} << 31 || row_nbytes <= 0 || most <= 0) {
    throw nb::value_error("no starts of shards");
  }
  new (self) Shards(std::move(rows), row_nbytes, open.ptr(), check.ptr(), most);
}

nb::object rows_in_shards(nb::handle_t<Shards> shards, nb::handle rows, int64_t offset) {
  std::optional<RowsInShards> held = hold_rows(shards, rows.ptr(), offset);
  if (held) return nb::cast(std::move(*held));
  if (PyErr_Occurred() != nullptr) nb::raise_python_error();
  return nb::none();
}

bool add_shards(Table& table, nb::handle source, int scalar_type, const Affine* steps,
                bool is_interleaved, nb::handle shards, int64_t offset) {
  return table.add_shards(source.ptr(), static_cast<Dtype>(scalar_type), steps, is_interleaved,
                          shards.ptr(), &nb::cast<Shards&>(shards), offset);
}

void bind_shards(nb::module_& m) {
  nb::class_<RowsInShards>(m, "RowsInShards").def("__len__", [](const RowsInShards& rows) {
    return rows.held.count();
  });
  nb::class_<Shards>(m, "Shards")
      .def("__init__", &make_shards, "starts"_a, "row_nbytes"_a, "open_one"_a, "check"_a, "most"_a)
      .def_prop_ro("open_count", [](const Shards& shards) { return shards.pieces().open_count(); })
      .def("rows", &rows_in_shards, "numbers"_a, "offset"_a = 0)
      .def(
          "announce",
          [](const Shards& shards, nb::handle rows) {
            if (!announce_in_shards(shards, rows.ptr())) nb::raise_python_error();
          },
          "numbers"_a);
}

}  // namespace

void bind_batches(nb::module_& m) {
  nb::class_<Blocks>(m, "Blocks")
      .def(nb::init<size_t>(), "idle_bytes"_a)
      .def_prop_ro("idle_bytes",
                   [](const Blocks& blocks) { return blocks.recycler()->idle_bytes(); });
  m.def(
      "gather",
      [](nb::tuple jobs) {
        if (!gather(jobs.ptr())) nb::raise_python_error();
      },
      "jobs"_a);
  m.def(
      "announce",
      [](nb::handle source, nb::handle rows) {
        if (!announce(source.ptr(), rows.ptr())) nb::raise_python_error();
      },
      "source"_a, "rows"_a);
  nb::class_<Permutation>(m, "Permutation").def("fill", &fill_order, "begin"_a, "out"_a);
  bind_shards(m);
  nb::class_<Table>(m, "Table")
      .def(nb::init<>())
      .def(
          "add",
          [](Table& table, nb::handle source, int scalar_type, const Affine* steps,
             bool is_interleaved, bool is_mapped) {
            return table.add(source.ptr(), static_cast<Dtype>(scalar_type), steps, is_interleaved,
                             is_mapped);
          },
          "source"_a, "scalar_type"_a, "steps"_a.none(), "is_interleaved"_a, "is_mapped"_a)
      .def("add_shards", &add_shards, "source"_a, "scalar_type"_a, "steps"_a.none(),
           "is_interleaved"_a, "shards"_a, "offset"_a)
      .def("gather", &gather_batches, "blocks"_a, "order"_a, "places"_a,
           "later_order"_a.none() = nb::none(), "later_places"_a = Places{});
  m.def("permutation", &permutation, "count"_a, "key"_a);
  m.def("mix", &mix, "key"_a, "number"_a);
}

}  // namespace ndtorch
