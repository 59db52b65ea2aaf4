// The two functions users call most, as raw CPython builtins: they take the plain case and leave
// every other call to the Python function that `accelerate` was given.
#pragma once

#include <Python.h>

namespace ndtorch {

// While true, every call of an accelerated function goes to its slow function.
void watch(bool active);

// A builtin named `name` that handles the plain case and leaves the rest to `slow`. New reference.
PyObject* accelerate(PyObject* name, PyObject* module, PyObject* slow, const char* doc);

}  // namespace ndtorch
