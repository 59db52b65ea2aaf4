#include "builtins.h"

#include <atomic>
#include <cstring>
#include <exception>
#include <new>
#include <vector>

#include "bridge.h"
#include "fresh.h"
#include "trees.h"

namespace ndtorch {
namespace {

using Method = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);

struct Function {
  const char* name;
  Method method;
  PyObject* slow;
  PyObject* inside;
};

std::atomic<bool> watching{false};

bool is_alone(Py_ssize_t nargs) {
  return nargs == 1 && !watching.load(std::memory_order_relaxed) && !has_dispatch_modes();
}

// The options that the plain case knows.
struct Wishes {
  PyObject* copy = Py_None;
  PyObject* dtype = Py_None;
  PyObject* float_dtype = Py_None;
};

// False where there are other options.
bool read_wishes(PyObject* const* values, PyObject* names, Wishes* wishes) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    if (PyUnicode_CompareWithASCIIString(name, "copy") == 0) {
      wishes->copy = values[i];
    } else if (PyUnicode_CompareWithASCIIString(name, "dtype") == 0) {
      wishes->dtype = values[i];
    } else if (PyUnicode_CompareWithASCIIString(name, "float_dtype") == 0) {
      wishes->float_dtype = values[i];
    } else {
      return false;
    }
  }
  return wishes->dtype == Py_None || wishes->float_dtype == Py_None;
}

// nullptr where Python decides, and, with an exception set, where the copy was interrupted.
PyObject* to_wished_tensor(PyObject* array, const Wishes& wishes) {
  PyObject* dtype = wishes.dtype;
  if (wishes.float_dtype != Py_None) {
    dtype = dtype_among_floats(array, wishes.float_dtype);
    if (dtype == nullptr) return nullptr;
  }
  const bool keeps_dtype = dtype == Py_None || has_dtype(array, dtype);
  if (wishes.copy == Py_True || (wishes.copy == Py_None && !keeps_dtype)) {
    return copy_plain_array(array, dtype);
  }
  if (!keeps_dtype || (wishes.copy != Py_None && wishes.copy != Py_False)) return nullptr;
  PyObject* shared = to_plain_tensor(array);
  // What torch cannot describe, or must not write to, is copied unless that was forbidden.
  const bool may_copy = wishes.copy == Py_None && !is_shareable_array(array, false);
  return shared == nullptr && may_copy ? copy_plain_array(array, Py_None) : shared;
}

PyObject* to_torch(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames);
PyObject* to_numpy(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames);

Function functions[] = {{"to_torch", to_torch, nullptr, nullptr},
                        {"to_numpy", to_numpy, nullptr, nullptr}};

// Converts what is no plain leaf of a structure as the whole call would.
LeafFunction other_leaf(const Function& function, PyObject* const* values, PyObject* names) {
  return [&function, values, names](PyObject* leaf) -> PyObject* {
    if (names == nullptr) return PyObject_CallOneArg(function.inside, leaf);
    std::vector<PyObject*> arguments = {leaf};
    arguments.insert(arguments.end(), values, values + PyTuple_GET_SIZE(names));
    return PyObject_Vectorcall(function.inside, arguments.data(), 1, names);
  };
}

// Python calls these as C functions, through which no exception may pass.
template <typename Act>
PyObject* without_throwing(Act act) {
  try {
    return act();
  } catch (const std::exception& error) {  // no memory: nothing else here throws
    return PyErr_Format(PyExc_MemoryError, "%s", error.what());
  }
}

PyObject* convert_to_torch(PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  const Function& self = functions[0];
  Wishes wishes;
  if (is_alone(nargs) && !in_transform() &&
      (kwnames == nullptr || read_wishes(args + 1, kwnames, &wishes))) {
    PyObject* result = to_wished_tensor(args[0], wishes);
    if (result == nullptr && PyErr_Occurred() == nullptr) {
      result = convert_tree(args[0],
                            {[&wishes](PyObject* leaf) { return to_wished_tensor(leaf, wishes); },
                             other_leaf(self, args + 1, kwnames)});
    }
    if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  }
  return PyObject_Vectorcall(self.slow, args, static_cast<size_t>(nargs), kwnames);
}

PyObject* convert_to_numpy(PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  const Function& self = functions[1];
  if (is_alone(nargs) && kwnames == nullptr && !is_accelerator_in_use()) {
    PyObject* result = to_plain_array(args[0]);
    if (result == nullptr) {
      result = convert_tree(args[0], {to_plain_array, other_leaf(self, nullptr, nullptr)});
    }
    if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  }
  return PyObject_Vectorcall(self.slow, args, static_cast<size_t>(nargs), kwnames);
}

PyObject* to_torch(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  return without_throwing([&] { return convert_to_torch(args, nargs, kwnames); });
}

PyObject* to_numpy(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  return without_throwing([&] { return convert_to_numpy(args, nargs, kwnames); });
}

}  // namespace

void watch(bool active) { watching.store(active, std::memory_order_relaxed); }

PyObject* accelerate(PyObject* name, PyObject* module, PyObject* slow, PyObject* inside,
                     const char* doc) {
  for (Function& function : functions) {
    if (PyUnicode_CompareWithASCIIString(name, function.name) != 0) continue;
    // The builtin points at its definition for good, so neither is ever freed.
    auto* definition = new (std::nothrow) PyMethodDef{
        function.name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function.method)),
        METH_FASTCALL | METH_KEYWORDS, strdup(doc)};
    if (definition == nullptr) return PyErr_NoMemory();
    // With no __self__ it pickles by module and name.
    PyObject* builtin = PyCFunction_NewEx(definition, nullptr, module);
    if (builtin != nullptr) {
      Py_XSETREF(function.slow, Py_NewRef(slow));
      Py_XSETREF(function.inside, Py_NewRef(inside));
    }
    return builtin;
  }
  return PyErr_Format(PyExc_ValueError, "nothing to accelerate in %R", name);
}

}  // namespace ndtorch
