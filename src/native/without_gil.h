// Work without Python's lock, which still hears Ctrl-C.
#pragma once

#include <Python.h>
#include <unistd.h>

#include "bridge.h"
#include "threads.h"

namespace ndtorch {

// Lets other Python threads run while it lives.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() { take_gil(); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

  Interrupt interrupt() {
    return {[](void* self) { return static_cast<WithoutGil*>(self)->is_due(); }, this};
  }

 private:
  // Runs Python's signal handlers; true where one raised, as the one of Ctrl-C does.
  bool is_due() {
    take_gil();
    const bool raised = PyErr_CheckSignals() != 0;
    state_ = PyEval_SaveThread();
    return raised;
  }

  // A daemon thread that comes back while the interpreter finalizes would be ended by unwinding
  // its stack, which helpers may still be using: it waits for the end of the process instead.
  void take_gil() {
    while (is_finalizing()) pause();
    PyEval_RestoreThread(state_);
  }

  PyThreadState* state_;
};

}  // namespace ndtorch
