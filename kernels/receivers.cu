// Sums over the edges of a receiver: receiver n has the edges first[n]..first[n + 1];
// pairs[e] is a row that edge e may share with its reverse.
//
// A block has one receiver and up to THREADS channels; the sums stay in registers. What all channels
// share of an edge is computed once per block, a thread for an edge, and read from shared memory.
// Blocks with different blockIdx.y have different parts of the outputs.
extern "C" __global__ void __launch_bounds__(THREADS, @BLOCKS@) run(
    const long long n_items, const long long* __restrict__ first,
    const long long* __restrict__ senders, const long long* __restrict__ pairs,
    @PARAMETERS@) {
  enum : int { EDGES = @EDGES@, SLOTS = @SLOTS@ };
  alignas(16) __shared__ T shared[EDGES * SLOTS];
  @STAGE@
  const long long row = blockIdx.x / @CHANNEL_BLOCKS@;
  const long long k = blockIdx.x % @CHANNEL_BLOCKS@ * (long long)THREADS + threadIdx.x;
  const bool active = k < K;
  @POINTERS@
  @PASSES@
}
