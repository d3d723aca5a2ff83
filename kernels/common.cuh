// What all kernels share. Words between at signs are filled in by mace_train/ops/cuda/emit.py.
// Tensors are [n, segments, K], channels contiguous; a thread has one channel at a time. Offsets are
// 64-bit. Nothing is atomic: every number is written by one thread, sums are in a fixed order.
typedef @SCALAR@ T;
typedef T V;  // one channel, where the code for CPUs has a vector of them
enum : long long { K = @CHANNELS@ };
enum : int { THREADS = @THREADS@, LANES = 32, WARPS = THREADS / LANES };

static __device__ __forceinline__ T load(const T* p) { return *p; }
static __device__ __forceinline__ void store(T* p, T v) { *p = v; }

// The same for what nothing reads again soon: the caches drop it first.
#ifdef __CUDACC__
static __device__ __forceinline__ T load_once(const T* p) { return __ldcs(p); }
static __device__ __forceinline__ void store_once(T* p, T v) { __stcs(p, v); }
#else
static T load_once(const T* p) { return *p; }
static void store_once(T* p, T v) { *p = v; }
#endif

// From here on the compiler does not know what the pointer points to, so what it loads later is loaded
// again (from the first-level cache) rather than kept in registers. It still knows that it is global
// memory: generic loads are slower.
static __device__ __forceinline__ void forget(const T*& p) {
#ifdef __CUDACC__
  asm volatile("" : "+l"(p));
  __builtin_assume(__isGlobal(p));
#endif
}

// One step of the sums below, and the next ones, all unrolled: v must never be indexed by a variable,
// which would put it into local memory.
template <int HALF, int BIT, int N>
static __device__ __forceinline__ void halve(T (&v)[N]) {
  if constexpr (HALF > 0) {
    const bool upper = (threadIdx.x & BIT) != 0;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      const T low = v[i], high = v[HALF + i];
      const T keep = upper ? high : low, give = upper ? low : high;
      v[i] = keep + __shfl_xor_sync(0xffffffffu, give, BIT);
    }
  } else {
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], BIT);
  }
  if constexpr (BIT > 1) halve<HALF / 2, BIT / 2>(v);
}

// Sums of N values (N a power of two, at most 32) over the lanes of a warp: lane l has the total of
// value l / (LANES / N) at the end. Every step halves the values of a lane, so that 31 shuffles
// serve 32 values and 16 serve 16, where one butterfly per value takes 5 each.
template <int N>
static __device__ __forceinline__ T sum_over_warp(T (&v)[N]) {
  halve<N / 2, LANES / 2>(v);
  return v[0];
}
