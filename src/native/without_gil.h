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

  // Does something under the lock in between, and gives what it gives.
  template <typename Act>
  auto with_gil(Act act) {
    const Taken taken(*this);
    return act();
  }

 private:
  // Has the lock while it lives, and gives it back whatever is thrown.
  struct Taken {
    explicit Taken(WithoutGil& from) : self(from) { self.take_gil(); }
    ~Taken() { self.state_ = PyEval_SaveThread(); }
    Taken(const Taken&) = delete;
    Taken& operator=(const Taken&) = delete;
    WithoutGil& self;
  };

  // Runs Python's signal handlers; true where one raised, as the one of Ctrl-C does.
  bool is_due() {
    const Taken taken(*this);
    return PyErr_CheckSignals() != 0;
  }

  // A daemon thread that comes back while the interpreter finalizes would be ended by unwinding
  // its stack, which helpers may still be using: it waits for the end of the process instead.
  void take_gil() {
    while (is_finalizing()) pause();
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // that unwinding, begun while it waited for the lock
      for (;;) pause();
    }
  }

  PyThreadState* state_;
};

}  // namespace ndtorch
