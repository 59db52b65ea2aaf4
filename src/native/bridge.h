// Tensors over the memory of arrays, and arrays over the memory of tensors.
//
// A plain object can be handed over by sharing its memory, and nobody needs to look closer. What is
// not plain is Python's to decide; nothing here copies, warns or raises.
#pragma once

#include <Python.h>

#include <string>

namespace ndtorch {

struct Owner;

// Loads NumPy's C API; false with a Python exception set.
bool import_numpy();

// Whether the interpreter is on its way out: a thread that asks for the GIL then is ended or hangs.
bool is_finalizing();

// Turns a direction on. Returns why it cannot be, or "". `accelerators` are the `__dict__`s of
// torch.cuda and its like: while one says `_initialized`, to_numpy leaves tensors to Python,
// because a device may still be copying into them.
std::string enable_to_torch();
std::string enable_to_numpy(PyObject* accelerators);

// Lets arrays hold the owner of the memory that they show, once both directions are on. Returns why
// not, or "".
std::string enable_owners();

// Makes the tensor that an owner describes, once array to tensor is on. The owner is the tensor's
// then, or freed: nullptr with no exception set.
bool can_wrap();
PyObject* hand_over(Owner* owner);

// New references, or nullptr with no exception set where the object is not one to be shared here.
PyObject* share(PyObject* array);                  // read-only arrays and subclasses too
PyObject* alias(PyObject* tensor, bool writable);  // whatever the device is doing

// The same for plain objects only, as `to_torch` and `to_numpy` share them: writable arrays, and
// tensors whose array is read-only where a write would be unsound.
bool is_plain_array(PyObject* object);
bool is_shareable_array(PyObject* object, bool strict);  // strict: plain; else Python may share it
bool is_plain_tensor(PyObject* object);
PyObject* to_plain_tensor(PyObject* array);
PyObject* to_plain_array(PyObject* tensor);

// What must not be for the plain case: somebody else wants to see the call, or a device may be
// writing into tensors.
bool has_dispatch_modes();

// Whether a transform of torch.func is running, to which new tensors have to be made known.
bool in_transform();
bool is_accelerator_in_use();

// Whether an array over the tensor would stay valid if torch gave the tensor other memory.
bool has_owner(PyObject* tensor);

// The tensor's address without unsharing a lazily cloned one; false where it is not known here.
bool const_data_ptr(PyObject* tensor, const void** out);

}  // namespace ndtorch
