#include "trees.h"

#include "numpy_api.h"

namespace ndtorch {
namespace {

constexpr int kMaxDims = 64;  // of a NumPy array; a list inside itself is deeper

PyObject* convert_node(PyObject* node, const LeafFunctions& leaves);

bool is_sequence(PyObject* object) {
  return PyList_CheckExact(object) || PyTuple_CheckExact(object);
}

// Whether a list or tuple begins with a number, at whatever depth: it may be one array then.
bool may_be_numbers(PyObject* sequence) {
  PyObject* first = sequence;
  for (int depth = 0; is_sequence(first); ++depth) {
    if (depth == kMaxDims) return true;
    if (PySequence_Fast_GET_SIZE(first) == 0) return false;
    first = PySequence_Fast_GET_ITEM(first, 0);
  }
  return PyLong_Check(first) || PyFloat_Check(first) || PyComplex_Check(first) ||
         PyArray_CheckScalar(first);
}

bool passes_through(PyObject* leaf) {
  return leaf == Py_None || PyUnicode_CheckExact(leaf) || PyLong_CheckExact(leaf) ||
         PyFloat_CheckExact(leaf) || PyBool_Check(leaf) || PyBytes_CheckExact(leaf) ||
         PyComplex_CheckExact(leaf);
}

// Converting runs code of others, which may change the container: hence an own reference to each
// item, and a look at the size before the next.

PyObject* convert_list(PyObject* list, const LeafFunctions& leaves) {
  const Py_ssize_t count = PyList_GET_SIZE(list);
  PyObject* results = PyList_New(count);
  for (Py_ssize_t i = 0; results != nullptr && i < count; ++i) {
    PyObject* item = i < PyList_GET_SIZE(list) ? Py_NewRef(PyList_GET_ITEM(list, i)) : nullptr;
    PyObject* result = item == nullptr ? nullptr : convert_node(item, leaves);
    Py_XDECREF(item);
    if (result == nullptr) {
      Py_CLEAR(results);
    } else {
      PyList_SET_ITEM(results, i, result);
    }
  }
  return results;
}

PyObject* convert_tuple(PyObject* tuple, const LeafFunctions& leaves) {
  const Py_ssize_t count = PyTuple_GET_SIZE(tuple);
  PyObject* results = PyTuple_New(count);
  for (Py_ssize_t i = 0; results != nullptr && i < count; ++i) {
    PyObject* result = convert_node(PyTuple_GET_ITEM(tuple, i), leaves);
    if (result == nullptr) {
      Py_CLEAR(results);
    } else {
      PyTuple_SET_ITEM(results, i, result);
    }
  }
  return results;
}

PyObject* convert_dict(PyObject* dict, const LeafFunctions& leaves) {
  const Py_ssize_t count = PyDict_GET_SIZE(dict);
  PyObject* results = PyDict_New();
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  while (results != nullptr && PyDict_Next(dict, &position, &key, &value) != 0) {
    Py_INCREF(key);
    Py_INCREF(value);
    PyObject* result = convert_node(value, leaves);
    const bool is_kept = result != nullptr && PyDict_GET_SIZE(dict) == count &&
                         PyDict_SetItem(results, key, result) == 0;
    Py_XDECREF(result);
    Py_DECREF(value);
    Py_DECREF(key);
    if (!is_kept) Py_CLEAR(results);
  }
  return results;
}

PyObject* convert_container(PyObject* node, const LeafFunctions& leaves) {
  if (PyDict_CheckExact(node)) return convert_dict(node, leaves);
  return PyList_CheckExact(node) ? convert_list(node, leaves) : convert_tuple(node, leaves);
}

PyObject* convert_node(PyObject* node, const LeafFunctions& leaves) {
  PyObject* leaf = leaves.plain(node);
  if (leaf != nullptr || PyErr_Occurred() != nullptr) return leaf;
  if (passes_through(node)) return Py_NewRef(node);
  const bool is_container = is_sequence(node) ? !may_be_numbers(node) : PyDict_CheckExact(node);
  if (!is_container) return leaves.other(node);
  if (Py_EnterRecursiveCall(" while converting a structure") != 0) return nullptr;
  PyObject* result = convert_container(node, leaves);
  Py_LeaveRecursiveCall();
  return result;
}

}  // namespace

PyObject* convert_tree(PyObject* tree, const LeafFunctions& leaves) {
  if (!PyDict_CheckExact(tree) && !is_sequence(tree)) return nullptr;
  if (is_sequence(tree) && (PySequence_Fast_GET_SIZE(tree) == 0 || may_be_numbers(tree)))
    return nullptr;
  PyObject* result = convert_container(tree, leaves);
  if (result == nullptr && PyErr_Occurred() != nullptr &&
      PyErr_ExceptionMatches(PyExc_Exception) != 0) {
    PyErr_Clear();
  }
  return result;
}

}  // namespace ndtorch
