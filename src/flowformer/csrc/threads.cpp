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

// Turns are short, and to sleep takes longer than most of them.
constexpr int TRIES = 32;

}  // namespace

struct Team::Members {
  const int64_t threads;
  const size_t scratch_bytes;  // of each
  char* const scratch;         // all of it from the calling thread, which has it at hand: each page of a new thread's costs a fault
  std::vector<std::thread> others;

  std::mutex mutex;  // of the three below
  std::condition_variable begun, done;
  int64_t round = 0, busy = 0;
  bool ended = false;

  Work work = nullptr;
  const void* context = nullptr;
  int64_t tasks = 0;
  std::atomic<int64_t> next{0};

  Members(int64_t count, size_t bytes)
      : threads(count), scratch_bytes((bytes + 63) / 64 * 64),
        scratch(static_cast<char*>(std::aligned_alloc(64, size_t(count) * scratch_bytes))) {}
  ~Members() { std::free(scratch); }

  void start(int64_t wanted) {
    try {
      while (static_cast<int64_t>(others.size()) + 1 < wanted)
        others.emplace_back([this, now = round, own = scratch + (others.size() + 1) * scratch_bytes] { serve(now, own); });
    } catch (const std::system_error&) {  // no more threads to be had
    } catch (const std::bad_alloc&) {
    }
  }

  void serve(int64_t served, char* own) {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex);
        begun.wait(lock, [&] { return ended || round != served; });
        if (ended) return;
        served = round;
      }
      take_tasks(own);
      const std::lock_guard<std::mutex> lock(mutex);
      if (--busy == 0) done.notify_one();
    }
  }

  void take_tasks(char* memory) {
    for (int64_t task = next++; task < tasks; task = next++) work(context, memory, task);
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
  if (members_ == nullptr || members_->scratch == nullptr) return false;
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
  own.take_tasks(own.scratch);
  std::unique_lock<std::mutex> lock(own.mutex);
  own.done.wait(lock, [&] { return own.busy == 0; });
  return true;
}

struct Turns::Line {
  std::atomic<int64_t> passed{0}, sleeping{0};
  std::mutex mutex;
  std::condition_variable moved;
};

Turns::Turns(int64_t lines) : lines_(new (std::nothrow) Line[lines]) {}
Turns::~Turns() { delete[] lines_; }

void Turns::wait(int64_t line, int64_t before) {
  Line& own = lines_[line];
  for (int tries = 0; tries < TRIES; ++tries) {
    if (own.passed >= before) return;
    std::this_thread::yield();
  }
  std::unique_lock<std::mutex> lock(own.mutex);
  ++own.sleeping;
  own.moved.wait(lock, [&] { return own.passed >= before; });
  --own.sleeping;
}

void Turns::pass(int64_t line) {
  Line& own = lines_[line];
  ++own.passed;
  if (own.sleeping == 0) return;
  { const std::lock_guard<std::mutex> lock(own.mutex); }  // whoever counts itself as asleep waits by now
  own.moved.notify_all();
}

}  // namespace flowformer
