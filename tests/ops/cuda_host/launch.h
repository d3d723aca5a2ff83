// The entry point of a kernel on the host: the grid, the block and pointers to the arguments.
static void** shim_arguments;

template <class... A>
static void shim_call(void (*kernel)(A...)) {
  shim::call(kernel, shim_arguments, std::index_sequence_for<A...>{});
}

extern "C" void host_launch(const unsigned* grid, unsigned threads, void** arguments) {
  if (threads % shim::LANES != 0 || threads > 1024) std::abort();
  shim_arguments = arguments;
  shim::entry = [] { shim_call(run); };
  shim::fibres = std::vector<shim::Fibre>(threads);
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads, 1, 1};
  for (unsigned y = 0; y < grid[1]; ++y)
    for (unsigned x = 0; x < grid[0]; ++x) {
      blockIdx = {x, y, 0};
      shim::run_block();
    }
}
