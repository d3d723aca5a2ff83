// Sums of rows over chunks: out[c] = sum of in[order[i]] over i = first[c]..first[c + 1], in order.
//
// A thread has one chunk and one column of a row, so there is parallel work also where chunks are few.
extern "C" __global__ void __launch_bounds__(THREADS) run(
    const long long n_items, const long long* __restrict__ order,
    const long long* __restrict__ first, const long long* __restrict__ index_of_chunk,
    const T* __restrict__ in, T* __restrict__ out) {
  const long long COLUMNS = @SEGMENTS@ * K;
  const long long thread = blockIdx.x * (long long)THREADS + threadIdx.x;
  const long long chunk = thread / COLUMNS, column = thread % COLUMNS;
  if (chunk >= n_items) return;
  T sum = 0;
  @UNROLL@
  for (long long place = first[chunk]; place < first[chunk + 1]; ++place)
    sum += in[order[place] * COLUMNS + column];
  out[chunk * COLUMNS + column] = sum;
}
