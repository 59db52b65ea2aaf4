// What more than one file of bindings needs.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <new>

#include "recycler.h"

namespace ndtorch {

inline nanobind::object none_if_null(PyObject* object) {
  return object == nullptr ? nanobind::object(nanobind::none()) : nanobind::steal(object);
}

// A recycler as a Python object; blocks that are still on loan outlive it.
class Blocks {
 public:
  explicit Blocks(size_t idle_bytes) : recycler_(Recycler::open(idle_bytes)) {
    if (recycler_ == nullptr) throw std::bad_alloc();
  }
  ~Blocks() { recycler_->close(); }
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;

  Recycler* recycler() const { return recycler_; }

 private:
  Recycler* recycler_;
};

// Orders, gathers and tables: what the loader makes batches with.
void bind_batches(nanobind::module_& m);

}  // namespace ndtorch
