// The threads of a call, and the order of what they may not do at once. Between two calls they sleep, and never spin beside
// torch's; whoever forks leaves them behind, and the child gets others.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flowformer {

// A function pointer and its context: std::function's code would be compiled for several instruction sets and merged.
using Work = void (*)(const void* context, char* scratch, int64_t task);

// One call's threads, of which the calling one is the first. The others come with the first work that needs them, and look for the
// next piece some microseconds before they sleep. Each has scratch of its own, aligned to 64 bytes, for as long as the team is there.
class Team {
 public:
  Team(int64_t threads, size_t scratch_bytes);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Runs work(context, scratch, task) for task = 0 … tasks - 1, taken in this order, and returns when all are done. False when
  // memory ran out. A thread that cannot be started only leaves its tasks to the others.
  bool run(int64_t tasks, Work work, const void* context);

 private:
  struct Members;  // the standard library's code stays out of what is compiled for an instruction set
  Members* members_;
};

// Lines in which tasks of a run stand: each waits until those before it have passed. They are to be earlier tasks of the run,
// which some thread has taken.
class Turns {
 public:
  explicit Turns(int64_t lines);
  ~Turns();
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  bool whole() const { return lines_ != nullptr; }
  void wait(int64_t line, int64_t before);  // until so many have passed
  void pass(int64_t line);

 private:
  struct Line;
  Line* lines_;
};

}  // namespace flowformer
