#include "threads.h"

#include <pthread.h>
#include <signal.h>

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

// Some ten microseconds: most waits are shorter, and to sleep and be woken takes as long.
constexpr int TRIES = 64;

template <class Ready> bool is_soon(const Ready& ready) {
  for (int tries = 0; tries < TRIES; ++tries) {
    if (ready()) return true;
    std::this_thread::yield();
  }
  return false;
}

// A piece of work and those at it.
struct Round {
  Work work = nullptr;
  const void* context = nullptr;
  int64_t tasks = 0;
  std::atomic<int64_t> next{0}, busy{0};  // busy becomes less under the mutex
  std::mutex mutex;
  std::condition_variable done;

  void take_tasks(char* scratch) {
    for (int64_t task = next++; task < tasks; task = next++) work(context, scratch, task);
  }
  void leave() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (--busy == 0) done.notify_one();
  }
  void wait() {
    is_soon([&] { return busy == 0; });
    std::unique_lock<std::mutex> lock(mutex);  // whoever left last has let go of it
    done.wait(lock, [&] { return busy == 0; });
  }
};

// A thread that sleeps from one call to the next, and for ever once there is none.
class Worker {
 public:
  Worker* next = nullptr;  // idle too

  Worker() { std::thread([this] { serve(); }).detach(); }

  void begin(Round& round, char* scratch) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      scratch_ = scratch;
      round_ = &round;
    }
    called_.notify_one();
  }
  // Whether more is to come in this call, and soon.
  void hire() { hired_ = true; }
  void dismiss() { hired_ = false; }

 private:
  void serve() {
    for (;;) {
      is_soon([this] { return round_ != nullptr || !hired_; });
      Round* round;
      char* scratch;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        called_.wait(lock, [this] { return round_ != nullptr; });
        round = round_.exchange(nullptr);
        scratch = scratch_;
      }
      round->take_tasks(scratch);
      round->leave();
    }
  }

  std::mutex mutex_;
  std::condition_variable called_;
  std::atomic<Round*> round_{nullptr};
  std::atomic<bool> hired_{false};
  char* scratch_ = nullptr;
};

// The idle workers of the process. It is never destroyed, for they may outlive whoever would do so; and a forked child, which has
// none of its parent's threads, begins anew.
class Pool {
 public:
  static Pool& instance() {
    static Pool& pool = *new Pool;
    return pool;
  }
  Worker* hire() {
    Worker* worker;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      worker = idle_;
      if (worker) idle_ = worker->next;
    }
    if (!worker) worker = start();
    worker->hire();
    return worker;
  }
  void dismiss(Worker* worker) {
    worker->dismiss();
    const std::lock_guard<std::mutex> lock(mutex_);
    worker->next = idle_;
    idle_ = worker;
  }

 private:
  Pool() {
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] {
                     instance().idle_ = nullptr;
                     instance().mutex_.unlock();
                   });
  }

  // Signals are the program's: none is to find a thread that it does not know of.
  static Worker* start() {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const struct Restore {
      const sigset_t& mask;
      ~Restore() { pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
    } restore{before};
    return new Worker;
  }

  std::mutex mutex_;
  Worker* idle_ = nullptr;
};

}  // namespace

struct Team::Members {
  const int64_t threads;
  const size_t scratch_bytes;  // of each
  char* const scratch;         // all of it from the calling thread, which has it at hand: each page of a new thread's costs a fault
  std::vector<Worker*> others;
  Round round;

  Members(int64_t count, size_t bytes)
      : threads(count), scratch_bytes((bytes + 63) / 64 * 64),
        scratch(static_cast<char*>(std::aligned_alloc(64, size_t(count) * scratch_bytes))) {}
  ~Members() {
    for (Worker* worker : others) Pool::instance().dismiss(worker);
    std::free(scratch);
  }

  void hire(int64_t wanted) {
    try {
      others.reserve(size_t(threads));
      while (static_cast<int64_t>(others.size()) + 1 < wanted) others.push_back(Pool::instance().hire());
    } catch (const std::system_error&) {  // no more threads to be had
    } catch (const std::bad_alloc&) {
    }
  }
};

Team::Team(int64_t threads, size_t scratch_bytes) : members_(new (std::nothrow) Members(threads, scratch_bytes)) {}

Team::~Team() { delete members_; }

bool Team::run(int64_t tasks, Work work, const void* context) {
  if (members_ == nullptr || members_->scratch == nullptr) return false;
  Members& own = *members_;
  own.hire(std::min(own.threads, tasks));
  Round& round = own.round;
  round.work = work;
  round.context = context;
  round.tasks = tasks;
  round.next = 0;
  round.busy = static_cast<int64_t>(own.others.size());
  char* scratch = own.scratch;
  for (Worker* worker : own.others) worker->begin(round, scratch += own.scratch_bytes);
  round.take_tasks(own.scratch);
  round.wait();
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
  if (is_soon([&] { return own.passed >= before; })) return;
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
