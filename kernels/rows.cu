// A function of rows, visited in the order of `order`; chunk c holds the places first[c]..first[c + 1],
// whose rows all have index index_of_chunk[c] (the element, say).
//
// A thread has one chunk and one channel, so neighbouring lanes read neighbouring channels, what
// belongs to an index is read once per chunk (or found in the first-level cache), and sums over the
// chunk stay with the thread until they are written, one row per chunk.
extern "C" __global__ void __launch_bounds__(THREADS, @BLOCKS@) run(
    const long long n_items, const long long* __restrict__ order,
    const long long* __restrict__ first, const long long* __restrict__ index_of_chunk,
    @PARAMETERS@) {
  const long long thread = blockIdx.x * (long long)THREADS + threadIdx.x;
  const long long chunk = thread / K, k = thread % K;
  if (chunk >= n_items) return;
  @POINTERS@
  @PASSES@
}
