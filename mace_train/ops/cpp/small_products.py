"""Many small matrix products in one call on a CPU, for the linear maps of narrow models.

PyTorch takes microseconds for a product of any size, and as many again for every view, copy and
concatenation around it. Here one call takes a list of products, of rows that may lie anywhere:

    rows        out[i, v] = scale sum_u a[i, u] b[u, v]            i = (n, m): rows m of atoms n
    weights     out[u, v] = scale sum_i a[i, u] b[i, v]

They are taken in the order of the list, and each sum in that of its index: the same bits each time.
"""

import ctypes
from array import array
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mace_train.ops.codegen import kernel_cache
from mace_train.ops.cpp import compiler as cpp_compiler

LARGEST = 1 << 22  # multiplications in one call; PyTorch's products of more are as fast

Product = tuple[int, ...]
"""(lo, hi, n_m, n_u, n_v, *a, *b, *out): the atoms lo..hi of the order, sizes, and for each tensor
where it begins and its steps. Those of rows are from atom to atom and from row to row, those of the
matrix (b of ``rows``, out of ``weights``) from u to u and from v to v; out has the step 1 in v."""
_SCALARS = {torch.float32: "float", torch.float64: "double"}


def run(
    kind: str,
    products: Iterable[Product],
    scales: Iterable[float],
    order: Tensor | None,
    a: Tensor,
    b: Tensor,
    out: Tensor,
) -> None:
    """Write the products of a ``kind`` (rows or weights) to ``out``.

    All tensors are contiguous, of one dtype; ``order`` [n_atoms] int64 lists atoms (None: all).
    """
    assert all(tensor.is_contiguous() for tensor in (a, b, out))
    sizes = array("q", [number for product in products for number in product])
    factors = array("d", scales)
    getattr(functions(a.dtype), kind)(
        sizes.buffer_info()[0],
        factors.buffer_info()[0],
        len(factors),
        None if order is None else order.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
        out.data_ptr(),
    )


def can_run(dtype: torch.dtype, n_multiplications: int) -> bool:
    """Whether products of a type and so many multiplications are taken here."""
    return dtype in _SCALARS and n_multiplications <= LARGEST


@cache
def functions(dtype: torch.dtype) -> Any:
    """The compiled library for tensors of a dtype."""
    width = cpp_compiler.register_width()
    source = _SOURCE.replace("{scalar}", _SCALARS[dtype]).replace("{width}", str(width))
    library = cpp_compiler.library(source, kernel_cache.cache_folder())
    for function in (library.rows, library.weights):
        function.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_int64, *[ctypes.c_void_p] * 4]
        function.restype = None
    return library


_SOURCE = """\
#include <stdint.h>
#include <vector>
typedef {scalar} T;
typedef T V __attribute__((vector_size({width}), aligned(sizeof(T)), may_alias));
enum : int64_t { LANES = {width} / sizeof(T), WIDE = {width} == 64 ? 4 : 2, N_NUMBERS = 14 };
static inline V load(const T* p) { return *(const V*)p; }

struct Product {
  int64_t lo, hi, n_m, n_u, n_v, a[3], b[3], out[3];
  int64_t n_rows() const { return (hi - lo) * n_m; }
  // the rows of all atoms, one after the other
  template <class P> std::vector<P> rows(const int64_t* order, P first, const int64_t* at) const {
    std::vector<P> found;
    found.reserve(n_rows());
    for (int64_t t = lo; t < hi; ++t)
      for (int64_t m = 0; m < n_m; ++m)
        found.push_back(first + at[0] + (order ? order[t] : t) * at[1] + m * at[2]);
    return found;
  }
};

// out[r][v] += a_of(r, k) b[k][v] for R rows and N vectors, from which n values are written
template <int64_t R, int64_t N, class A, class B>
static inline void tile(int64_t n_k, A a_of, B b_of, T* const* out, T scale, int64_t n) {
  V sum[R][N] = {};
  for (int64_t k = 0; k < n_k; ++k) {
    const T* b = b_of(k);
    V of_b[N];
#pragma GCC unroll 8
    for (int64_t j = 0; j < N; ++j) of_b[j] = load(b + j * LANES);
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) {
      V of_a = a_of(r, k) - V{};
#pragma GCC unroll 8
      for (int64_t j = 0; j < N; ++j) sum[r][j] += of_a * of_b[j];
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < N; ++j) {
      V value = sum[r][j] * scale;
      if ((j + 1) * LANES <= n) *(V*)(out[r] + j * LANES) = value;
      else for (int64_t l = 0; l < n - j * LANES; ++l) out[r][j * LANES + l] = value[l];
    }
  }
}

// all rows of out, for the columns of N vectors
template <int64_t N, class A, class B>
static void columns(int64_t n_rows, int64_t n_k, A a_of, B b_of, T* const* out, T scale, int64_t v,
                    int64_t n) {
  enum : int64_t { R = N == 1 ? 8 : 4 };
  T* to[R];
  int64_t i = 0;
  for (; i + R <= n_rows; i += R) {
    for (int64_t r = 0; r < R; ++r) to[r] = out[i + r] + v;
    tile<R, N>(n_k, [=](int64_t r, int64_t k) { return a_of(i + r, k); }, b_of, to, scale, n);
  }
  for (; i < n_rows; ++i) {
    to[0] = out[i] + v;
    tile<1, N>(n_k, [=](int64_t, int64_t k) { return a_of(i, k); }, b_of, to, scale, n);
  }
}

template <class A, class B>
static void product(int64_t n_rows, int64_t n_k, int64_t n_v, A a_of, B b_of, T* const* out,
                    T scale) {
  for (int64_t v = 0; v < n_v;) {
    auto from = [=](int64_t k) { return b_of(k) + v; };
    int64_t left = n_v - v, step = left >= WIDE * LANES ? WIDE : left >= 2 * LANES ? 2 : 1;
    if (step == 4) columns<4>(n_rows, n_k, a_of, from, out, scale, v, left);
    else if (step == 2) columns<2>(n_rows, n_k, a_of, from, out, scale, v, left);
    else columns<1>(n_rows, n_k, a_of, from, out, scale, v, left);
    v += step * LANES;
  }
}

extern "C" void rows(const int64_t* numbers, const double* scales, int64_t n, const int64_t* order,
                     const T* a, const T* b, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    const Product& p = *(const Product*)(numbers + i * N_NUMBERS);
    auto from = p.rows(order, a, p.a);
    auto to = p.rows(order, out, p.out);
    const T* matrix = b + p.b[0];
    int64_t line = p.b[1];
    std::vector<T> copy;  // rows of whole vectors, columns of which are zero behind the last
    if (p.b[2] != 1 || p.n_v % LANES) {
      line = (p.n_v + LANES - 1) / LANES * LANES;
      copy.resize(p.n_u * line);
      for (int64_t u = 0; u < p.n_u; ++u)
        for (int64_t v = 0; v < p.n_v; ++v)
          copy[u * line + v] = b[p.b[0] + u * p.b[1] + v * p.b[2]];
      matrix = copy.data();
    }
    const T* const* f = from.data();
    product(p.n_rows(), p.n_u, p.n_v, [=](int64_t r, int64_t u) { return f[r][u]; },
            [=](int64_t u) { return matrix + u * line; }, to.data(), (T)scales[i]);
  }
}

extern "C" void weights(const int64_t* numbers, const double* scales, int64_t n,
                        const int64_t* order, const T* a, const T* b, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    const Product& p = *(const Product*)(numbers + i * N_NUMBERS);
    auto of_a = p.rows(order, a, p.a);
    auto of_b = p.rows(order, b, p.b);
    std::vector<T> copy;
    if (p.n_v % LANES) {
      int64_t line = (p.n_v + LANES - 1) / LANES * LANES;
      copy.resize(p.n_rows() * line);
      for (int64_t r = 0; r < p.n_rows(); ++r) {
        for (int64_t v = 0; v < p.n_v; ++v) copy[r * line + v] = of_b[r][v];
        of_b[r] = copy.data() + r * line;
      }
    }
    std::vector<T*> to;
    for (int64_t u = 0; u < p.n_u; ++u) to.push_back(out + p.out[0] + u * p.out[1]);
    const T *const *f = of_a.data(), *const *g = of_b.data();
    product(p.n_u, p.n_rows(), p.n_v, [=](int64_t u, int64_t r) { return f[r][u]; },
            [=](int64_t r) { return g[r]; }, to.data(), (T)scales[i]);
  }
}
"""
