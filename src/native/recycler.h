// Blocks for results that come and go, handed out again when they come back: touching fresh memory
// costs more than filling it. A block comes back when nobody holds it any more, never before.
// Nothing waits here, for a forked child would wait for threads that it does not have: where
// another thread is at it, blocks are allocated and freed as without it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "memory.h"

namespace ndtorch {

class Recycler;

// A block on loan; small ones are malloc's, which recycles them itself, and have no home.
struct Lease {
  Block block;
  size_t capacity;
  Recycler* home;
};

class Recycler {
 public:
  // It lives until it is closed and all blocks are back. `idle_bytes` is what it keeps at most.
  static Recycler* open(size_t idle_bytes);
  void close();

  // A block of at least so many bytes; `data` is nullptr where there is no memory.
  Lease take(size_t nbytes);

  size_t idle_bytes() const { return idle_bytes_.load(std::memory_order_relaxed); }

 private:
  friend void release(const Lease& lease);

  struct Idle {
    Block block;
    size_t capacity;
  };

  explicit Recycler(size_t idle_bytes) : limit_(idle_bytes) {}

  bool try_lock() { return !busy_.test_and_set(std::memory_order_acquire); }
  void unlock() { busy_.clear(std::memory_order_release); }
  void give(const Block& block, size_t capacity);
  void drop_all();
  void let_go();

  static constexpr int kMostIdle = 64;

  const size_t limit_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::atomic<bool> is_closed_{false};
  std::atomic<int64_t> holders_{1};  // whoever opened it, and blocks on loan
  std::atomic<size_t> idle_bytes_{0};
  int count_ = 0;  // this and below by whoever has the lock; the last came back last
  Idle idle_[kMostIdle];
};

// Gives a block back, or frees it.
void release(const Lease& lease);

}  // namespace ndtorch
