// What all kernels share. Words between at signs are filled in by mace_train/ops/emit_cuda.py.
// Tensors are [n, segments, K], channels contiguous; a thread has one channel at a time. Offsets are
// 64-bit. Nothing is atomic: every number is written by one thread, sums are in a fixed order.
typedef @SCALAR@ T;
typedef T V;  // one channel, where the code for CPUs has a vector of them
enum : long long { K = @CHANNELS@ };
enum : int { THREADS = @THREADS@, LANES = 32, WARPS = THREADS / LANES };

static __device__ __forceinline__ T load(const T* p) { return *p; }
static __device__ __forceinline__ void store(T* p, T v) { *p = v; }

// From here on the compiler does not know what the pointer points to, so what it loads later is loaded
// again (from the first-level cache) rather than kept in registers.
static __device__ __forceinline__ void forget(const T*& p) {
#ifdef __CUDACC__
  asm volatile("" : "+l"(p));
#endif
}

// Sums of N values (N a power of two, at most 32) over the lanes of a warp: lane l has the total of
// value l / (LANES / N) at the end. Every step halves the values of a lane, so that 31 shuffles
// serve 32 values and 16 serve 16, where one butterfly per value takes 5 each.
template <int N>
static __device__ __forceinline__ T sum_over_warp(T (&v)[N]) {
  const int lane = threadIdx.x % LANES;
  int bit = LANES / 2;
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2) {
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const T keep = upper ? v[half + i] : v[i], give = upper ? v[i] : v[half + i];
      v[i] = keep + __shfl_xor_sync(0xffffffffu, give, bit);
    }
    bit /= 2;
  }
#pragma unroll
  for (; bit > 0; bit /= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], bit);
  return v[0];
}
