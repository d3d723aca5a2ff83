if (blockIdx.y == @NUMBER@) {
  for (long long e0 = first[row]; e0 < first[row + 1]; e0 += EDGES) {
    const long long left = first[row + 1] - e0;
    const int n = left < EDGES ? (int)left : EDGES;
    for (int j = threadIdx.x; j < n; j += THREADS) {
      const long long edge = e0 + j;
      @UNIFORM_POINTERS@
      T* u = shared + j * SLOTS;
      @UNIFORM@
    }
    __syncthreads();
    @UNROLL@
    for (int j = 0; j < n; ++j) {
      const long long edge = e0 + j;
      const T* u = shared + j * SLOTS;
      @SUMS@
      for (long long k = threadIdx.x; k < K; k += THREADS) {
        @POINTERS@
        @BODY@
      }
      @WARP_SUMS@
    }
    __syncthreads();
    @TOTALS@
  }
}
