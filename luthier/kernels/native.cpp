// Elementwise work of a transformer block on processors, each function one pass over memory: RMS norm, gated
// activation, rotary positions, causal softmax, cross-entropy. Every function exists for float and for bfloat16
// (stored as 16 bits, computed in float). Rows are independent and shared among threads.
// In: raw pointers, rows contiguous unless a stride is given. The plain versions are in the .py files beside this one.

#include <cmath>
#include <cstdint>
#include <cstring>

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

constexpr int64_t WORTH_SHARING = 16384;  // values below which starting threads costs more than it saves

template <class T>
void rms_norm(const T* x, const T* weight, T* out, float* scale, int64_t rows, int64_t width, float epsilon, float offset) {
#pragma omp parallel for if (rows * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row) {
        const T* from = x + row * width;
        T* to = out + row * width;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; ++i) { float v = load(from + i); sum += v * v; }
        float r = 1.0f / std::sqrt(sum / width + epsilon);
        scale[row] = r;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) store(to + i, load(from + i) * r * (offset + load(weight + i)));
    }
}

template <class T>
void rms_norm_backward(const T* gradient, const T* x, const T* weight, const float* scale, T* out, int64_t rows,
                       int64_t width, float offset) {
#pragma omp parallel for if (rows * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row) {
        const T* g = gradient + row * width;
        const T* from = x + row * width;
        T* to = out + row * width;
        float r = scale[row], sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; ++i) sum += load(g + i) * (offset + load(weight + i)) * load(from + i);
        float along = r * r * r * sum / width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i)
            store(to + i, load(g + i) * (offset + load(weight + i)) * r - load(from + i) * along);
    }
}

// gate_up holds both halves of each row side by side: gate in the first `width` values, up in the next.
template <class T, class Activation>
void gated(const T* gate_up, T* out, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row) {
        const T* gate = gate_up + row * 2 * width;
        const T* up = gate + width;
        T* to = out + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) store(to + i, Activation::value(load(gate + i)) * load(up + i));
    }
}

template <class T, class Activation>
void gated_backward(const T* gradient, const T* gate_up, T* out, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row) {
        const T* g = gradient + row * width;
        const T* gate = gate_up + row * 2 * width;
        const T* up = gate + width;
        T* gate_to = out + row * 2 * width;
        T* up_to = gate_to + width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            float d = load(g + i), x = load(gate + i);
            store(gate_to + i, d * load(up + i) * Activation::slope(x));
            store(up_to + i, d * Activation::value(x));
        }
    }
}

// Turns pairs (i, i + half) of the first `heads` heads of each row by the row's angles, in place (Su et al. 2021,
// arXiv:2104.09864, equation 34). direction -1 is the transpose, which is what a gradient needs.
template <class T>
void rotate(T* x, const T* cosine, const T* sine, int64_t rows, int64_t stride, int64_t heads, int64_t width,
            float direction) {
    int64_t half = width / 2;
#pragma omp parallel for if (rows * heads * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row) {
        const T* c = cosine + row * width;
        const T* s = sine + row * width;
        for (int64_t head = 0; head < heads; ++head) {
            T* first = x + row * stride + head * width;
            T* second = first + half;
#pragma omp simd
            for (int64_t i = 0; i < half; ++i) {
                float a = load(first + i), b = load(second + i);
                float sine_a = load(s + i), sine_b = load(s + half + i);
                // Forward, the first half takes its own sine; the transpose takes the other half's.
                float turn_a = direction > 0 ? -sine_a : sine_b, turn_b = direction > 0 ? sine_b : -sine_a;
                store(first + i, a * load(c + i) + b * turn_a);
                store(second + i, b * load(c + half + i) + a * turn_b);
            }
        }
    }
}

// Which keys the query may see: first..last. It stands at key `at`, -1 where it may see those after it too; of the keys
// only the first `length` are real; window 0 means no window, else it sees so many keys, its own among them.
inline void visible(int64_t at, int64_t length, int64_t window, int64_t& first, int64_t& last) {
    last = at < 0 || at >= length ? length : at + 1;
    first = at >= 0 && window > 0 && at + 1 > window ? at + 1 - window : 0;
    first = first < last ? first : last - 1;
}

// Softmax over the keys that each query may see, in place; the others become 0. scores [matrices, queries, keys];
// matrix m has length[m % examples] keys; query i stands at key i + offset; offset -1 for attention in both directions.
template <class T>
void causal_softmax(T* scores, const int64_t* length, int64_t examples, int64_t matrices, int64_t queries, int64_t keys,
                    float scale, int64_t offset, int64_t window) {
#pragma omp parallel for if (matrices * queries * keys > WORTH_SHARING)
    for (int64_t index = 0; index < matrices * queries; ++index) {
        T* row = scores + index * keys;
        int64_t first, last;
        visible(offset < 0 ? -1 : index % queries + offset, length[index / queries % examples], window, first, last);
        float largest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : largest)
        for (int64_t i = first; i < last; ++i) { float v = load(row + i); largest = v > largest ? v : largest; }
        if (sizeof(T) == 4) {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = first; i < last; ++i) {
                float v = exponential((load(row + i) - largest) * scale);
                store(row + i, v);
                sum += v;
            }
            float share = 1.0f / sum;
#pragma omp simd
            for (int64_t i = first; i < last; ++i) store(row + i, load(row + i) * share);
        } else {  // rounding twice would lose half of the few bits there are
#pragma omp simd reduction(+ : sum)
            for (int64_t i = first; i < last; ++i) sum += exponential((load(row + i) - largest) * scale);
            float share = 1.0f / sum;
#pragma omp simd
            for (int64_t i = first; i < last; ++i)
                store(row + i, exponential((load(row + i) - largest) * scale) * share);
        }
        for (int64_t i = 0; i < first; ++i) store(row + i, 0.0f);
        for (int64_t i = last; i < keys; ++i) store(row + i, 0.0f);
    }
}

// In place: gradient of the softmax's input from that of its output, times the scale.
template <class T>
void causal_softmax_backward(T* gradient, const T* probabilities, const int64_t* length, int64_t examples,
                             int64_t matrices, int64_t queries, int64_t keys, float scale, int64_t offset,
                             int64_t window) {
#pragma omp parallel for if (matrices * queries * keys > WORTH_SHARING)
    for (int64_t index = 0; index < matrices * queries; ++index) {
        T* g = gradient + index * keys;
        const T* p = probabilities + index * keys;
        int64_t first, last;
        visible(offset < 0 ? -1 : index % queries + offset, length[index / queries % examples], window, first, last);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = first; i < last; ++i) sum += load(g + i) * load(p + i);
#pragma omp simd
        for (int64_t i = first; i < last; ++i) store(g + i, load(p + i) * (load(g + i) - sum) * scale);
        for (int64_t i = 0; i < first; ++i) store(g + i, 0.0f);
        for (int64_t i = last; i < keys; ++i) store(g + i, 0.0f);
    }
}

// Cross-entropy of each row against its target, times the row's weight; the scores become its gradient, in place.
template <class T>
void cross_entropy(T* scores, const int64_t* target, const float* weight, float* loss, int64_t rows, int64_t classes) {
#pragma omp parallel for if (rows * classes > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row) {
        T* s = scores + row * classes;
        float largest = -INFINITY, sum = 0.0f, of_target = load(s + target[row]);
#pragma omp simd reduction(max : largest)
        for (int64_t i = 0; i < classes; ++i) { float v = load(s + i); largest = v > largest ? v : largest; }
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < classes; ++i) sum += exponential(load(s + i) - largest);
        loss[row] = (std::log(sum) + largest - of_target) * weight[row];
        float share = weight[row] / sum;
#pragma omp simd
        for (int64_t i = 0; i < classes; ++i) store(s + i, exponential(load(s + i) - largest) * share);
        float probability = std::exp(of_target - largest) / sum;
        store(s + target[row], (probability - 1.0f) * weight[row]);
    }
}

}  // namespace

#define EXPORT(TYPE, SUFFIX)                                                                                           \
    extern "C" void rms_norm_##SUFFIX(const TYPE* x, const TYPE* weight, TYPE* out, float* scale, int64_t rows,        \
                                      int64_t width, float epsilon, float offset) {                                    \
        rms_norm(x, weight, out, scale, rows, width, epsilon, offset);                                                 \
    }                                                                                                                  \
    extern "C" void rms_norm_backward_##SUFFIX(const TYPE* gradient, const TYPE* x, const TYPE* weight,                \
                                               const float* scale, TYPE* out, int64_t rows, int64_t width,             \
                                               float offset) {                                                         \
        rms_norm_backward(gradient, x, weight, scale, out, rows, width, offset);                                       \
    }                                                                                                                  \
    extern "C" void silu_##SUFFIX(const TYPE* gate_up, TYPE* out, int64_t rows, int64_t width) {                       \
        gated<TYPE, Silu>(gate_up, out, rows, width);                                                                  \
    }                                                                                                                  \
    extern "C" void silu_backward_##SUFFIX(const TYPE* gradient, const TYPE* gate_up, TYPE* out, int64_t rows,         \
                                           int64_t width) {                                                            \
        gated_backward<TYPE, Silu>(gradient, gate_up, out, rows, width);                                               \
    }                                                                                                                  \
    extern "C" void gelu_tanh_##SUFFIX(const TYPE* gate_up, TYPE* out, int64_t rows, int64_t width) {                  \
        gated<TYPE, GeluTanh>(gate_up, out, rows, width);                                                              \
    }                                                                                                                  \
    extern "C" void gelu_tanh_backward_##SUFFIX(const TYPE* gradient, const TYPE* gate_up, TYPE* out, int64_t rows,    \
                                                int64_t width) {                                                       \
        gated_backward<TYPE, GeluTanh>(gradient, gate_up, out, rows, width);                                           \
    }                                                                                                                  \
    extern "C" void rotate_##SUFFIX(TYPE* x, const TYPE* cosine, const TYPE* sine, int64_t rows, int64_t stride,       \
                                    int64_t heads, int64_t width, float direction) {                                   \
        rotate(x, cosine, sine, rows, stride, heads, width, direction);                                                \
    }                                                                                                                  \
    extern "C" void causal_softmax_##SUFFIX(TYPE* scores, const int64_t* length, int64_t examples, int64_t matrices,   \
                                            int64_t queries, int64_t keys, float scale, int64_t offset,                \
                                            int64_t window) {                                                          \
        causal_softmax(scores, length, examples, matrices, queries, keys, scale, offset, window);                      \
    }                                                                                                                  \
    extern "C" void causal_softmax_backward_##SUFFIX(TYPE* gradient, const TYPE* probabilities, const int64_t* length, \
                                                     int64_t examples, int64_t matrices, int64_t queries,              \
                                                     int64_t keys, float scale, int64_t offset, int64_t window) {      \
        causal_softmax_backward(gradient, probabilities, length, examples, matrices, queries, keys, scale, offset,     \
                                window);                                                                               \
    }                                                                                                                  \
    extern "C" void cross_entropy_##SUFFIX(TYPE* scores, const int64_t* target, const float* weight, float* loss,      \
                                           int64_t rows, int64_t classes) {                                            \
        cross_entropy(scores, target, weight, loss, rows, classes);                                                    \
    }

EXPORT(float, float32)
EXPORT(bfloat16, bfloat16)
