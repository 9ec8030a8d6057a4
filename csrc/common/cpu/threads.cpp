#include "common/cpu/threads.h"

#include <atomic>

#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#else
#include <omp.h>
#include <pthread.h>
#endif

namespace bigkernels {
namespace {

using Body = void (*)(void*, int64_t, int);

void run_serial(int64_t count, Body body, void* context) {
  for (int64_t tile = 0; tile < count; ++tile) body(context, tile, 0);
}

#if defined(__SANITIZE_THREAD__)

// ThreadSanitizer does not see the synchronisation inside libgomp and would report every region.
void run_parallel(int threads, int64_t count, Body body, void* context) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> team;
  for (int thread = 0; thread < threads; ++thread) {
    team.emplace_back([&, thread] {
      for (int64_t tile = next++; tile < count; tile = next++) body(context, tile, thread);
    });
  }
  for (std::thread& member : team) member.join();
}

bool must_be_serial() { return false; }

#else

// A child of fork() has its parent's OpenMP team on the books but none of its threads: the next
// region would wait for them for ever.
std::atomic<bool> g_team_exists{false};
std::atomic<bool> g_team_lost{false};

void watch_fork() {
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { g_team_lost = g_team_lost || g_team_exists; });
  (void)registered;
}

void run_parallel(int threads, int64_t count, Body body, void* context) {
  watch_fork();
  g_team_exists = true;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < count; ++tile) body(context, tile, thread);
  }
}

bool must_be_serial() { return g_team_lost || omp_in_parallel(); }

#endif

}  // namespace

void parallel_tiles(int num_threads, int64_t count, Body body, void* context) {
  const int threads = count < num_threads ? static_cast<int>(count) : num_threads;
  if (threads <= 1 || must_be_serial()) return run_serial(count, body, context);
  run_parallel(threads, count, body, context);
}

}  // namespace bigkernels
