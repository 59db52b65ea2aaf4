// The two functions users call most, as raw CPython builtins: they take the plain case and leave
// every other call to the Python function that `accelerate` was given.
#pragma once

#include <Python.h>

namespace ndtorch {

// While true, every call of an accelerated function goes to its slow function.
void watch(bool active);

// A builtin named `name` that handles the plain case, and structures of it, and leaves the rest to
// `slow`; within a structure, what is not plain goes to `inside` with the call's keywords. New
// reference.
PyObject* accelerate(PyObject* name, PyObject* module, PyObject* slow, PyObject* inside,
                     const char* doc);

}  // namespace ndtorch
