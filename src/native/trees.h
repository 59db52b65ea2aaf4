// Structures taken apart and put together: exact dicts, lists and tuples, nested as they come.
#pragma once

#include <Python.h>

#include <functional>

namespace ndtorch {

// What becomes of the leaves. A new reference, or nullptr: with an exception set, or with none
// where the leaf is not plain.
using LeafFunction = std::function<PyObject*(PyObject*)>;

struct LeafFunctions {
  LeafFunction plain;
  LeafFunction other;  // Python's: whatever is not plain, other containers included
};

// The same structure with its leaves converted. Text, None and Python's numbers stay themselves.
// nullptr with no exception set where it is not an exact container, may be one array of numbers,
// changed meanwhile, or where a leaf failed, which Python is to find out with its path. Ctrl-C
// comes with its exception set.
PyObject* convert_tree(PyObject* tree, const LeafFunctions& leaves);

}  // namespace ndtorch
