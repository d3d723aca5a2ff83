// The part of the CUDA driver that mace_train.ops.cuda_driver uses, on the host, with its error
// codes. A "cubin" is a shared library that host.py compiled, a launch runs it to the end.
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
enum : long { CONTEXT = 0xc0, FIRST_STREAM = 0x5eed };
static thread_local int depth;  // of the stack of contexts; a new thread has none
static long n_launches;
static std::mutex launching;
using Run = void (*)(const unsigned*, unsigned, void**);

extern "C" {
int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cuDeviceGet(int* device, int number) { return *device = number, SUCCESS; }
int cuGetErrorString(int, const char** text) { return *text = "refused by the host's driver", SUCCESS; }

int cuDevicePrimaryCtxRetain(void** context, int) { return *context = (void*)CONTEXT, SUCCESS; }
int cuCtxPushCurrent_v2(void* context) {
  if (context != (void*)CONTEXT) return INVALID_CONTEXT;
  return ++depth, SUCCESS;
}
int cuCtxPopCurrent_v2(void** context) {
  if (depth == 0) return INVALID_CONTEXT;
  *context = (void*)CONTEXT;
  return --depth, SUCCESS;
}

int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
  const auto* elf = (const Elf64_Ehdr*)code;
  if (std::memcmp(elf->e_ident, ELFMAG, SELFMAG) != 0) return INVALID_VALUE;
  const size_t size = elf->e_shoff + elf->e_shnum * elf->e_shentsize;
  const int file = memfd_create("kernel", 0);
  if (write(file, code, size) != (ssize_t)size) return INVALID_VALUE;
  *library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  return *library ? SUCCESS : INVALID_VALUE;  // the file stays open: its name is not used again
}
int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
  if (std::string(name) != "run" || !dlsym(library, name)) return NOT_FOUND;
  *kernel = dlsym(library, "host_launch");
  return *kernel ? SUCCESS : NOT_FOUND;
}
int cuKernelGetFunction(void** function, void* kernel) {
  if (depth == 0) return INVALID_CONTEXT;
  return *function = kernel, SUCCESS;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** arguments, void** extra) {
  if (depth == 0) return INVALID_CONTEXT;
  const bool fits = gx > 0 && gx < (1u << 31) && gy > 0 && gy < 65536 && bx > 0 && bx <= 1024;
  if (!fits || gz != 1 || by != 1 || bz != 1 || shared != 0 || extra) return INVALID_VALUE;
  if (stream != (void*)FIRST_STREAM || !arguments) return INVALID_VALUE;
  const std::lock_guard<std::mutex> lock(launching);
  const unsigned grid[3] = {gx, gy, gz};
  ((Run)function)(grid, bx, arguments);
  return ++n_launches, SUCCESS;
}
long host_launches() { return n_launches; }

int cuGetProcAddress_v2(const char* name, void** function, int, unsigned long, int* status) {
  for (const char* suffix : {"_v2", ""})
    if ((*function = dlsym(RTLD_DEFAULT, (std::string(name) + suffix).c_str()))) break;
  if (status) *status = *function ? 0 : 1;
  return *function ? SUCCESS : NOT_FOUND;
}
}
