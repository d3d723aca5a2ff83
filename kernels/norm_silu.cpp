// One layer of a network for some rows: h = silu(u), u = gain n + shift, n = (z - mean) / std, with
// first and second derivatives (mace_train/ops/hidden_layers.py has the formulas).
//
// SCALAR, INTEGER (as wide), WIDTH (columns), BYTES (of a register) and ROWS (of a chunk) are
// defined in front. Gradients of gain and shift are sums over the rows of a chunk, "of_chunk"
// [n_chunks][2][WIDTH], so that they do not depend on the number of threads. A null pointer is a
// change of zero.

#ifndef __clang__
#pragma GCC optimize("O3")  // a third faster than O2
#endif

#include <cmath>
#include <cstring>

typedef SCALAR T;
typedef INTEGER I;
constexpr int LANES = BYTES / sizeof(T);
constexpr int N = (WIDTH + LANES - 1) / LANES;
constexpr bool IS_DOUBLE = sizeof(T) == 8;
typedef T V __attribute__((vector_size(BYTES)));
typedef I VI __attribute__((vector_size(BYTES)));

struct Row {
  V v[N];
  V& operator[](int i) { return v[i]; }
  const V& operator[](int i) const { return v[i]; }
};

// lanes behind the last column stay zero, so that they add nothing to sums
static inline void clear_rest(Row& row) {
  if (WIDTH % LANES)
    for (int j = WIDTH % LANES; j < LANES; ++j) row[N - 1][j] = 0;
}

static inline Row load(const T* from) {
  Row row;
  row[N - 1] = V{};
  std::memcpy(&row, from, WIDTH * sizeof(T));
  return row;
}

static inline void store(const Row& row, T* to) { std::memcpy(to, &row, WIDTH * sizeof(T)); }

static inline void add(const Row& row, T* to) {
  Row total = load(to);
  for (int i = 0; i < N; ++i) total[i] += row[i];
  store(total, to);
}

template <int LANES_LEFT>
static inline T sum(const T* lanes) {
  if constexpr (LANES_LEFT == 1) {
    return *lanes;
  } else {
    typedef T Half __attribute__((vector_size(LANES_LEFT / 2 * sizeof(T))));
    Half halves[2];
    std::memcpy(halves, lanes, sizeof halves);
    const Half both = halves[0] + halves[1];
    return sum<LANES_LEFT / 2>((const T*)&both);
  }
}

static inline T sum(const V& v) { return sum<LANES>((const T*)&v); }

static inline T dot(const Row& a, const Row& b) {
  V total = V{};
  for (int i = 0; i < N; ++i) total += a[i] * b[i];
  return sum(total);
}

static inline T sum(const Row& a) {
  V total = V{};
  for (int i = 0; i < N; ++i) total += a[i];
  return sum(total);
}

// e^x = 2^k e^r with |r| <= ln 2 / 2, and e^r by its series; x is cut where 2^k leaves the range
static inline V exponential(V x) {
  const T most = IS_DOUBLE ? T(708) : T(87);
  const T magic = IS_DOUBLE ? T(6755399441055744.0) : T(12582912.0);  // rounds to an integer
  const T high = IS_DOUBLE ? T(0x1.62e42fefa0000p-1) : T(0x1.62e4p-1);
  const T low = IS_DOUBLE ? T(0x1.cf79abc9e3b3ap-40) : T(0x1.7f7d1cp-20);
  x = x > most ? V{} + most : x;
  x = x < -most ? V{} - most : x;
  const V rounded = x * T(1.4426950408889634) + magic;
  const V k = rounded - magic;
  const V r = (x - k * high) - k * low;
  V series = V{} + T(1);
#pragma GCC unroll 13
  for (int i = IS_DOUBLE ? 13 : 7; i > 0; --i) series = series * (r * (T(1) / T(i))) + T(1);
  VI bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  bits = (bits + (IS_DOUBLE ? 1023 : 127)) << (IS_DOUBLE ? 52 : 23);
  V power;
  std::memcpy(&power, &bits, sizeof power);
  return series * power;
}

struct Layer {
  Row gain, shift, n, u, h, slope, sigmoid;  // slope is silu'
  T rstd;

  Layer(const T* gain_, const T* shift_) : gain(load(gain_)), shift(load(shift_)) {}

  void set(const T* z) {
    n = load(z);
    const T mean = sum(n) / WIDTH;
    for (int i = 0; i < N; ++i) n[i] -= mean;
    clear_rest(n);
    rstd = 1 / std::sqrt(dot(n, n) / WIDTH + T(EPSILON));
    for (int i = 0; i < N; ++i) {
      n[i] *= rstd;
      u[i] = n[i] * gain[i] + shift[i];
      sigmoid[i] = T(1) / (T(1) + exponential(-u[i]));
      h[i] = u[i] * sigmoid[i];
      slope[i] = sigmoid[i] + h[i] * (T(1) - sigmoid[i]);
    }
  }

  Row jacobian(const Row& g) const {  // of n in z; symmetric
    const T mean = sum(g) / WIDTH, along = dot(n, g) / WIDTH;
    Row found;
    for (int i = 0; i < N; ++i) found[i] = rstd * (g[i] - mean - n[i] * along);
    clear_rest(found);
    return found;
  }
};

static inline Row times(const Row& a, const Row& b) {
  Row found;
  for (int i = 0; i < N; ++i) found[i] = a[i] * b[i];
  return found;
}

struct Change {
  Row z, n, u;

  Change(const Layer& layer, const T* dz, const T* d_gain, const T* d_shift) : z(load(dz)) {
    n = layer.jacobian(z);
    u = times(n, layer.gain);
    const Row gain = d_gain ? load(d_gain) : Row{}, shift = d_shift ? load(d_shift) : Row{};
    for (int i = 0; i < N; ++i) u[i] += layer.n[i] * gain[i] + shift[i];
  }
};

static inline const T* at(const T* rows, long row) { return rows + row * WIDTH; }
static inline T* at(T* rows, long row) { return rows + row * WIDTH; }

template <class Work>
static inline void each(long lo, long hi, long n_rows, Work work) {
  for (long chunk = lo; chunk < hi; ++chunk)
    for (long row = chunk * ROWS; row < n_rows && row < (chunk + 1) * ROWS; ++row) work(row);
}

extern "C" {

// in: z, gain, shift; out: h
void value(long lo, long hi, long n_rows, const T* const* in, T* const* out) {
  Layer layer(in[1], in[2]);
  each(lo, hi, n_rows, [&](long row) {
    layer.set(at(in[0], row));
    store(layer.h, at(out[0], row));
  });
}

// in: z, gain, shift, g of h; out: g of z, of_chunk
void gradient(long lo, long hi, long n_rows, const T* const* in, T* const* out) {
  Layer layer(in[1], in[2]);
  each(lo, hi, n_rows, [&](long row) {
    layer.set(at(in[0], row));
    const Row gu = times(load(at(in[3], row)), layer.slope);
    store(layer.jacobian(times(gu, layer.gain)), at(out[0], row));
    if (out[1]) {
      T* of_chunk = at(out[1], 2 * (row / ROWS));
      add(times(gu, layer.n), of_chunk);
      add(gu, of_chunk + WIDTH);
    }
  });
}

// in: z, gain, shift, changes of the three; out: change of h
void tangent(long lo, long hi, long n_rows, const T* const* in, T* const* out) {
  Layer layer(in[1], in[2]);
  each(lo, hi, n_rows, [&](long row) {
    layer.set(at(in[0], row));
    const Change change(layer, at(in[3], row), in[4], in[5]);
    store(times(change.u, layer.slope), at(out[0], row));
  });
}

// in: z, gain, shift, changes of the three, g of the change of h, g of h;
// out: g of the change of z, g of z, of_chunk
void gradient_of_tangent(long lo, long hi, long n_rows, const T* const* in, T* const* out) {
  Layer layer(in[1], in[2]);
  const Row d_gain = in[4] ? load(in[4]) : Row{};
  each(lo, hi, n_rows, [&](long row) {
    layer.set(at(in[0], row));
    const Change change(layer, at(in[3], row), in[4], in[5]);
    const Row a = load(at(in[6], row)), g = in[7] ? load(at(in[7], row)) : Row{};
    Row gu, gn;
    const Row g_du = times(a, layer.slope), g_dn = times(g_du, layer.gain);
    for (int i = 0; i < N; ++i) {
      const V s = layer.sigmoid[i];
      const V curvature = s * (T(1) - s) * (T(2) + layer.u[i] - T(2) * layer.h[i]);
      gu[i] = a[i] * change.u[i] * curvature + g[i] * layer.slope[i];
      gn[i] = gu[i] * layer.gain[i] + g_du[i] * d_gain[i];
    }
    const Row g_dz = layer.jacobian(g_dn);
    Row gz = layer.jacobian(gn);
    const T scale = layer.rstd / WIDTH;
    const T of_g_dz = scale * dot(layer.n, change.z), of_dn = scale * dot(layer.n, g_dn);
    const T of_n = scale * dot(g_dn, change.n);
    for (int i = 0; i < N; ++i)
      gz[i] -= of_g_dz * g_dz[i] + of_dn * change.n[i] + of_n * layer.n[i];
    store(g_dz, at(out[0], row));
    store(gz, at(out[1], row));
    T* of_chunk = at(out[2], 2 * (row / ROWS));
    Row of_gain = times(gu, layer.n);
    for (int i = 0; i < N; ++i) of_gain[i] += g_du[i] * change.n[i];
    add(of_gain, of_chunk);
    add(gu, of_chunk + WIDTH);
  });
}
}
