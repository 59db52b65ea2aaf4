#include "arrays.h"

#include <algorithm>
#include <vector>

#include "bridge.h"
#include "dtype_table.h"
#include "numpy_api.h"
#include "pictures.h"
#include "without_gil.h"

namespace ndtorch {
namespace {

static_assert(sizeof(npy_intp) == sizeof(int64_t), "shapes are passed on as they are");

// Copies of less are done before another thread could make use of the GIL.
constexpr int64_t kHoldGilBelow = 1 << 18;

PyObject* get_num_threads = nullptr;

int thread_count(int64_t nbytes) {
  if (threads_for(nbytes, 2) == 1 || get_num_threads == nullptr) return 1;
  PyObject* count = PyObject_CallNoArgs(get_num_threads);
  const long threads = count == nullptr ? -1 : PyLong_AsLong(count);
  Py_XDECREF(count);
  if (PyErr_Occurred() != nullptr) PyErr_Clear();
  return static_cast<int>(std::clamp(threads, 1L, 1024L));
}

// `act` is given the number of threads and what tells it to stop.
template <typename Act>
Outcome with_python(int64_t nbytes, Act act) {
  if (nbytes < kHoldGilBelow) return act(1, Interrupt{});
  const int threads = thread_count(nbytes);
  WithoutGil released;
  return act(threads, released.interrupt());
}

Filled filled(Outcome outcome) {
  switch (outcome) {
    case Outcome::kDone:
      return Filled::kDone;
    case Outcome::kStopped:
      return Filled::kLossy;
    case Outcome::kInterrupted:
      break;
  }
  return Filled::kError;
}

Filled refuse(const char* what) {
  PyErr_SetString(PyExc_ValueError, what);
  return Filled::kError;
}

void aim(CopyRequest& request, PyArrayObject* target) {
  request.dst = PyArray_DATA(target);
  request.dst_strides = PyArray_STRIDES(target);
  request.dst_dtype = *dtype_of(PyArray_DESCR(target));
}

}  // namespace

void set_thread_count(PyObject* function) { Py_XSETREF(get_num_threads, Py_NewRef(function)); }

bool is_plain_memory(PyArrayObject* array) {
  PyObject* base = PyArray_BASE(array);
  while (base != nullptr && PyArray_CheckExact(base)) {
    base = PyArray_BASE(reinterpret_cast<PyArrayObject*>(base));
  }
  return base == nullptr;
}

bool is_copyable(PyArrayObject* array) {
  const auto dtype = dtype_of(PyArray_DESCR(array));
  return dtype && can_cast(*dtype, *dtype) && PyArray_NDIM(array) <= kMaxDims;
}

bool is_swapped(PyArrayObject* array) { return !PyArray_ISNBO(PyArray_DESCR(array)->byteorder); }

bool is_target(PyObject* object) {
  if (!PyArray_Check(object)) return false;
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  return is_copyable(array) && !is_swapped(array) && PyArray_ISWRITEABLE(array);
}

bool is_source(PyObject* object) {
  return PyArray_Check(object) && is_copyable(reinterpret_cast<PyArrayObject*>(object));
}

CopyRequest copy_request(PyArrayObject* source) {
  CopyRequest request{};
  request.ndim = PyArray_NDIM(source);
  request.shape = PyArray_DIMS(source);
  request.src = PyArray_DATA(source);
  request.src_strides = PyArray_STRIDES(source);
  request.src_dtype = *dtype_of(PyArray_DESCR(source));
  request.src_is_swapped = is_swapped(source);
  return request;
}

bool is_for_torch(Dtype from, Dtype to, int64_t nbytes) {
  // Twice the memory that malloc recycles: larger results lie on fresh huge pages.
  constexpr int64_t kUpTo = 1 << 26;
  const auto is_common = [](Dtype dtype) {
    return dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64;
  };
  if (from != to && !(is_common(from) && is_common(to))) return false;  // torch may round otherwise
  return nbytes < kUpTo && !is_forked() && thread_count(nbytes) > 1;
}

bool copy_by_torch(PyObject* target, PyObject* source) {
  PyObject* result = target == nullptr || source == nullptr
                         ? nullptr
                         : PyObject_CallMethod(target, "copy_", "O", source);
  const bool copied = result != nullptr && result == target;
  Py_XDECREF(result);
  PyErr_Clear();
  return copied;
}

Outcome copy_with_python(const CopyRequest& request, int64_t nbytes) {
  const StridedCopy job(request);  // before other threads can change an array's shape
  return with_python(
      nbytes, [&](int threads, Interrupt interrupt) { return copy(job, threads, interrupt); });
}

Filled copy_array(PyObject* target, PyObject* source, bool exact) {
  if (!is_target(target) || !is_source(source)) return refuse("not arrays that can be copied");
  auto* to = reinterpret_cast<PyArrayObject*>(target);
  auto* from = reinterpret_cast<PyArrayObject*>(source);
  if (PyArray_NDIM(to) != PyArray_NDIM(from) ||
      !std::equal(PyArray_DIMS(to), PyArray_DIMS(to) + PyArray_NDIM(to), PyArray_DIMS(from))) {
    return refuse("shapes differ");
  }
  CopyRequest request = copy_request(from);
  aim(request, to);
  request.exact = exact;
  const int64_t nbytes = PyArray_NBYTES(to) + PyArray_NBYTES(from);
  if (!exact && PyArray_IS_C_CONTIGUOUS(from) && PyArray_IS_C_CONTIGUOUS(to) &&
      is_for_torch(request.src_dtype, request.dst_dtype, nbytes)) {
    PyObject* shared[] = {share(target), share(source)};
    const bool copied = copy_by_torch(shared[0], shared[1]);
    for (PyObject* tensor : shared) Py_XDECREF(tensor);
    if (copied) return Filled::kDone;
  }
  return filled(copy_with_python(request, nbytes));
}

// ---- stack -----------------------------------------------------------------------------------

namespace {

// Copies into the places of a stack: each source, and where it is padded one item to all the rest.
// Shapes and strides are kept here, since other threads may change those of the arrays.
class Pieces {
 public:
  Pieces(PyArrayObject* target, size_t count)
      : ndim_(PyArray_NDIM(target) - 1),
        dst_strides_(PyArray_STRIDES(target) + 1, PyArray_STRIDES(target) + 1 + ndim_) {
    pieces_.reserve(count);
    numbers_.reserve(2 * count * static_cast<size_t>(ndim_));
  }

  void add(CopyRequest request, int64_t length, const int64_t* src_strides) {
    request.ndim = ndim_;
    request.dst_strides = dst_strides_.data();
    const size_t at = numbers_.size();
    numbers_.insert(numbers_.end(), request.shape, request.shape + ndim_);
    numbers_.insert(numbers_.end(), src_strides, src_strides + ndim_);
    if (ndim_ > 0) numbers_[at] = length;
    pieces_.push_back({request, at, 0});
  }

  // Numbers the units of all copies; returns how many there are.
  int64_t count_units() {
    int64_t units = 0;
    for (Piece& piece : pieces_) {
      piece.request.shape = numbers_.data() + piece.at;
      piece.request.src_strides = piece.request.shape + ndim_;
      piece.first_unit = units;
      units += StridedCopy(piece.request).units();
    }
    return units;
  }

  void run(int64_t begin, int64_t end) const {
    auto piece = std::upper_bound(pieces_.begin(), pieces_.end(), begin,
                                  [](int64_t unit, const Piece& p) { return unit < p.first_unit; });
    for (--piece; begin < end; ++piece) {
      const StridedCopy job(piece->request);
      const int64_t last = std::min(end - piece->first_unit, job.units());
      job.run(begin - piece->first_unit, last);
      begin = piece->first_unit + last;
    }
  }

 private:
  struct Piece {
    CopyRequest request;
    size_t at;  // of its shape in `numbers_`, which its strides follow
    int64_t first_unit;
  };

  int ndim_;
  std::vector<int64_t> dst_strides_;
  std::vector<Piece> pieces_;
  std::vector<int64_t> numbers_;
};

constexpr int64_t kNoStrides[kMaxDims] = {};

}  // namespace

Filled stack_arrays(PyObject* target, PyObject* sources, PyObject* padding) {
  if (!is_target(target) || !PyTuple_Check(sources)) return refuse("not a target and a tuple");
  auto* to = reinterpret_cast<PyArrayObject*>(target);
  const Py_ssize_t count = PyTuple_GET_SIZE(sources);
  const int ndim = PyArray_NDIM(to) - 1;
  if (ndim < 0 || PyArray_DIM(to, 0) != count) return refuse("not a place for each array");
  const npy_intp* place = PyArray_DIMS(to) + 1;
  Pieces pieces(to, static_cast<size_t>(count));
  int64_t nbytes = PyArray_NBYTES(to);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* source = PyTuple_GET_ITEM(sources, i);
    if (!is_source(source)) return refuse("not an array that can be copied");
    auto* from = reinterpret_cast<PyArrayObject*>(source);
    if (PyArray_NDIM(from) != ndim) return refuse("shapes differ");
    CopyRequest request = copy_request(from);
    aim(request, to);
    request.dst = PyArray_BYTES(to) + i * PyArray_STRIDE(to, 0);
    const int64_t length = ndim == 0 ? 1 : request.shape[0];
    for (int axis = 0; axis < ndim; ++axis) {
      const bool fits =
          axis == 0 && padding != nullptr ? length <= place[0] : request.shape[axis] == place[axis];
      if (!fits) return refuse("shapes differ");
    }
    nbytes += PyArray_NBYTES(from);
    pieces.add(request, length, request.src_strides);
    if (ndim > 0 && length < place[0]) {
      if (!is_source(padding)) return refuse("not a padding that can be copied");
      auto* item = reinterpret_cast<PyArrayObject*>(padding);
      CopyRequest rest = copy_request(item);
      aim(rest, to);
      rest.dst = static_cast<char*>(request.dst) + length * PyArray_STRIDE(to, 1);
      rest.shape = place;
      pieces.add(rest, place[0] - length, kNoStrides);
    }
  }
  const int64_t units = pieces.count_units();
  if (units == 0) return Filled::kDone;
  const int64_t grain = std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, nbytes / units));
  return filled(with_python(nbytes, [&](int threads, Interrupt interrupt) {
    return parallel_for(units, grain, threads, interrupt, [&pieces](int64_t begin, int64_t end) {
      pieces.run(begin, end);
      return true;
    });
  }));
}

Survey survey(PyObject* arrays) {
  const Py_ssize_t count = PyTuple_GET_SIZE(arrays);
  Survey found{true, count, 0};
  PyArrayObject* first = nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* object = PyTuple_GET_ITEM(arrays, i);
    auto* array = reinterpret_cast<PyArrayObject*>(object);
    if (!PyArray_CheckExact(object) || !is_copyable(array)) return {false, count, 0};
    found.is_plain &= is_plain_memory(array);
    found.dtypes |= uint64_t{1} << static_cast<unsigned>(*dtype_of(PyArray_DESCR(array)));
    if (first == nullptr) first = array;
    if (found.odd_one == count &&
        (PyArray_NDIM(array) != PyArray_NDIM(first) ||
         !std::equal(PyArray_DIMS(array), PyArray_DIMS(array) + PyArray_NDIM(array),
                     PyArray_DIMS(first)))) {
      found.odd_one = i;
    }
  }
  return found;
}

// ---- pictures --------------------------------------------------------------------------------

Filled fill_planes(PyObject* target, PyObject* pixels, bool is_interleaved, const Affine& affine) {
  if (!is_target(target) || !is_source(pixels)) return refuse("not arrays of pixels");
  auto* to = reinterpret_cast<PyArrayObject*>(target);
  auto* from = reinterpret_cast<PyArrayObject*>(pixels);
  const npy_intp* shape = PyArray_DIMS(from);
  if (PyArray_NDIM(from) != 4 || !PyArray_IS_C_CONTIGUOUS(to) ||
      PyArray_SIZE(to) != PyArray_SIZE(from) || shape[3] != affine.channels) {
    return refuse("shapes of pixels and planes differ");
  }
  PixelsRequest request{};
  std::copy_n(shape, 4, request.shape);
  std::copy_n(PyArray_STRIDES(from), 4, request.src_strides);
  request.src = PyArray_DATA(from);
  request.src_dtype = *dtype_of(PyArray_DESCR(from));
  request.src_is_swapped = is_swapped(from);
  request.dst = PyArray_DATA(to);
  request.dst_dtype = *dtype_of(PyArray_DESCR(to));
  request.is_interleaved = is_interleaved;
  request.affine = affine;
  return filled(
      with_python(PyArray_NBYTES(to) + PyArray_NBYTES(from), [&](int threads, Interrupt interrupt) {
        return pixels_to_planes(request, threads, interrupt);
      }));
}

Filled fill_pixels(PyObject* target, PyObject* planes, const Affine& affine) {
  if (!is_target(target) || !is_source(planes)) return refuse("not arrays of planes");
  auto* to = reinterpret_cast<PyArrayObject*>(target);
  auto* from = reinterpret_cast<PyArrayObject*>(planes);
  if (PyArray_NDIM(from) != 4 || !PyArray_IS_C_CONTIGUOUS(to) ||
      PyArray_SIZE(to) != PyArray_SIZE(from) || PyArray_DIM(from, 3) != affine.channels) {
    return refuse("shapes of planes and pixels differ");
  }
  DisplayRequest request{};
  std::copy_n(PyArray_DIMS(from), 4, request.shape);
  std::copy_n(PyArray_STRIDES(from), 4, request.src_strides);
  request.src = PyArray_DATA(from);
  request.src_dtype = *dtype_of(PyArray_DESCR(from));
  request.dst = PyArray_DATA(to);
  request.dst_dtype = *dtype_of(PyArray_DESCR(to));
  request.affine = affine;
  const int64_t size = item_size(request.src_dtype);
  const int64_t* strides = request.src_strides;
  request.is_interleaved =
      affine.channels > 1 && strides[3] == size && strides[2] == affine.channels * size;
  if ((!request.is_interleaved && strides[2] != size) || is_swapped(from)) return Filled::kLossy;
  return filled(
      with_python(PyArray_NBYTES(to) + PyArray_NBYTES(from), [&](int threads, Interrupt interrupt) {
        return planes_to_pixels(request, threads, interrupt);
      }));
}

}  // namespace ndtorch
