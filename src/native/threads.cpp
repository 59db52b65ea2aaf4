#include "threads.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

namespace ndtorch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxThreads = 64;
constexpr auto kInterruptEvery = std::chrono::milliseconds(50);
// About 20 microseconds: the next call of a loop often comes so soon, and waking takes longer.
constexpr int kSpins = 1000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Chunks of one part that nobody has taken, [front, back), in one word.
class alignas(64) Part {
 public:
  void set(uint32_t front, uint32_t back) { bounds_.store(pack(front, back)); }

  bool take_front(uint32_t* chunk) {
    uint64_t bounds = bounds_.load(std::memory_order_relaxed);
    do {
      *chunk = front(bounds);
      if (*chunk >= back(bounds)) return false;
    } while (!bounds_.compare_exchange_weak(bounds, pack(*chunk + 1, back(bounds)),
                                            std::memory_order_relaxed));
    return true;
  }

  bool take_back(uint32_t* chunk) {
    uint64_t bounds = bounds_.load(std::memory_order_relaxed);
    do {
      if (front(bounds) >= back(bounds)) return false;
      *chunk = back(bounds) - 1;
    } while (!bounds_.compare_exchange_weak(bounds, pack(front(bounds), *chunk),
                                            std::memory_order_relaxed));
    return true;
  }

 private:
  static uint64_t pack(uint32_t front, uint32_t back) { return uint64_t{front} << 32 | back; }
  static uint32_t front(uint64_t bounds) { return static_cast<uint32_t>(bounds >> 32); }
  static uint32_t back(uint64_t bounds) { return static_cast<uint32_t>(bounds); }

  std::atomic<uint64_t> bounds_{0};
};

struct Job {
  Job(Work what, int64_t units, int64_t per_chunk, int threads)
      : work(what), count(units), grain(per_chunk), parts(std::max(threads, 1)) {}

  const Work work;
  const int64_t count;
  const int64_t grain;
  const int parts;
  int joined = 1;  // under the pool's mutex; the caller is the first
  std::atomic<int> stop{0};
  Part part[kMaxThreads];

  bool do_chunk(uint32_t chunk) {
    const int64_t begin = chunk * grain;
    if (work.run(work.context, begin, std::min(count, begin + grain))) return true;
    stop.store(1, std::memory_order_relaxed);
    return false;
  }

  // Own part from the back, then the others' from the front. `goes_on` is asked between chunks.
  template <typename GoesOn>
  void run(int me, GoesOn goes_on) {
    uint32_t chunk;
    const auto may_go_on = [&] { return stop.load(std::memory_order_relaxed) == 0 && goes_on(); };
    while (may_go_on() && part[me].take_back(&chunk)) {
      if (!do_chunk(chunk)) return;
    }
    for (int i = 1; i < parts; ++i) {
      Part& other = part[(me + i) % parts];
      while (may_go_on() && other.take_front(&chunk)) {
        if (!do_chunk(chunk)) return;
      }
    }
  }
};

class Pool {
 public:
  // Whether the helpers were free. On true they have done their share and are out of the job.
  template <typename GoesOn>
  bool run(Job& job, GoesOn goes_on) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start_helpers(job.parts - 1);
      job_ = &job;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job.run(0, goes_on);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    for (int spin = 0; running_ > 0 && spin < kSpins; ++spin) {
      lock.unlock();
      pause();
      lock.lock();
    }
    done_.wait(lock, [this] { return running_ == 0; });
    return true;
  }

 private:
  void start_helpers(int wanted) {
    // Signals are for Python's own threads: a helper inherits the mask and sees none.
    sigset_t all, before;
    if (helpers_ >= wanted) return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; helpers_ < wanted; ++helpers_) {
        std::thread([this, seen = generation_.load()] { help(seen); }).detach();
      }
    } catch (const std::exception&) {
      // No more threads or no memory for one: those there are, and the caller, do the work.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  [[noreturn]] void help(uint64_t seen) {
    for (;;) {
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen;
           ++spin) {
        pause();
      }
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
      seen = generation_.load(std::memory_order_relaxed);
      if (job_ == nullptr || job_->joined >= job_->parts) continue;
      Job& job = *job_;
      const int me = job.joined++;
      ++running_;
      lock.unlock();
      job.run(me, [] { return true; });
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;  // held by the one call that has the helpers
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> generation_{0};
  Job* job_ = nullptr;  // this and below under mutex_
  int helpers_ = 0;
  int running_ = 0;
};

// Never destroyed: helpers may outlive every static object. A forked child has none of its
// parent's threads, and its locks may be taken for good, so the pool is made anew in its place:
// where other threads had locks of the allocator, allocating could wait for ever.
alignas(Pool) unsigned char pool_memory[sizeof(Pool)];
Pool* pool = new (pool_memory) Pool;
std::atomic<int> forks{0};  // between the process that loaded this library and this one

// Where it cannot be registered a child would wait for threads it does not have: no helpers then.
const bool has_fork_handler = pthread_atfork(nullptr, nullptr, [] {
                                pool = new (pool_memory) Pool;
                                forks.fetch_add(1);
                              }) == 0;

}  // namespace

bool is_forked() { return forks.load(std::memory_order_relaxed) > 0; }

Outcome run_on_threads(int64_t count, int64_t grain, int threads, Work work, Interrupt interrupt) {
  if (count <= 0) return Outcome::kDone;
  grain = std::max<int64_t>(grain, (count >> 31) + 1);  // chunk numbers have 32 bits
  const int64_t chunks = (count + grain - 1) / grain;
  if (chunks == 1) return work.run(work.context, 0, count) ? Outcome::kDone : Outcome::kStopped;
  Job job(work, count, grain, static_cast<int>(std::min<int64_t>({threads, chunks, kMaxThreads})));
  for (int64_t i = 0; i < job.parts; ++i) {
    job.part[i].set(static_cast<uint32_t>(chunks * i / job.parts),
                    static_cast<uint32_t>(chunks * (i + 1) / job.parts));
  }
  bool interrupted = false;
  Clock::time_point asked;
  bool has_asked = false;
  const auto goes_on = [&] {
    if (interrupt.is_due == nullptr) return true;
    const auto now = Clock::now();
    if (!has_asked) asked = now;
    has_asked = true;
    if (now - asked < kInterruptEvery) return true;
    asked = now;
    interrupted = interrupt.is_due(interrupt.context);
    if (interrupted) job.stop.store(1, std::memory_order_relaxed);
    return !interrupted;
  };
  const bool alone = job.parts == 1 || !has_fork_handler;
  const int forks_before = forks.load();
  if (alone || !pool->run(job, goes_on)) job.run(0, goes_on);
  // A signal handler forked on the way: what the helpers had taken nobody will do in the child.
  if (forks.load() != forks_before && !interrupted) {
    return run_on_threads(count, grain, 1, work, interrupt);
  }
  if (interrupted) return Outcome::kInterrupted;
  return job.stop.load(std::memory_order_relaxed) != 0 ? Outcome::kStopped : Outcome::kDone;
}

}  // namespace ndtorch
