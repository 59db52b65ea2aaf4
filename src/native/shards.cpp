#include "shards.h"

#include <algorithm>
#include <utility>

namespace ndtorch {
namespace {

// Of all that may be open at a time, what one call may hold: several threads do.
constexpr int64_t kShareOfOneCall = 4;

// To look at a file costs as much as to gather a few rows.
constexpr int64_t kRowsPerLook = 32;
constexpr int64_t kFewestLooks = 8;

// What `open` gave, taken apart; false with an exception set.
bool take_piece(PyObject* found, Piece& piece) {
  PyObject *owner, *path;
  unsigned long long address, device, inode;
  long long end;
  int descriptor, is_map;
  if (!PyTuple_Check(found)) {
    PyErr_SetString(PyExc_TypeError, "not a shard");
    return false;
  }
  if (!PyArg_ParseTuple(found, "OKSiKKLp", &owner, &address, &path, &descriptor, &device, &inode,
                        &end, &is_map)) {
    return false;
  }
  piece.first = reinterpret_cast<const char*>(static_cast<uintptr_t>(address));
  piece.file = {PyBytes_AS_STRING(path), descriptor, device, inode, end};
  piece.owner = owner;
  piece.is_map = is_map != 0;
  return true;
}

}  // namespace

Shards::Shards(std::vector<int64_t> starts, int64_t row_nbytes, PyObject* open, PyObject* check,
               int64_t most)
    : pieces_(std::move(starts), row_nbytes),
      open_(Py_NewRef(open)),
      check_(Py_NewRef(check)),
      most_(most) {}

Shards::~Shards() {
  while (auto* owner = static_cast<PyObject*>(pieces_.take_out(0))) Py_DECREF(owner);
  Py_DECREF(open_);
  Py_DECREF(check_);
}

Touched Shards::touched(const int64_t* rows, int64_t count) const {
  if (most_ >= pieces_.count()) return pieces_.touched(rows, count, pieces_.count());
  return pieces_.touched(rows, count, std::max<int64_t>(most_ / kShareOfOneCall, 1));
}

Holding Shards::hold(const Touched& touched, const int64_t* rows, int64_t offset,
                     WithoutGil& released, FileSizes& sizes, std::optional<HeldRows>& held) {
  std::vector<int64_t> numbers, missing;
  for (const int64_t piece : touched.pieces) {
    (pieces_.hold(piece) ? numbers : missing).push_back(piece);
  }
  bool is_memory = true;
  const bool is_open = missing.empty() || released.with_gil([&] {
    return std::all_of(missing.begin(), missing.end(), [&](int64_t piece) {
      if (!open(piece, is_memory)) return false;
      if (is_memory) numbers.push_back(piece);
      return is_memory;
    });
  });
  const auto give_up = [&](Holding why) {
    for (const int64_t piece : numbers) pieces_.let_go(piece);
    return why;
  };
  if (!is_open) return give_up(is_memory ? Holding::kError : Holding::kNotMemory);
  const auto rows_to_come = static_cast<int64_t>(touched.of_rows.size());
  const int64_t looks = std::max(rows_to_come / kRowsPerLook, kFewestLooks);
  const std::vector<int64_t> odd = pieces_.not_whole(numbers, looks, sizes);
  if (!odd.empty() && !released.with_gil([&] { return check(odd); })) {
    return give_up(Holding::kError);
  }
  held.emplace(pieces_, touched, rows, offset);
  return Holding::kDone;
}

bool Shards::open(int64_t number, bool& is_memory) {
  if (pieces_.hold(number)) return true;  // another thread has been faster
  PyObject* found = PyObject_CallFunction(open_, "L", static_cast<long long>(number));
  if (found == nullptr) return false;
  Piece piece;
  if (found == Py_None || !take_piece(found, piece)) {
    is_memory = found != Py_None;
    Py_DECREF(found);
    return false;
  }
  if (pieces_.hold(number)) {
    Py_DECREF(found);
    return true;
  }
  Py_INCREF(static_cast<PyObject*>(piece.owner));
  pieces_.put(number, std::move(piece));
  Py_DECREF(found);
  while (auto* oldest = static_cast<PyObject*>(pieces_.take_out(most_))) Py_DECREF(oldest);
  return true;
}

bool Shards::check(const std::vector<int64_t>& odd) {
  return std::all_of(odd.begin(), odd.end(), [&](int64_t piece) {
    PyObject* done = PyObject_CallOneArg(check_, static_cast<PyObject*>(pieces_.owner(piece)));
    Py_XDECREF(done);
    return done != nullptr;
  });
}

}  // namespace ndtorch
