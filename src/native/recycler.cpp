#include "recycler.h"

#include <algorithm>
#include <new>

namespace ndtorch {
namespace {

// Smaller blocks malloc hands out again from where they lie in the cache. It gives the pages of
// larger ones back to the system whenever a few of them are free.
constexpr size_t kRecycleFrom = size_t{1} << 16;

// A block may be so much larger than what is asked of it, as a part of that: the last batch of an
// epoch is smaller than the others, and memory that nobody uses must not be what a batch holds.
constexpr size_t kSlack = 8;

}  // namespace

Recycler* Recycler::open(size_t idle_bytes) { return new (std::nothrow) Recycler(idle_bytes); }

void Recycler::close() {
  is_closed_.store(true);
  drop_all();
  let_go();
}

Lease Recycler::take(size_t nbytes) {
  if (nbytes >= kRecycleFrom && try_lock()) {
    int found = count_ - 1;
    while (found >= 0 &&
           (idle_[found].capacity < nbytes || idle_[found].capacity - nbytes > nbytes / kSlack)) {
      --found;
    }
    Idle idle{};
    if (found >= 0) {
      idle = idle_[found];
      std::move(idle_ + found + 1, idle_ + count_, idle_ + found);
      --count_;
      idle_bytes_.fetch_sub(idle.capacity, std::memory_order_relaxed);
    }
    unlock();
    if (found >= 0) {
      holders_.fetch_add(1, std::memory_order_relaxed);
      return {idle.block, idle.capacity, this};
    }
  }
  Block block = allocate(nbytes);
  if (block.data == nullptr && idle_bytes() > 0) {
    drop_all();  // what nobody uses is not what a batch fails for
    block = allocate(nbytes);
  }
  if (nbytes < kRecycleFrom || block.data == nullptr) return {block, nbytes, nullptr};
  holders_.fetch_add(1, std::memory_order_relaxed);
  return {block, nbytes, this};
}

void Recycler::give(const Block& block, size_t capacity) {
  if (capacity > limit_ || is_closed_.load() || !try_lock()) {
    ndtorch::release(block);
    return;
  }
  // What has been idle for longest goes first: batches of that size may never come again.
  Idle surplus[kMostIdle];
  int dropped = 0;
  size_t kept = idle_bytes_.load(std::memory_order_relaxed);
  while (count_ - dropped > 0 && (count_ - dropped == kMostIdle || kept + capacity > limit_)) {
    kept -= idle_[dropped].capacity;
    surplus[dropped] = idle_[dropped];
    ++dropped;
  }
  if (dropped > 0) std::move(idle_ + dropped, idle_ + count_, idle_);
  count_ -= dropped;
  idle_[count_++] = {block, capacity};
  idle_bytes_.store(kept + capacity, std::memory_order_relaxed);
  unlock();
  for (int i = 0; i < dropped; ++i) ndtorch::release(surplus[i].block);
  if (is_closed_.load()) drop_all();  // it was closed meanwhile by somebody who did not wait
}

void Recycler::drop_all() {
  if (!try_lock()) return;
  while (count_ > 0) ndtorch::release(idle_[--count_].block);
  idle_bytes_.store(0, std::memory_order_relaxed);
  unlock();
}

void Recycler::let_go() {
  if (holders_.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  drop_all();
  delete this;
}

void release(const Lease& lease) {
  if (lease.home == nullptr) {
    release(lease.block);
    return;
  }
  lease.home->give(lease.block, lease.capacity);
  lease.home->let_go();
}

}  // namespace ndtorch
