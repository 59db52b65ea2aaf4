// Kernels on NumPy arrays: finds out how arrays lie in memory, releases the GIL for what is large,
// and lets Ctrl-C through.
#pragma once

#include <Python.h>

#include "copy.h"
#include "kernels.h"
#include "numpy_api.h"

namespace ndtorch {

// Whose `torch.get_num_threads` says how many threads to use.
void set_thread_count(PyObject* get_num_threads);

// kInterrupted comes with a Python exception set.
Outcome copy_with_python(const CopyRequest& request, int64_t nbytes);

// Whether torch's own `copy_` is to do a copy of dense memory: for what fits the caches, torch's
// threads, which still spin from its last operation, beat any that have to be woken.
bool is_for_torch(Dtype from, Dtype to, int64_t nbytes);

// target.copy_(source); false with no exception set where torch would not.
bool copy_by_torch(PyObject* target, PyObject* source);

// Whether the memory is NumPy's own, not a file's or another library's that may be gone.
bool is_plain_memory(PyArrayObject* array);

// The memory of an array as the source or target of a copy; the array must be of the table's
// dtypes.
bool is_copyable(PyArrayObject* array);
bool is_swapped(PyArrayObject* array);
bool is_source(PyObject* object);
bool is_target(PyObject* object);  // also writable and in native order
CopyRequest copy_request(PyArrayObject* source);

// What a call did; an error has its exception set.
enum class Filled { kDone, kLossy, kError };

// Fills `target` from `source` of the same shape. Both are of the table's dtypes; the target is in
// native order, is writable, and has no byte in common with the source.
Filled copy_array(PyObject* target, PyObject* source, bool exact);

// Fills target[i] from sources[i]. With `padding`, an array of one item of the target's dtype, a
// source may be shorter along its first axis, and the rest becomes that item.
Filled stack_arrays(PyObject* target, PyObject* sources, PyObject* padding);

// Whether all objects of a tuple are exact arrays of the table's dtypes in NumPy's own memory, and
// which is the first whose shape differs from the first one's; the length where none does.
struct Survey {
  bool is_plain;
  Py_ssize_t odd_one;
  uint64_t dtypes;  // a bit for each Dtype that occurs
};
Survey survey(PyObject* arrays);

// NHWC pixels to planes (`target` is NCHW or, for one picture, CHW) or to interleaved pixels (NHWC
// or HWC); the target is dense in row-major order.
Filled fill_planes(PyObject* target, PyObject* pixels, bool is_interleaved, const Affine& affine);

// The way back: `planes` seen as NHWC, float32, float16 or bfloat16, to dense pixels. kLossy
// where the planes lie in a way that no kernel reads.
Filled fill_pixels(PyObject* target, PyObject* planes, const Affine& affine);

}  // namespace ndtorch
