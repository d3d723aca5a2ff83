if (blockIdx.y == @NUMBER@) {
  @SUMS@
  for (long long e0 = first[row]; e0 < first[row + 1]; e0 += EDGES) {
    const long long left = first[row + 1] - e0;
    const int n = left < EDGES ? (int)left : EDGES;
    __syncthreads();  // the edges before have been read
    for (int j = threadIdx.x; j < n; j += THREADS) {
      const long long edge = e0 + j;
      @UNIFORM_POINTERS@
      T* u = shared + j * SLOTS;
      @UNIFORM@
    }
    __syncthreads();
    if (active) {
      @UNROLL@
      for (int j = 0; j < n; ++j) {
        const long long edge = e0 + j;
        const T* u = shared + j * SLOTS;
        @EDGE_POINTERS@
        @BODY@
      }
    }
  }
  if (active) {
    @STORES@
  }
}
