if (blockIdx.y == @NUMBER@) {
  @SUMS@
  for (long long place = first[chunk]; place < first[chunk + 1]; ++place) {
    const long long row = order[place];
    @ROW_POINTERS@
    @BODY@
  }
  @STORES@
}
