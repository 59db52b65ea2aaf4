#include "builtins.h"

#include <atomic>
#include <cstring>
#include <new>

#include "bridge.h"
#include "fresh.h"

namespace ndtorch {
namespace {

using Method = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);

struct Function {
  const char* name;
  Method method;
  PyObject* slow;
};

std::atomic<bool> watching{false};

// All or nothing: a list in which one item is not plain is Python's. Creating objects can run the
// garbage collector and so anything, hence the snapshot and the second look at each item.
template <bool (*is_plain)(PyObject*), PyObject* (*convert)(PyObject*)>
PyObject* convert_list(PyObject* list) {
  if (PyList_GET_SIZE(list) == 0 || !is_plain(PyList_GET_ITEM(list, 0))) return nullptr;
  PyObject* items = PyList_AsTuple(list);
  if (items == nullptr) {
    PyErr_Clear();
    return nullptr;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(items);
  bool plain = count > 0;
  for (Py_ssize_t i = 0; plain && i < count; ++i) plain = is_plain(PyTuple_GET_ITEM(items, i));
  PyObject* results = plain ? PyList_New(count) : nullptr;
  for (Py_ssize_t i = 0; results != nullptr && i < count; ++i) {
    PyObject* result = convert(PyTuple_GET_ITEM(items, i));
    if (result == nullptr) {
      Py_CLEAR(results);
      break;
    }
    PyList_SET_ITEM(results, i, result);
  }
  PyErr_Clear();
  Py_DECREF(items);
  return results;
}

bool is_alone(Py_ssize_t nargs) {
  return nargs == 1 && !watching.load(std::memory_order_relaxed) && !has_dispatch_modes();
}

// The two options that the plain case knows.
struct Wishes {
  PyObject* copy = Py_None;
  PyObject* dtype = Py_None;
};

// False where there are other options.
bool read_wishes(PyObject* const* values, PyObject* names, Wishes* wishes) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    if (PyUnicode_CompareWithASCIIString(name, "copy") == 0) {
      wishes->copy = values[i];
    } else if (PyUnicode_CompareWithASCIIString(name, "dtype") == 0) {
      wishes->dtype = values[i];
    } else {
      return false;
    }
  }
  return true;
}

// nullptr where Python decides, and, with an exception set, where the copy was interrupted.
PyObject* to_wished_tensor(PyObject* array, const Wishes& wishes) {
  const bool keeps_dtype = wishes.dtype == Py_None || has_dtype(array, wishes.dtype);
  if (wishes.copy == Py_True || (wishes.copy == Py_None && !keeps_dtype)) {
    return copy_plain_array(array, wishes.dtype);
  }
  if (!keeps_dtype || (wishes.copy != Py_None && wishes.copy != Py_False)) return nullptr;
  PyObject* shared = to_plain_tensor(array);
  // What torch cannot describe, or must not write to, is copied unless that was forbidden.
  const bool may_copy = wishes.copy == Py_None && !is_shareable_array(array, false);
  return shared == nullptr && may_copy ? copy_plain_array(array, Py_None) : shared;
}

PyObject* to_torch(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames);
PyObject* to_numpy(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames);

Function functions[] = {{"to_torch", to_torch, nullptr}, {"to_numpy", to_numpy, nullptr}};

PyObject* to_torch(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  if (is_alone(nargs)) {
    Wishes wishes;
    PyObject* result = nullptr;
    if (kwnames == nullptr && PyList_CheckExact(args[0])) {
      result = convert_list<is_plain_array, to_plain_tensor>(args[0]);
    } else if (kwnames == nullptr || read_wishes(args + 1, kwnames, &wishes)) {
      result = to_wished_tensor(args[0], wishes);
    }
    if (result != nullptr || PyErr_Occurred() != nullptr) return result;
  }
  return PyObject_Vectorcall(functions[0].slow, args, static_cast<size_t>(nargs), kwnames);
}

PyObject* to_numpy(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  if (is_alone(nargs) && kwnames == nullptr && !is_accelerator_in_use()) {
    PyObject* result = PyList_CheckExact(args[0])
                           ? convert_list<is_plain_tensor, to_plain_array>(args[0])
                           : to_plain_array(args[0]);
    if (result != nullptr) return result;
  }
  return PyObject_Vectorcall(functions[1].slow, args, static_cast<size_t>(nargs), kwnames);
}

}  // namespace

void watch(bool active) { watching.store(active, std::memory_order_relaxed); }

PyObject* accelerate(PyObject* name, PyObject* module, PyObject* slow, const char* doc) {
  for (Function& function : functions) {
    if (PyUnicode_CompareWithASCIIString(name, function.name) != 0) continue;
    // The builtin points at its definition for good, so neither is ever freed.
    auto* definition = new (std::nothrow) PyMethodDef{
        function.name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function.method)),
        METH_FASTCALL | METH_KEYWORDS, strdup(doc)};
    if (definition == nullptr) return PyErr_NoMemory();
    // With no __self__ it pickles by module and name.
    PyObject* builtin = PyCFunction_NewEx(definition, nullptr, module);
    if (builtin != nullptr) Py_XSETREF(function.slow, Py_NewRef(slow));
    return builtin;
  }
  return PyErr_Format(PyExc_ValueError, "nothing to accelerate in %R", name);
}

}  // namespace ndtorch
