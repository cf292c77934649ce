#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace flowformer {
namespace {

struct Scratch {
  char* const memory;
  explicit Scratch(size_t bytes) : memory(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
  ~Scratch() { std::free(memory); }
};

}  // namespace

struct Team::Members {
  const int64_t threads;
  const size_t scratch_bytes;
  const Scratch scratch;  // of the calling thread
  std::vector<std::thread> others;

  std::mutex mutex;  // of the three below
  std::condition_variable begun, done;
  int64_t round = 0, busy = 0;
  bool ended = false;

  Work work = nullptr;
  const void* context = nullptr;
  int64_t tasks = 0;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  Members(int64_t count, size_t bytes) : threads(count), scratch_bytes(bytes), scratch(bytes) {}

  void start(int64_t wanted) {
    try {
      while (static_cast<int64_t>(others.size()) + 1 < wanted) others.emplace_back([this, now = round] { serve(now); });
    } catch (const std::system_error&) {  // no more threads to be had
    } catch (const std::bad_alloc&) {
    }
  }

  void serve(int64_t served) {
    const Scratch own(scratch_bytes);
    if (own.memory == nullptr) failed = true;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex);
        begun.wait(lock, [&] { return ended || round != served; });
        if (ended) return;
        served = round;
      }
      take_tasks(own.memory);
      const std::lock_guard<std::mutex> lock(mutex);
      if (--busy == 0) done.notify_one();
    }
  }

  void take_tasks(char* memory) {
    for (int64_t task = next++; task < tasks && !failed; task = next++) work(context, memory, task);
  }
};

Team::Team(int64_t threads, size_t scratch_bytes) : members_(new (std::nothrow) Members(threads, scratch_bytes)) {}

Team::~Team() {
  if (members_ == nullptr) return;
  {
    const std::lock_guard<std::mutex> lock(members_->mutex);
    members_->ended = true;
  }
  members_->begun.notify_all();
  for (std::thread& thread : members_->others) thread.join();
  delete members_;
}

bool Team::run(int64_t tasks, Work work, const void* context) {
  if (members_ == nullptr || members_->scratch.memory == nullptr) return false;
  Members& own = *members_;
  own.start(std::min(own.threads, tasks));
  {
    const std::lock_guard<std::mutex> lock(own.mutex);
    own.work = work;
    own.context = context;
    own.tasks = tasks;
    own.next = 0;
    own.busy = static_cast<int64_t>(own.others.size());
    ++own.round;
  }
  own.begun.notify_all();
  own.take_tasks(own.scratch.memory);
  std::unique_lock<std::mutex> lock(own.mutex);
  own.done.wait(lock, [&] { return own.busy == 0; });
  return !own.failed;
}

}  // namespace flowformer
