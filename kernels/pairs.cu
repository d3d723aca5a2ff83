// A function of edges, pair after pair: pair p has the edges order[first[p]]..order[first[p + 1]], an
// edge and its reverse, or one edge alone.
//
// A block has a number of pairs and all channels, a thread one channel: the sums over both edges of a
// pair stay with it until they are written, and what both read is read once. All blocks have
// the same work. What all channels share of an edge is computed once, a thread for an edge, and read
// from shared memory. Sums over channels are taken per warp, then over the warps.
// Blocks with different blockIdx.y have different parts of the outputs.
extern "C" __global__ void __launch_bounds__(THREADS, @BLOCKS@) run(
    const long long n_items, const long long* __restrict__ order,
    const long long* __restrict__ first, const long long* __restrict__ senders,
    const long long* __restrict__ receivers,
    @PARAMETERS@) {
  enum : int { EDGES = @EDGES@, PAIRS = EDGES / 2, SLOTS = @SLOTS@, TOTALS = @TOTALS@ };
  alignas(16) __shared__ T shared[EDGES * SLOTS];
  @STAGE@
  __shared__ T totals[EDGES * WARPS * TOTALS];
  const long long k = threadIdx.x;
  const bool active = k < K;
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const long long p0 = blockIdx.x * (long long)PAIRS;
  const long long p1 = p0 + PAIRS < n_items ? p0 + PAIRS : n_items;
  const long long e0 = first[p0];
  const int n = (int)(first[p1] - e0);
  @PASSES@
}
