if (blockIdx.y == @NUMBER@) {
  for (int j = threadIdx.x; j < n; j += THREADS) {
    const long long edge = order[e0 + j];
    @UNIFORM_POINTERS@
    T* u = shared + j * SLOTS;
    @UNIFORM@
  }
  __syncthreads();
  for (long long pair = p0; pair < p1; ++pair) {
    @PAIR_POINTERS@
    @PAIR_SUMS@
    for (long long place = first[pair]; place < first[pair + 1]; ++place) {
      const int j = (int)(place - e0);
      const long long edge = order[place], row = receivers[edge];
      const T* u = shared + j * SLOTS;
      @SUMS@
      if (active) {
        @POINTERS@
        @BODY@
      }
      @WARP_SUMS@
    }
    if (active) {
      @STORES@
    }
  }
  __syncthreads();
  @TOTALS@
}
