// Runs a CUDA kernel on the host: the text of the kernel stands between this file and launch.h.
//
// The threads of a block are fibres that one thread of the host runs in turn. A fibre runs until it
// needs the others (__syncthreads, a shuffle) or ends. Blocks run one after the other.
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static  // one block at a time
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {
enum class State { ready, shuffle, barrier, done };
enum : unsigned { LANES = 32, STACK = 1 << 18 };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  State state = State::ready;
  double sent[2];  // of this shuffle and the one before, which slower lanes still read
  int parity = 0;
};
static std::vector<Fibre> fibres;
static ucontext_t scheduler;
static unsigned current;
static void (*entry)();

static void wait_as(State state) {
  fibres[current].state = state;
  swapcontext(&fibres[current].context, &scheduler);
}

static void fibre_main() {
  entry();
  wait_as(State::done);
}

static void resume(unsigned i) {
  current = i;
  threadIdx = {i, 0, 0};
  fibres[i].state = State::ready;
  swapcontext(&scheduler, &fibres[i].context);
}

static bool all(unsigned lo, unsigned hi, State state) {
  for (unsigned i = lo; i < hi; ++i)
    if (fibres[i].state != state) return false;
  return true;
}

static void run_block() {
  const unsigned n = blockDim.x;
  for (unsigned i = 0; i < n; ++i) {
    getcontext(&fibres[i].context);
    fibres[i].context.uc_stack.ss_sp = fibres[i].stack.get();
    fibres[i].context.uc_stack.ss_size = STACK;
    fibres[i].context.uc_link = nullptr;
    fibres[i].parity = 0;
    makecontext(&fibres[i].context, fibre_main, 0);
    resume(i);
  }
  while (!all(0, n, State::done)) {
    bool moved = false;
    for (unsigned warp = 0; warp < n; warp += LANES)
      while (all(warp, warp + LANES, State::shuffle)) {
        for (unsigned i = warp; i < warp + LANES; ++i) resume(i);
        moved = true;
      }
    if (all(0, n, State::barrier)) {
      for (unsigned i = 0; i < n; ++i) resume(i);
      moved = true;
    }
    if (!moved) {
      std::fprintf(stderr, "some threads wait where others do not come\n");
      std::abort();
    }
  }
}

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
}
}  // namespace shim

static inline void __syncthreads() { shim::wait_as(shim::State::barrier); }

template <class T>
static T __shfl_xor_sync(unsigned mask, T value, int bit) {
  shim::Fibre& mine = shim::fibres[shim::current];
  const int parity = mine.parity ^= 1;
  if (mask != 0xffffffffu) std::abort();
  mine.sent[parity] = value;
  shim::wait_as(shim::State::shuffle);
  return static_cast<T>(shim::fibres[shim::current ^ bit].sent[parity]);
}
