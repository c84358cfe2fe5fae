// What the compiled functions share: numbers of 16 bits, the exponential function, which keys a query sees, small
// products of matrices, and the elementwise work of a block.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct bfloat16 { uint16_t bits; };

inline float load(const float* p) { return *p; }
inline float load(const bfloat16* p) {
    uint32_t bits = static_cast<uint32_t>(p->bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline void store(float* p, float value) { *p = value; }
inline void store(bfloat16* p, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // Round to nearest even; a NaN keeps a bit of its fraction, so that it stays one.
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uint32_t not_a_number = (bits >> 16) | 0x40;
    p->bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? not_a_number : rounded);
}

// e^x within 2 units in the last place: x = n ln 2 + r, a polynomial in r, and n put into the exponent (Cephes' expf).
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = std::nearbyintf(x * 1.44269504088896341f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Which keys the query may see: first..last. It stands at key `at`, -1 where it may see those after it too; of the keys
// only the first `length` are real; window 0 means no window, else it sees so many keys, its own among them.
inline void visible(int64_t at, int64_t length, int64_t window, int64_t& first, int64_t& last) {
    last = at < 0 || at >= length ? length : at + 1;
    first = at >= 0 && window > 0 && at + 1 > window ? at + 1 - window : 0;
    first = first < last ? first : last - 1;
}

// Sixteen floats, in however many registers the processor needs for them.
constexpr int64_t LANE = 16;
#if defined(__AVX512F__)
typedef float Lane __attribute__((vector_size(64), aligned(4)));
constexpr int BLOCK = 8;  // rows of a product that are computed together
#else
// The compiler keeps a vector that is wider than its registers in memory (20 times slower), so it gets several.
#if defined(__AVX__)
typedef float Part __attribute__((vector_size(32), aligned(4)));
#else
typedef float Part __attribute__((vector_size(16), aligned(4)));
#endif
constexpr int BLOCK = 6;
template <int COUNT>
struct Parts {
    Parts<COUNT / 2> low, high;
    Parts& operator+=(const Parts& other) { low += other.low; high += other.high; return *this; }
    friend Parts operator+(const Parts& a, const Parts& b) { return {a.low + b.low, a.high + b.high}; }
    friend Parts operator*(const Parts& a, const Parts& b) { return {a.low * b.low, a.high * b.high}; }
    friend Parts operator*(float a, const Parts& b) { return {a * b.low, a * b.high}; }
    float operator[](int64_t i) const { return reinterpret_cast<const float*>(this)[i]; }
};
template <>
struct Parts<1> {
    Part only;
    Parts& operator+=(const Parts& other) { only += other.only; return *this; }
    friend Parts operator+(const Parts& a, const Parts& b) { return {a.only + b.only}; }
    friend Parts operator*(const Parts& a, const Parts& b) { return {a.only * b.only}; }
    friend Parts operator*(float a, const Parts& b) { return {a * b.only}; }
};
typedef Parts<LANE * sizeof(float) / sizeof(Part)> Lane;
#endif
inline int64_t padded(int64_t count) { return (count + LANE - 1) / LANE * LANE; }

// A matrix of the caller's scratch memory; `row` and `column` are the steps between neighbours.
struct Matrix {
    float* at;
    int64_t row, column;
    Matrix turned() const { return {at, column, row}; }
};

template <int ROWS>
inline void block(const Matrix& left, const Matrix& right, const Matrix& out, int64_t first, int64_t from_inner,
                  int64_t to_inner, int64_t column, bool add) {
    Lane sum[ROWS];
    for (int r = 0; r < ROWS; ++r)
        sum[r] = add ? *reinterpret_cast<const Lane*>(out.at + (first + r) * out.row + column) : Lane{};
    for (int64_t d = from_inner; d < to_inner; ++d) {
        Lane from = *reinterpret_cast<const Lane*>(right.at + d * right.row + column);
        for (int r = 0; r < ROWS; ++r) sum[r] += left.at[(first + r) * left.row + d * left.column] * from;
    }
    for (int r = 0; r < ROWS; ++r) *reinterpret_cast<Lane*>(out.at + (first + r) * out.row + column) = sum[r];
}

// Which half of a product needs no work, where a query sees no later key: none; the later columns of `out`, which are
// left as they were; the later columns of `left`, all zero; or its earlier ones.
enum class Skip { nothing, later_out, later_left, earlier_left };

// out [rows, columns] = (or, with add, +=) left [rows, inner] right [inner, columns]; columns are whole lanes.
inline void multiply(const Matrix& left, const Matrix& right, const Matrix& out, int64_t rows, int64_t inner,
                     int64_t columns, Skip skip, bool add = false) {
    for (int64_t column = 0; column < columns; column += LANE) {
        int64_t first = skip == Skip::later_out ? column : 0;
        while (first < rows) {
            int64_t height = first + BLOCK <= rows ? BLOCK : first + 4 <= rows ? 4 : first + 2 <= rows ? 2 : 1;
            int64_t from = skip == Skip::earlier_left ? first : 0;
            int64_t to = skip == Skip::later_left && first + height < inner ? first + height : inner;
            if (height == BLOCK) block<BLOCK>(left, right, out, first, from, to, column, add);
            else if (height == 4) block<4>(left, right, out, first, from, to, column, add);
            else if (height == 2) block<2>(left, right, out, first, from, to, column, add);
            else block<1>(left, right, out, first, from, to, column, add);
            first += height;
        }
    }
}

// The activations of gated layers and their derivatives.
struct Silu {
    static inline float value(float x) { return x * sigmoid(x); }
    static inline float slope(float x) { float s = sigmoid(x); return s * (1.0f + x * (1.0f - s)); }
};
struct GeluTanh {  // Hendrycks & Gimpel 2016, the tanh form
    static constexpr float a = 0.7978845608028654f, b = 0.044715f;
    static inline float value(float x) { return x * sigmoid(2.0f * a * (x + b * x * x * x)); }
    static inline float slope(float x) {
        float s = sigmoid(2.0f * a * (x + b * x * x * x));
        return s + x * s * (1.0f - s) * 2.0f * a * (1.0f + 3.0f * b * x * x);
    }
};

// Root mean square norm of a row (Zhang and Sennrich 2019, arXiv:1910.07467); returns the factor it was scaled by.
template <class T>
inline float rms_norm_row(const T* x, const T* weight, T* out, int64_t width, float epsilon, float offset) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) { float v = load(x + i); sum += v * v; }
    float r = 1.0f / std::sqrt(sum / width + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(out + i, load(x + i) * r * (offset + load(weight + i)));
    return r;
}

// gate_up holds both halves of a row side by side: gate in the first `width` values, up in the next.
template <class T, class Activation>
inline void gated_row(const T* gate_up, T* out, int64_t width) {
    const T* up = gate_up + width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(out + i, Activation::value(load(gate_up + i)) * load(up + i));
}

// Turns pairs (i, i + half) of the first `heads` heads of a row by the row's angles, in place (Su et al. 2021,
// arXiv:2104.09864, equation 34). direction -1 is the transpose, which is what a gradient needs.
template <class T>
inline void rotate_row(T* x, const T* cosine, const T* sine, int64_t heads, int64_t width, float direction) {
    int64_t half = width / 2;
    for (int64_t head = 0; head < heads; ++head) {
        T* first = x + head * width;
        T* second = first + half;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
            float a = load(first + i), b = load(second + i);
            float sine_a = load(sine + i), sine_b = load(sine + half + i);
            // Forward, the first half takes its own sine; the transpose takes the other half's.
            float turn_a = direction > 0 ? -sine_a : sine_b, turn_b = direction > 0 ? sine_b : -sine_a;
            store(first + i, a * load(cosine + i) + b * turn_a);
            store(second + i, b * load(cosine + half + i) + a * turn_b);
        }
    }
}

}  // namespace
