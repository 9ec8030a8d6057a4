// Threads of the CPU kernels. The only user of OpenMP.
#pragma once

#include <cstdint>

namespace bigkernels {

// Calls body(context, tile, thread) once for every tile in [0, count), tiles handed out one at a
// time to at most num_threads threads; 0 <= thread < num_threads. Serial, on the calling thread,
// with one thread or one tile, inside another parallel region, and in a process forked after this
// was used. body must not throw.
void parallel_tiles(int num_threads, int64_t count,
                    void (*body)(void* context, int64_t tile, int thread), void* context);

// The same for a callable body(tile, thread).
template <class F>
static inline void parallel_tiles(int num_threads, int64_t count, const F& body) {
  parallel_tiles(
      num_threads, count,
      [](void* context, int64_t tile, int thread) {
        (*static_cast<const F*>(context))(tile, thread);
      },
      const_cast<F*>(&body));
}

}  // namespace bigkernels
