// Runs one piece of work on several threads, the calling one among them.
//
// Every thread has a contiguous part of its own, which it does from the last chunk to the first,
// and then helps with the first chunks of the others' parts. Backwards because Linux clears a fresh
// huge page upwards: what it cleared last is still in the cache, which saves a quarter of the time
// of a large copy. The caller never waits for a thread that has not started: where no helper comes,
// it does everything itself. One call at a time has the helpers; a second, from another thread,
// runs alone. A forked child starts with no helpers.
#pragma once

#include <cstdint>
#include <type_traits>

namespace ndtorch {

// Asked now and then by the calling thread; true stops the work.
struct Interrupt {
  bool (*is_due)(void* context) = nullptr;
  void* context = nullptr;
};

// What to do with the units from `begin` to `end`; false stops the work.
struct Work {
  bool (*run)(void* context, int64_t begin, int64_t end);
  void* context;
};

enum class Outcome { kDone, kStopped, kInterrupted };

// Does units 0 to `count`, `grain` of them at a time, on at most `threads` threads.
Outcome run_on_threads(int64_t count, int64_t grain, int threads, Work work, Interrupt interrupt);

// Whether this process was forked from one that had loaded this library. Threads of other
// libraries may be gone there without their knowing, and waiting for them would hang.
bool is_forked();

template <typename Body>
Outcome parallel_for(int64_t count, int64_t grain, int threads, Interrupt interrupt, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  const Work work{[](void* context, int64_t begin, int64_t end) {
                    return (*static_cast<Plain*>(context))(begin, end);
                  },
                  const_cast<void*>(static_cast<const void*>(&body))};
  return run_on_threads(count, grain, threads, work, interrupt);
}

}  // namespace ndtorch
