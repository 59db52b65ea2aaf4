// Who keeps the memory behind a tensor alive, so that an array over the tensor can hold it as well.
//
// torch frees the memory of a tensor that it moves to shared memory (pytorch#51849). Where that
// memory is an array's or a block of our own, it lives for as long as somebody holds its owner.
#pragma once

#include <Python.h>

#include <atomic>
#include <cstdint>

#include "dlpack_abi.h"
#include "recycler.h"
#include "tensor_layout.h"

namespace ndtorch {

// What a tensor is made from; its shape, its strides and the block, if any, follow the struct.
struct Owner {
  dlpack::ManagedTensor managed;
  PyObject* array;           // nullptr where the memory is a block of our own
  std::atomic<int> holders;  // of the block: the tensor's storage, and arrays over it
  bool handed_over;          // to torch, whose storage then holds it
};

// Owners of an array, which gets a reference, and of a block, which is theirs to release. The dtype
// and the shape are yet to be described. nullptr: no memory, and the block is the caller's.
Owner* own_array(int ndim, PyObject* array, void* data);
Owner* own_block(int ndim, const Lease& lease);

// Takes one holder away, and the owner with the last.
void release(Owner* owner);

// Whether what a storage holds is known here.
bool has_owner(const Captured& held);

// An object that keeps that memory alive, whatever becomes of the storage. New reference; nullptr
// with an exception set where there is no memory for one.
PyObject* hold_owner(const Captured& held);

}  // namespace ndtorch
