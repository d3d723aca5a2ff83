// A function of edges, receiver after receiver: receiver n has the edges first[n]..first[n + 1];
// pairs[e] is a row that edge e may share with its reverse.
//
// A block has one receiver and all channels, THREADS at a time. What all channels share of an edge is
// computed once, a thread for an edge, and read from shared memory. Sums over channels are taken per
// warp, then over the warps through shared memory, for EDGES edges at a time.
// Blocks with different blockIdx.y have different parts of the outputs.
extern "C" __global__ void __launch_bounds__(THREADS, @BLOCKS@) run(
    const long long n_items, const long long* __restrict__ first,
    const long long* __restrict__ senders, const long long* __restrict__ pairs,
    @PARAMETERS@) {
  enum : int { EDGES = @EDGES@, SLOTS = @SLOTS@, TOTALS = @TOTALS@ };
  alignas(16) __shared__ T shared[EDGES * SLOTS];
  @STAGE@
  __shared__ T totals[EDGES * WARPS * TOTALS];
  const long long row = blockIdx.x;
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  @PASSES@
}
