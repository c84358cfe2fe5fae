// Work of a step that serves many requests at once: keys and values in pages, attention over pages, low-rank adapters of
// different rows side by side, and whole blocks of them. Keys lie in pages as [page, head, width, 16], values as [page,
// head, 16, width]: sixteen tokens are one lane. Every thread runs the same function and takes its share of the work.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <type_traits>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "native.h"

namespace {

inline Lane lane(const float* p) { return *reinterpret_cast<const Lane*>(p); }
#ifdef __AVX512F__
inline Lane lane(const bfloat16* p) {  // by hand: the compiler goes by way of two halves
    __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return reinterpret_cast<Lane>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
#else
#ifdef __AVX2__
inline void widen(const bfloat16* p, Parts<1>& part) {  // by hand too: the compiler widens four at a time and joins them
    __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    part.only = reinterpret_cast<Part>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#else
typedef uint16_t Narrow __attribute__((vector_size(sizeof(Part) / 2), aligned(2)));
typedef uint32_t Wide __attribute__((vector_size(sizeof(Part))));
inline void widen(const bfloat16* p, Parts<1>& part) {
    part.only = reinterpret_cast<Part>(__builtin_convertvector(*reinterpret_cast<const Narrow*>(p), Wide) << 16);
}
#endif
template <int COUNT>
inline void widen(const bfloat16* p, Parts<COUNT>& parts) {
    widen(p, parts.low);
    widen(p + sizeof(parts.low) / sizeof(float), parts.high);
}
inline Lane lane(const bfloat16* p) {
    Lane value;
    widen(p, value);
    return value;
}
#endif

// Numbers of 16 bits that lie in pairs, one of the first sixteen and one of the next: these (WHICH 0) or those (1). It is
// half the work of widening sixteen that lie side by side.
#ifdef __AVX512F__
typedef Lane Part;
#endif
typedef uint32_t Pairs __attribute__((vector_size(sizeof(Part)), aligned(2)));
template <int WHICH>
inline void pick(const bfloat16* p, Part& part) {
    Pairs bits = *reinterpret_cast<const Pairs*>(p);
    part = reinterpret_cast<Part>(WHICH ? bits & 0xffff0000u : bits << 16);
}
#ifndef __AVX512F__
template <int WHICH>
inline void pick(const bfloat16* p, Parts<1>& part) { pick<WHICH>(p, part.only); }
template <int WHICH, int COUNT>
inline void pick(const bfloat16* p, Parts<COUNT>& parts) {
    pick<WHICH>(p, parts.low);
    pick<WHICH>(p + sizeof(parts.low) / sizeof(bfloat16), parts.high);
}
#endif
template <int WHICH>
inline Lane paired(const bfloat16* p) {
    Lane value;
    pick<WHICH>(p, value);
    return value;
}
template <int WHICH>
inline Lane paired(const float* p) { return lane(p + WHICH * LANE); }
inline void put(float* p, const Lane& values) { *reinterpret_cast<Lane*>(p) = values; }
inline void put(bfloat16* p, const Lane& values) {
    for (int i = 0; i < LANE; ++i) store(p + i, values[i]);
}
typedef float Half __attribute__((vector_size(32)));
typedef float Quarter __attribute__((vector_size(16)));
inline float sum(const Lane& lane) {
    Half halves[2];
    std::memcpy(halves, &lane, sizeof(lane));
    Half eight = halves[0] + halves[1];
    Quarter quarters[2];
    std::memcpy(quarters, &eight, sizeof(eight));
    Quarter four = quarters[0] + quarters[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

inline void rest() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// A team of threads of its own, which waits by spinning while a step runs and sleeps between steps. OpenMP's would do, but
// its threads go to sleep at every barrier as soon as any other thread of the program has a team too (LOG.md).
class Team {
public:
    explicit Team(int64_t size) : size(size) {
        for (int64_t id = 1; id < size; ++id) std::thread([this, id] { work(id); }).detach();
    }
    // Calls work(id) in every thread, the caller's as id 0, and returns when all are through. Callers wait for each other.
    void run(const std::function<void(int64_t)>& work) {
        std::lock_guard<std::mutex> turn(callers);
        task = &work;
        {
            std::lock_guard<std::mutex> lock(sleep);
            round.fetch_add(1, std::memory_order_release);
        }
        wake.notify_all();
        work(0);
        barrier();
    }
    // Nobody goes on before all have come.
    void barrier() {
        if (size == 1) return;
        int64_t turn = turns.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
            arrived.store(0, std::memory_order_relaxed);
            taken.store(0, std::memory_order_relaxed);
            turns.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int64_t spins = 0; turns.load(std::memory_order_acquire) == turn; ++spins) {
            rest();
            if (spins > 20000) std::this_thread::yield();  // somebody else has the processor that the others need
        }
    }
    // The next piece of work that nobody has taken since the last barrier.
    int64_t take() { return taken.fetch_add(1, std::memory_order_relaxed); }
    const int64_t size;

private:
    void work(int64_t id) {
        for (int64_t seen = 0;;) {
            for (int spins = 0; round.load(std::memory_order_acquire) == seen && spins < 20000; ++spins) rest();
            if (round.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(sleep);
                wake.wait(lock, [&] { return round.load(std::memory_order_acquire) != seen; });
            }
            seen = round.load(std::memory_order_acquire);
            (*task)(id);
            barrier();
        }
    }
    const std::function<void(int64_t)>* task = nullptr;
    std::atomic<int64_t> round{0}, arrived{0}, turns{0}, taken{0};
    std::mutex sleep, callers;
    std::condition_variable wake;
};

// Which part of the work a thread takes.
struct Share {
    int64_t id = 0, size = 1;
    Team* team = nullptr;
    int64_t begin(int64_t count) const { return count * id / size; }
    int64_t end(int64_t count) const { return count * (id + 1) / size; }
    void barrier() const { if (team) team->barrier(); }
    // Calls go(piece, the piece that this thread does after it or -1) until none of `count` pieces is left. Whoever is
    // ready takes the next, for threads are not equally fast on a machine that others use. Once between two barriers.
    template <class Go>
    void each(int64_t count, Go go) const {
        if (!team || size == 1) {  // every second one, or every third: neighbours are about as long
            for (int64_t piece = id; piece < count; piece += size) go(piece, piece + size < count ? piece + size : -1);
            return;
        }
        for (int64_t piece = team->take(); piece < count;) {
            int64_t after = team->take();
            go(piece, after < count ? after : -1);
            piece = after;
        }
    }
};

// Puts the keys and values of `count` tokens into their places: slot = page * 16 + place in the page.
template <class T, class P>
void store_pages(const T* key, int64_t key_token, int64_t key_head, const T* value, int64_t value_token,
                 int64_t value_head, P* keys, P* values, const int64_t* slots, int64_t count, int64_t heads,
                 int64_t width, Share share = {}) {
    for (int64_t n = share.begin(count); n < share.end(count); ++n) {
        int64_t page = slots[n] / LANE, place = slots[n] % LANE;
        for (int64_t h = 0; h < heads; ++h) {
            const T* k = key + n * key_token + h * key_head;
            const T* v = value + n * value_token + h * value_head;
            P* key_to = keys + (page * heads + h) * width * LANE + place;
            P* value_to = values + ((page * heads + h) * LANE + place) * width;
            for (int64_t i = 0; i < width; ++i) store(key_to + i * LANE, load(k + i));
            for (int64_t i = 0; i < width; ++i) store(value_to + i, load(v + i));
        }
    }
}

#ifdef __AVX512F__
constexpr int TILE = 12, SUMS = 24;  // of rows; lanes that the registers hold beside what they are multiplied by
#else
constexpr int TILE = 6, SUMS = 6;
#endif

// Calls `go` with the size of each block of rows as a constant, and its first row.
template <class Go>
inline void in_blocks(int64_t rows, Go go) {
    int64_t row = 0;
    for (; row + TILE <= rows; row += TILE) go(std::integral_constant<int, TILE>{}, row);
    if (TILE > 8 && row + 8 <= rows) { go(std::integral_constant<int, 8>{}, row); row += 8; }
    if (TILE > 4 && row + 4 <= rows) { go(std::integral_constant<int, 4>{}, row); row += 4; }
    if (row + 3 == rows) { go(std::integral_constant<int, 3>{}, row); row += 3; }
    if (row + 2 <= rows) { go(std::integral_constant<int, 2>{}, row); row += 2; }
    if (row + 1 <= rows) go(std::integral_constant<int, 1>{}, row);
}

constexpr int64_t QUERIES = 8;  // of a sequence that are answered together

// Lanes that so many rows take at once, for sums of few would wait for each other.
template <int ROWS>
constexpr int SIDE_BY_SIDE = (ROWS + 1) * 2 <= SUMS ? 2 : 1;

// p[r] = q[r] . the keys of each page, for `ROWS` rows; `keys` tells where a page's lie.
template <int ROWS, class Keys>
inline void score_pages(const Matrix& q, const Matrix& p, int64_t pages, int64_t width, Keys keys) {
    constexpr int LANES = SIDE_BY_SIDE<ROWS>;
    for (int64_t page = 0; page < pages; page += LANES) {
        const auto *first = keys(page), *second = keys(std::min(page + LANES, pages) - 1);
        Lane sums[ROWS][LANES] = {};
        for (int64_t i = 0; i < width; ++i) {
            Lane key[LANES];
            key[0] = lane(first + i * LANE);
            if constexpr (LANES == 2) key[1] = lane(second + i * LANE);
            for (int r = 0; r < ROWS; ++r)
                for (int l = 0; l < LANES; ++l) sums[r][l] += q.at[r * q.row + i] * key[l];
        }
        for (int r = 0; r < ROWS; ++r)
            for (int l = 0; l < LANES && page + l < pages; ++l) put(p.at + r * p.row + (page + l) * LANE, sums[r][l]);
    }
}

// LANES lanes of out[r] = p[r] . the values of all pages, of which the last counts up to `end`.
template <int ROWS, int LANES, class Values>
inline void sum_lanes(const Matrix& p, const Matrix& out, int64_t end, int64_t width, int64_t column, Values values) {
    Lane sums[ROWS][LANES] = {};
    for (int64_t start = 0; start < end; start += LANE) {
        const auto* from = values(start / LANE) + column;
        for (int64_t j = 0; j < std::min(LANE, end - start); ++j) {
            Lane value[LANES];
            for (int l = 0; l < LANES; ++l) value[l] = lane(from + j * width + l * LANE);
            for (int r = 0; r < ROWS; ++r)
                for (int l = 0; l < LANES; ++l) sums[r][l] += p.at[r * p.row + start + j] * value[l];
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int l = 0; l < LANES; ++l) put(out.at + r * out.row + column + l * LANE, sums[r][l]);
}
template <int ROWS, class Values>
inline void sum_pages(const Matrix& p, const Matrix& out, int64_t end, int64_t width, Values values) {
    constexpr int LANES = SIDE_BY_SIDE<ROWS>;
    int64_t column = 0;
    for (; column + LANES * LANE <= out.row; column += LANES * LANE)
        sum_lanes<ROWS, LANES>(p, out, end, width, column, values);
    for (; column < out.row; column += LANE) sum_lanes<ROWS, 1>(p, out, end, width, column, values);
}

// Causal attention of `count` sequences. Sequence s has its new tokens at starts[s], new_tokens[s] of them, the last of
// which is token contexts[s] - 1 of the sequence; all its keys and values are in the pages of row s of `tables`.
template <class T, class P>
void attend_pages(const T* query, int64_t query_token, int64_t query_head, const P* keys, const P* values, T* out,
                  const int64_t* tables, int64_t table_row, const int64_t* starts, const int64_t* new_tokens,
                  const int64_t* contexts, int64_t count, int64_t heads, int64_t key_heads, int64_t width, float scale,
                  int64_t window, Share share) {
    struct Task { int64_t sequence, first; };
    std::vector<Task> tasks;
    for (int64_t s = 0; s < count; ++s)
        for (int64_t first = 0; first < new_tokens[s]; first += QUERIES) tasks.push_back({s, first});
    int64_t repeats = heads / key_heads, wide = padded(width), page_size = width * LANE;
    static thread_local std::vector<float> room;
    share.each(static_cast<int64_t>(tasks.size()) * key_heads, [&](int64_t index, int64_t) {
        Task task = tasks[static_cast<size_t>(index / key_heads)];
        int64_t h = index % key_heads, s = task.sequence;
        int64_t queries = std::min(QUERIES, new_tokens[s] - task.first), rows = queries * repeats;
        int64_t at = contexts[s] - new_tokens[s] + task.first;  // of the first query, in its sequence
        int64_t end = at + queries;
        int64_t first_page = window > 0 && at + 1 > window ? (at + 1 - window) / LANE : 0;
        int64_t pages = (end + LANE - 1) / LANE - first_page, across = pages * LANE;
        size_t need = static_cast<size_t>(rows * (2 * wide + across));
        if (room.size() < need) room.resize(need);
        Matrix q{room.data(), wide, 1}, to{q.at + rows * wide, wide, 1}, p{to.at + rows * wide, across, 1};
        for (int64_t r = 0; r < rows; ++r) {
            const T* from = query + (starts[s] + task.first + r / repeats) * query_token +
                            (h * repeats + r % repeats) * query_head;
            for (int64_t i = 0; i < width; ++i) q.at[r * wide + i] = load(from + i) * scale;
        }
        const int64_t* table = tables + s * table_row + first_page;
        auto in = [&](const P* all, int64_t page) { return all + (table[page] * key_heads + h) * page_size; };
        auto from = [](const Matrix& matrix, int64_t row) { return Matrix{matrix.at + row * matrix.row, matrix.row, 1}; };
        in_blocks(rows, [&](auto size, int64_t row) {
            score_pages<decltype(size)::value>(from(q, row), from(p, row), pages, width,
                                               [&](int64_t page) { return in(keys, page); });
        });
        for (int64_t r = 0; r < rows; ++r) {
            float* row = p.at + r * across;
            int64_t first, last;
            visible(at + r / repeats, end, window, first, last);
            first -= first_page * LANE;
            last -= first_page * LANE;
            float largest = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : largest)
            for (int64_t j = first; j < last; ++j) largest = row[j] > largest ? row[j] : largest;
#pragma omp simd reduction(+ : total)
            for (int64_t j = first; j < last; ++j) {
                row[j] = exponential(row[j] - largest);
                total += row[j];
            }
            for (int64_t j = 0; j < first; ++j) row[j] = 0.0f;
            float part = 1.0f / total;
#pragma omp simd
            for (int64_t j = first; j < last; ++j) row[j] *= part;
            for (int64_t j = last; j < across; ++j) row[j] = 0.0f;
        }
        in_blocks(rows, [&](auto size, int64_t row) {
            // Only what is this sequence's: behind its last token may lie another's numbers, which need not be any.
            sum_pages<decltype(size)::value>(from(p, row), from(to, row), end - first_page * LANE, width,
                                             [&](int64_t page) { return in(values, page); });
        });
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < width; ++i)
                store(out + ((starts[s] + task.first + r / repeats) * heads + h * repeats + r % repeats) * width + i,
                      to.at[r * wide + i]);
    });
}

constexpr int64_t RANKS = 4;      // that are computed together
constexpr int64_t COLUMNS = 128;  // of 16 bits that are widened at once

// low[n][r] = down[r] . x[n] for `ROWS` rows. `next` is what will be read after it, and is fetched on the way.
template <int ROWS, class T, class W>
inline void go_down(const T* x, int64_t x_row, const W* down, const W* next, int64_t inputs, float* low, int64_t rank) {
    constexpr int AT_ONCE = RANKS * ROWS <= SUMS ? RANKS : 2 * ROWS <= SUMS ? 2 : 1;
    for (int64_t start = 0; start < rank; start += AT_ONCE) {
        Lane sums[ROWS][AT_ONCE] = {};
        float rest[ROWS][AT_ONCE] = {};
        const W* from[AT_ONCE];
        for (int r = 0; r < AT_ONCE; ++r) from[r] = down + std::min(start + r, rank - 1) * inputs;
        int64_t i = 0;
        for (; i + LANE <= inputs; i += LANE) {
            Lane weights[AT_ONCE];
            for (int r = 0; r < AT_ONCE; ++r) {
                if (next) __builtin_prefetch(next + (start + r) * inputs + i, 0, 3);
                weights[r] = lane(from[r] + i);
            }
            for (int n = 0; n < ROWS; ++n) {
                Lane value = lane(x + n * x_row + i);
                for (int r = 0; r < AT_ONCE; ++r) sums[n][r] += value * weights[r];
            }
        }
        for (; i < inputs; ++i)
            for (int r = 0; r < AT_ONCE; ++r)
                for (int n = 0; n < ROWS; ++n) rest[n][r] += load(x + n * x_row + i) * load(from[r] + i);
        for (int n = 0; n < ROWS; ++n)
            for (int64_t r = 0; r < std::min<int64_t>(AT_ONCE, rank - start); ++r)
                low[n * rank + start + r] = sum(sums[n][r]) + rest[n][r];
    }
}

// out[n][o] += sum over r of low[n][r] up[r][o] for `ROWS` rows, lane by lane.
template <int ROWS, class T, class W>
inline void go_up(const float* low, const W* up, int64_t rank, int64_t outputs, T* out, int64_t out_row) {
    int64_t o = 0;
    for (; o + LANE <= outputs; o += LANE) {
        Lane totals[ROWS];
        for (int n = 0; n < ROWS; ++n) totals[n] = lane(out + n * out_row + o);
        for (int64_t r = 0; r < rank; ++r) {
            Lane weight = lane(up + r * outputs + o);
            for (int n = 0; n < ROWS; ++n) totals[n] += low[n * rank + r] * weight;
        }
        for (int n = 0; n < ROWS; ++n) put(out + n * out_row + o, totals[n]);
    }
    for (; o < outputs; ++o)
        for (int n = 0; n < ROWS; ++n) {
            float total = load(out + n * out_row + o);
            for (int64_t r = 0; r < rank; ++r) total += low[n * rank + r] * load(up + r * outputs + o);
            store(out + n * out_row + o, total);
        }
}

// The same for one row alone and the first `columns` of up. Its rows stream through, `RANKS` at a time.
template <class W>
inline void go_up(const float* low, const W* up, const W* next, int64_t rank, int64_t outputs, int64_t columns,
                  float* out) {
    for (int64_t r = 0; r < rank; r += RANKS) {
        const W* ahead = r + RANKS < rank ? up + (r + RANKS) * outputs : next;
        float by[RANKS];
        const W* from[RANKS];
        for (int64_t k = 0; k < RANKS; ++k) {
            by[k] = r + k < rank ? low[r + k] : 0.0f;
            from[k] = up + (r + k < rank ? r + k : r) * outputs;
        }
        int64_t o = 0;
        for (; o + LANE <= columns; o += LANE) {
            Lane total = lane(out + o);
            for (int64_t k = 0; k < RANKS; ++k) {
                if (ahead) __builtin_prefetch(ahead + k * outputs + o, 0, 3);
                total += by[k] * lane(from[k] + o);
            }
            put(out + o, total);
        }
        for (; o < columns; ++o)
            for (int64_t k = 0; k < RANKS; ++k) out[o] += by[k] * load(from[k] + o);
    }
}

// The same into numbers of 16 bits, which are rounded once.
template <class W>
inline void go_up(const float* low, const W* up, const W* next, int64_t rank, int64_t outputs, int64_t columns,
                  bfloat16* out) {
    for (int64_t start = 0; start < columns; start += COLUMNS) {
        float room[COLUMNS];
        int64_t count = std::min(COLUMNS, columns - start);
        for (int64_t i = 0; i < count; ++i) room[i] = load(out + start + i);
        go_up(low, up + start, next ? next + start : nullptr, rank, outputs, count, room);
        for (int64_t i = 0; i < count; ++i) store(out + start + i, room[i]);
    }
}

// Layers of the same input that are one product: in its output each begins at column at[p] and is widths[p] wide.
struct Joined {
    int64_t count, inputs;
    const int64_t *at, *widths;
    int64_t outputs() const { return at[count - 1] + widths[count - 1]; }
};

// The adapters of a step. Group g is rows spans[2 g]..spans[2 g + 1]. Beside layer p its adapter has, at place p * stride +
// g, down [rank, inputs] and up [rank, width] with the scale in it; address 0 where it has none. Where it has a ratio
// [width], what the layer gives, without its bias, is multiplied by that before. `halves`: they are held in 16 bits.
struct Mix {
    const int64_t* spans;
    int64_t groups;
    const int64_t *downs, *ups, *ratios, *ranks;
    int64_t stride, halves;
};

// What one adapter adds to one layer, for rows first..last of its group; `next` is the place of what comes after it, or -1,
// `end` how many bytes have been read after it.
struct Addition { int64_t layer, place, first, last, next = -1, end = 0; };

// Calls go(addition) for all of them that are of rows first..last, in the order in which adapters lie in memory.
template <class Go>
inline void each_addition(const Mix& mix, int64_t layers, int64_t first, int64_t last, Go go) {
    Addition one{};
    bool any = false;
    for (int64_t g = 0; g < mix.groups; ++g) {
        int64_t start = std::max(first, mix.spans[2 * g]), end = std::min(last, mix.spans[2 * g + 1]);
        for (int64_t p = 0; start < end && p < layers; ++p) {
            int64_t place = p * mix.stride + g;
            if (!mix.downs[place]) continue;
            one.next = place;
            if (any) go(one);
            one = {p, place, start, end};
            any = true;
        }
    }
    if (any) go(one);
}

// Adds to out what the addition makes of x.
template <class T, class W>
inline void add_one_of(const Mix& mix, const Joined& layers, const Addition& one, const T* x, int64_t x_row, T* out,
                       int64_t out_row) {
    static thread_local std::vector<float> lows;
    int64_t rank = mix.ranks[one.place], rows = one.last - one.first, outputs = layers.widths[one.layer];
    if (lows.size() < static_cast<size_t>(rows * rank)) lows.resize(static_cast<size_t>(rows * rank));
    const W *down = reinterpret_cast<const W*>(mix.downs[one.place]), *up = reinterpret_cast<const W*>(mix.ups[one.place]);
    const W* next = one.next < 0 ? nullptr : reinterpret_cast<const W*>(mix.downs[one.next]);
    float* low = lows.data();
    in_blocks(rows, [&](auto size, int64_t row) {
        go_down<decltype(size)::value>(x + (one.first + row) * x_row, x_row, down, row ? nullptr : up, layers.inputs,
                                       low + row * rank, rank);
    });
    T* to = out + one.first * out_row + layers.at[one.layer];
    in_blocks(rows, [&](auto size, int64_t row) {
        constexpr int ROWS = decltype(size)::value;
        if constexpr (ROWS == 1) go_up(low + row * rank, up, next, rank, outputs, outputs, to + row * out_row);
        else go_up<ROWS>(low + row * rank, up, rank, outputs, to + row * out_row, out_row);
    });
}
template <class T>
inline void add_one(const Mix& mix, const Joined& layers, const Addition& one, const T* x, int64_t x_row, T* out,
                    int64_t out_row) {
    auto add = mix.halves ? add_one_of<T, bfloat16> : add_one_of<T, float>;
    add(mix, layers, one, x, x_row, out, out_row);
}

// Multiplies what a layer gave, without its bias, by the adapter's ratio.
template <class T>
inline void apply_ratio(const Mix& mix, const Joined& layers, const Addition& one, const T* bias, T* out,
                        int64_t out_row) {
    const float* ratio = reinterpret_cast<const float*>(mix.ratios[one.place]);
    int64_t at = layers.at[one.layer];
    for (int64_t row = one.first; ratio && row < one.last; ++row)
        for (int64_t o = 0; o < layers.widths[one.layer]; ++o) {
            float apart = bias ? load(bias + at + o) : 0.0f;
            T* value = out + row * out_row + at + o;
            store(value, (load(value) - apart) * ratio[o] + apart);
        }
}

// Adds to each group of rows what its adapter adds.
template <class T>
void add_adapters(const T* x, int64_t x_row, T* out, int64_t out_row, const Mix& mix, const Joined& layers,
                  const T* bias) {
    each_addition(mix, layers.count, 0, INT64_MAX, [&](const Addition& one) {
        apply_ratio(mix, layers, one, bias, out, out_row);
        add_one(mix, layers, one, x, x_row, out, out_row);
    });
}

struct float16 { uint16_t bits; };
inline float load(const float16* p) {  // IEEE 754 binary16
    uint32_t sign = static_cast<uint32_t>(p->bits & 0x8000) << 16, exponent = (p->bits >> 10) & 31, part = p->bits & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * static_cast<float>(part) * 5.9604644775390625e-8f;
    uint32_t bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | (part << 13);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// A piece of a matrix that is turned at once.
constexpr int64_t SIDE = 8;
typedef float Square[SIDE][SIDE];

inline void turn(const Square& from, Square& to) {
#if defined(__x86_64__)  // by hand: the compiler gathers number by number, which takes many times as long
    for (int64_t r = 0; r < SIDE; r += 4)
        for (int64_t c = 0; c < SIDE; c += 4) {
            __m128 four[4];
            for (int64_t i = 0; i < 4; ++i) four[i] = _mm_loadu_ps(&from[r + i][c]);
            _MM_TRANSPOSE4_PS(four[0], four[1], four[2], four[3]);
            for (int64_t i = 0; i < 4; ++i) _mm_storeu_ps(&to[c + i][r], four[i]);
        }
#else
    for (int64_t r = 0; r < SIDE; ++r)
        for (int64_t c = 0; c < SIDE; ++c) to[c][r] = from[r][c];
#endif
}

// Copies a matrix out of a file, times a scale, turned where asked. Returns whether all of it are numbers.
template <class From, class To>
bool place_matrix(const From* from, To* to, int64_t rows, int64_t columns, float scale, bool turned) {
    uint32_t wrong = 0;  // a number's exponent is never all ones
    auto place = [&](float number, To* target) {
        uint32_t bits;
        std::memcpy(&bits, &number, 4);
        wrong |= (bits & 0x7f800000) == 0x7f800000;
        store(target, number * scale);
    };
    if (!turned)
#pragma omp simd reduction(| : wrong)
        for (int64_t i = 0; i < rows * columns; ++i) place(load(from + i), to + i);
    auto place_square = [&](int64_t r, int64_t c, auto high, auto wide) {  // constants where it is a whole one
        Square square = {}, other;
        for (int64_t i = 0; i < high; ++i)
            for (int64_t j = 0; j < wide; ++j) square[i][j] = load(from + (r + i) * columns + c + j);
        turn(square, other);
        for (int64_t j = 0; j < wide; ++j)
#pragma omp simd reduction(| : wrong)
            for (int64_t i = 0; i < high; ++i) place(other[j][i], to + (c + j) * rows + r + i);
    };
    typedef std::integral_constant<int64_t, SIDE> Whole;
    for (int64_t c = 0; turned && c < columns; c += SIDE)
        for (int64_t r = 0; r < rows; r += SIDE) {
            if (r + SIDE <= rows && c + SIDE <= columns) place_square(r, c, Whole{}, Whole{});
            else place_square(r, c, std::min(SIDE, rows - r), std::min(SIDE, columns - c));
        }
    return wrong == 0;
}

// A matrix [rows, columns] of a file: where it is there, of which kind (float32, float16, bfloat16), and where it goes.
struct Move {
    int64_t from, kind;
    void* to;
    int64_t rows, columns, turned;
    double scale;
};

// A thread's share of matrices. Returns the place of the first that holds what is no number, from 1, or 0.
template <class To>
int64_t place_matrices(const char* file, const Move* moves, int64_t count, Share share) {
    for (int64_t i = share.begin(count); i < share.end(count); ++i) {
        const Move& move = moves[i];
        auto place = [&](const auto* from) {
            return place_matrix(from, static_cast<To*>(move.to), move.rows, move.columns,
                                static_cast<float>(move.scale), move.turned != 0);
        };
        const char* from = file + move.from;
        bool right = move.kind == 0   ? place(reinterpret_cast<const float*>(from))
                     : move.kind == 1 ? place(reinterpret_cast<const float16*>(from))
                                      : place(reinterpret_cast<const bfloat16*>(from));
        if (!right) return i + 1;
    }
    return 0;
}

// How a product takes its weights and inputs. HALVES: both in 16 bits, by the processor's own dot products of two
// neighbouring inputs; where a processor has none, its models take HALF_WEIGHTS.
enum Kind : int64_t { FLOATS, HALF_WEIGHTS, HALVES };

// Products of few rows with a weight that lies in panels [outputs / 32, inputs, 32] (in pairs, where only the weight has
// 16 bits), or [outputs / 32, inputs / 2, 32, 2] for HALVES: a panel streams through once for every `ROWS` rows, whose
// sums stay in registers.
constexpr int64_t PANEL = 2 * LANE;
constexpr int64_t LINE = 64;  // bytes that memory hands over at once
constexpr int64_t CACHE = 1 << 18;  // bytes of rows that are multiplied while they stay in a processor's own cache

// Bytes that a product fetches on its way, so many at each turn. Evenly: all at once would keep the numbers that the product
// waits for from coming.
struct Fetch {
    const char* at = nullptr;
    int64_t step = 0;
    template <int LINES>
    void go(int64_t turn) const {
        if (at)
            for (int i = 0; i < LINES; ++i) __builtin_prefetch(at + turn * step + i * LINE, 0, 2);
    }
    // The share of a part of so many turns; this is what the parts after it fetch.
    Fetch take(int64_t turns) {
        Fetch taken = *this;
        if (at) at += turns * step;
        return taken;
    }
};

// What adapters add to a thread's rows of a product, computed between the panels of that very product: products compute,
// adapters have a long way from memory, and so each is fetched during a panel and added after the next, when it still is
// in the processor's own cache. The product's output belongs to all threads until it is done: until then additions are kept.
class Additions {
public:
    // x [tokens, inputs] is the product's, kept [tokens, outputs] the room for what is added to rows first..last.
    void begin(const Mix& its_mix, const Joined& its_layers, const float* its_x, float* its_kept, int64_t first,
               int64_t last) {
        mix = its_mix, layers = its_layers, x = its_x, kept = its_kept;
        outputs = layers.outputs();
        all.clear();
        stretches.clear();
        done = ready = stretch = 0;
        fetched = wanted = 0;
        int64_t size = mix.halves ? sizeof(bfloat16) : sizeof(float);
        each_addition(mix, layers.count, first, last, [&](const Addition& one) {
            put(mix.downs[one.place], mix.ranks[one.place] * layers.inputs * size);
            put(mix.ups[one.place], mix.ranks[one.place] * layers.widths[one.layer] * size);
            all.push_back(one);
            all.back().end = wanted;
        });
    }
    // The product will take so many turns in this thread; each may fetch up to so many bytes. Some more than an even share,
    // for threads are not equally fast.
    void spread(int64_t turns, int64_t most) { rate = std::min(most, 5 * (wanted - fetched) / (4 * turns) + 1); }
    // What a part of it fetches.
    Fetch take(int64_t turns) {
        if (stretch == stretches.size()) return {};
        Stretch& from = stretches[stretch];
        int64_t bytes = std::min(from.bytes, turns * rate);
        Fetch taken{from.at, (bytes + turns - 1) / turns};
        fetched += bytes;
        from.at += bytes;
        from.bytes -= bytes;
        if (!from.bytes) ++stretch;
        return taken;
    }
    // After a panel: adds what had been fetched before it.
    void go() {
        go_to(ready);
        while (ready < all.size() && all[ready].end <= fetched) ++ready;
    }
    void finish() { go_to(all.size()); }
    // All panels are done: adds what was kept to out.
    void settle(float* out, const float* bias) const {
        for (const Addition& one : all) {
            apply_ratio(mix, layers, one, bias, out, outputs);
            for (int64_t row = one.first; row < one.last; ++row) {
                int64_t from = row * outputs + layers.at[one.layer];
                for (int64_t o = from; o < from + layers.widths[one.layer]; ++o) out[o] += kept[o];
            }
        }
    }

private:
    struct Stretch { const char* at; int64_t bytes; };
    void put(int64_t address, int64_t bytes) {
        const char* at = reinterpret_cast<const char*>(address);
        wanted += bytes;
        if (!stretches.empty() && stretches.back().at + stretches.back().bytes == at) stretches.back().bytes += bytes;
        else stretches.push_back({at, bytes});
    }
    void go_to(size_t end) {
        for (; done < end; ++done) {
            const Addition& one = all[done];
            for (int64_t row = one.first; row < one.last; ++row)
                std::fill_n(kept + row * outputs + layers.at[one.layer], layers.widths[one.layer], 0.0f);
            add_one(mix, layers, one, x, layers.inputs, kept, outputs);
        }
    }
    Mix mix{};
    Joined layers{};
    const float* x = nullptr;
    float* kept = nullptr;
    int64_t outputs = 0;
    std::vector<Addition> all;
    std::vector<Stretch> stretches;  // of memory, where their adapters lie
    size_t done = 0, ready = 0, stretch = 0;  // additions that are done, and that may be; where to fetch
    int64_t fetched = 0, wanted = 0, rate = 0;  // bytes, and bytes a turn
};

// Two neighbouring inputs of a row in 16 bits.
struct Two { bfloat16 first, second; };
template <class X>
constexpr int64_t TURN = std::is_same<X, Two>::value ? 2 : 1;  // inputs that a turn of a product adds
template <class X>
constexpr int LINES = std::is_same<X, Two>::value ? 2 : 1;  // of adapters that a turn fetches at most

// Adds a turn to the lanes FIRST.. of a panel; a row's number is taken once for all lanes.
template <int ROWS, int LANES, int FIRST, class W>
inline void add_turn(Lane (&sums)[ROWS][LANES], const float* x, const W* panel) {
    Lane weights[LANES];
    weights[0] = paired<FIRST>(panel);
    if constexpr (LANES == 2) weights[1] = paired<1>(panel);
    for (int n = 0; n < ROWS; ++n)
        for (int l = 0; l < LANES; ++l) sums[n][l] += x[n] * weights[l];
}
#ifdef __AVX512BF16__
template <int ROWS, int LANES, int FIRST>
inline void add_turn(Lane (&sums)[ROWS][LANES], const Two* x, const bfloat16* panel) {
    __m512i weights[LANES];
    for (int l = 0; l < LANES; ++l) weights[l] = _mm512_loadu_si512(panel + (FIRST + l) * 2 * LANE);
    for (int n = 0; n < ROWS; ++n) {
        int32_t bits;
        std::memcpy(&bits, x + n, sizeof(bits));
        __m512bh two = reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
        for (int l = 0; l < LANES; ++l)
            sums[n][l] = reinterpret_cast<Lane>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums[n][l]), two,
                                                                 reinterpret_cast<__m512bh>(weights[l])));
    }
}
#endif

// x lies turned, so that the numbers of a turn come one after another: [inputs, ROWS], or [inputs / 2, ROWS] twos.
template <int ROWS, int LANES, int FIRST, class X, class T, class W>
inline void multiply_lanes(const X* x, const W* panel, Fetch& next, const T* bias, T* out, int64_t out_row,
                           int64_t turns, int64_t columns, Additions* additions) {
    Fetch panels = next.take(turns), adapters = additions ? additions->take(turns) : Fetch{};
    Lane sums[ROWS][LANES] = {};
    for (int64_t i = 0; i < turns; ++i) {
        panels.go<1>(i);
        adapters.go<LINES<X>>(i);
        add_turn<ROWS, LANES, FIRST>(sums, x + i * ROWS, panel + i * TURN<X> * PANEL);
    }
    for (int n = 0; n < ROWS; ++n)
        for (int l = 0; l < LANES; ++l) {
            int64_t from = (FIRST + l) * LANE;
            T* to = out + n * out_row + from;
            if (from + LANE <= columns) {
                put(to, bias ? sums[n][l] + lane(bias + from) : sums[n][l]);
                continue;
            }
            for (int64_t o = 0; o < columns - from; ++o)
                store(to + o, sums[n][l][o] + (bias ? load(bias + from + o) : 0.0f));
        }
}

template <int ROWS, class X, class T, class W>
inline void multiply_panel(const X* x, const W* panel, Fetch& next, const T* bias, T* out, int64_t out_row,
                           int64_t turns, int64_t columns, Additions* additions) {
    if constexpr (2 * ROWS <= SUMS) {
        multiply_lanes<ROWS, 2, 0>(x, panel, next, bias, out, out_row, turns, columns, additions);
    } else {
        multiply_lanes<ROWS, 1, 0>(x, panel, next, bias, out, out_row, turns, columns, additions);
        multiply_lanes<ROWS, 1, 1>(x, panel, next, bias, out, out_row, turns, columns, additions);
    }
}

// ROWS rows as the product takes them, with a zero behind the last input where turns are of two and inputs are odd.
template <int ROWS, class T>
inline void turn_rows(const T* x, int64_t x_row, int64_t inputs, float* to) {
    for (int n = 0; n < ROWS; ++n)
        for (int64_t i = 0; i < inputs; ++i) to[i * ROWS + n] = load(x + n * x_row + i);
}
template <int ROWS, class T>
inline void turn_rows(const T* x, int64_t x_row, int64_t inputs, Two* to) {
    constexpr int64_t PART = 64;  // rounded side by side, so that the compiler takes many at once
    for (int64_t first = 0; first < inputs; first += PART) {
        int64_t count = std::min(PART, inputs - first);
        bfloat16 rounded[ROWS][PART] = {};
        for (int n = 0; n < ROWS; ++n)
            for (int64_t i = 0; i < count; ++i) store(&rounded[n][i], load(x + n * x_row + first + i));
        for (int64_t i = 0; i < count; i += 2)
            for (int n = 0; n < ROWS; ++n) to[(first + i) / 2 * ROWS + n] = {rounded[n][i], rounded[n][i + 1]};
    }
}

// `parts`: of the rows, that are still to be multiplied, these among them.
template <class X, class T, class W>
void multiply_panels_of(const T* x, int64_t x_row, const W* panels, const T* bias, T* out, int64_t out_row,
                        int64_t rows, int64_t inputs, int64_t outputs, Share share, Additions* additions,
                        int64_t parts) {
    static thread_local std::vector<X> room;
    int64_t turns = (inputs + TURN<X> - 1) / TURN<X>, panel_size = turns * TURN<X> * PANEL;
    if (room.size() < static_cast<size_t>(rows * turns)) room.resize(static_cast<size_t>(rows * turns));
    X* turned = room.data();
    int64_t passes = 0;
    in_blocks(rows, [&](auto size, int64_t row) {
        constexpr int ROWS = decltype(size)::value;
        passes += 2 * ROWS <= SUMS ? 1 : 2;
        turn_rows<ROWS>(x + row * x_row, x_row, inputs, turned + row * turns);
    });
    int64_t step = (TURN<X> * PANEL * static_cast<int64_t>(sizeof(W)) + passes - 1) / passes;
    int64_t count = (outputs + PANEL - 1) / PANEL;
    if (additions) additions->spread(std::max<int64_t>(1, count / share.size) * passes * turns * parts, LINES<X> * LINE);
    share.each(count, [&](int64_t p, int64_t after) {
        const W* panel = panels + p * panel_size;
        int64_t column = p * PANEL, columns = std::min(PANEL, outputs - column);
        bool ready = after < 0 || passes == 1;  // a single pass reads as quickly as memory gives
        Fetch next{ready ? nullptr : reinterpret_cast<const char*>(panels + after * panel_size), step};
        in_blocks(rows, [&](auto size, int64_t row) {
            multiply_panel<decltype(size)::value>(turned + row * turns, panel, next, bias ? bias + column : nullptr,
                                                  out + row * out_row + column, out_row, turns, columns, additions);
        });
        if (additions) additions->go();
    });
}

template <class T>
void multiply_panels(const T* x, int64_t x_row, const void* panels, const T* bias, T* out, int64_t out_row, int64_t rows,
                     int64_t inputs, int64_t outputs, int64_t kind, Share share, Additions* additions = nullptr) {
    // As many rows at once as stay in a processor's own cache while all panels pass.
    int64_t size = kind == HALVES ? sizeof(bfloat16) : sizeof(float);
    int64_t most = std::max<int64_t>(4 * TILE, CACHE / (inputs * size) / TILE * TILE);
    for (int64_t first = 0; first < rows; first += most) {
        int64_t count = std::min(most, rows - first);
        auto multiply = [&](auto number, auto* weights) {
            multiply_panels_of<decltype(number)>(x + first * x_row, x_row, weights, bias, out + first * out_row, out_row,
                                                 count, inputs, outputs, share, additions, (rows - first + most - 1) / most);
        };
        if (first) share.barrier();
        if (kind == FLOATS) multiply(float(), static_cast<const float*>(panels));
        else if (kind == HALF_WEIGHTS) multiply(float(), static_cast<const bfloat16*>(panels));
#ifdef __AVX512BF16__
        else multiply(Two(), static_cast<const bfloat16*>(panels));
#endif
    }
    if (additions) additions->finish();
}

// The blocks of a decoder as Llama has them, in float: norm, queries with keys and values, rotary positions, attention over
// pages, projection; norm, gated layer. Weights lie in panels. The fields are those of kernels/blocks.py, in their order.
struct Block {
    const float *norm, *bias, *query_norm, *key_norm, *out_bias, *second_norm;
    const void *query_key_value, *out, *gate_up, *down;
    void *keys, *values;  // float, or of 16 bits where the model's numbers are
    int64_t window, module;  // module: the number of its first adapted layer; q, k, v, o, gate, up, down follow
};
struct Model {
    int64_t width, heads, key_heads, head_width, inner, gelu, kind, half_pages;
    float epsilon, head_epsilon, scale, offset;
};
struct Step {
    int64_t tokens;
    const float *cosine, *sine;
    const int64_t *slots, *tables;
    int64_t table_row;
    const int64_t *starts, *new_tokens, *contexts;
    int64_t sequences;
};

inline Mix from_module(Mix mix, int64_t module) {
    int64_t at = module * mix.stride;
    return {mix.spans, mix.groups, mix.downs + at, mix.ups + at, mix.ratios + at, mix.ranks + at, mix.stride, mix.halves};
}

// What the blocks write between their parts.
struct Room {
    float *normed, *attended, *wide, *inner, *added;
};

// The share of one thread of blocks one after another, in place of x [tokens, width].
void run_share(const Model& m, const Block* blocks, int64_t count, const Step& step, const Mix& mix, float* x,
               const Room& room, Share share) {
    int64_t n = step.tokens, query = m.heads * m.head_width, key = m.key_heads * m.head_width, all = query + 2 * key;
    int64_t first = share.begin(n), last = share.end(n);
    int64_t three[] = {query, key, key}, at_three[] = {0, query, query + key}, two[] = {m.inner, m.inner};
    int64_t at_two[] = {0, m.inner}, one[] = {m.width}, at_one[] = {0};
    const float* none = nullptr;
    Additions additions;
    auto norm = [&](const float* weight) {
        for (int64_t row = first; row < last; ++row)
            rms_norm_row(x + row * m.width, weight, room.normed + row * m.width, m.width, m.epsilon, m.offset);
        share.barrier();
    };
    auto product = [&](const float* from, const void* panels, const float* bias, float* out, int64_t module,
                       const Joined& layers) {
        int64_t outputs = layers.outputs();
        if (mix.groups) additions.begin(from_module(mix, module), layers, from, room.added, first, last);
        multiply_panels(from, layers.inputs, panels, bias, out, outputs, n, layers.inputs, outputs, m.kind, share,
                        mix.groups ? &additions : nullptr);
        share.barrier();
        if (mix.groups) additions.settle(out, bias);
    };
    auto add = [&] {
        for (int64_t i = first * m.width; i < last * m.width; ++i) x[i] += room.normed[i];
    };
    auto attend = [&](const Block& block, auto number) {
        auto *keys = static_cast<decltype(number)*>(block.keys), *values = static_cast<decltype(number)*>(block.values);
        store_pages(room.wide + query, all, m.head_width, room.wide + query + key, all, m.head_width, keys, values,
                    step.slots, n, m.key_heads, m.head_width, share);
        share.barrier();
        attend_pages(room.wide, all, m.head_width, keys, values, room.attended, step.tables, step.table_row, step.starts,
                     step.new_tokens, step.contexts, step.sequences, m.heads, m.key_heads, m.head_width, m.scale,
                     block.window, share);
    };
    for (const Block* block = blocks; block < blocks + count; ++block) {
        norm(block->norm);
        product(room.normed, block->query_key_value, block->bias, room.wide, block->module, {3, m.width, at_three, three});
        for (int64_t row = first; row < last; ++row) {
            float* q = room.wide + row * all;
            for (int64_t h = 0; block->query_norm && h < m.heads + m.key_heads; ++h)
                rms_norm_row(q + h * m.head_width, h < m.heads ? block->query_norm : block->key_norm,
                             q + h * m.head_width, m.head_width, m.head_epsilon, m.offset);
            rotate_row(q, step.cosine + row * m.head_width, step.sine + row * m.head_width, m.heads + m.key_heads,
                       m.head_width, 1.0f);
        }
        if (m.half_pages) attend(*block, bfloat16());
        else attend(*block, float());
        share.barrier();
        product(room.attended, block->out, block->out_bias, room.normed, block->module + 3, {1, query, at_one, one});
        add();
        norm(block->second_norm);
        product(room.normed, block->gate_up, none, room.wide, block->module + 4, {2, m.width, at_two, two});
        for (int64_t row = first; row < last; ++row) {
            const float* from = room.wide + row * 2 * m.inner;
            if (m.gelu) gated_row<float, GeluTanh>(from, room.inner + row * m.inner, m.inner);
            else gated_row<float, Silu>(from, room.inner + row * m.inner, m.inner);
        }
        share.barrier();
        product(room.inner, block->down, none, room.normed, block->module + 6, {1, m.inner, at_one, one});
        add();
    }
}

void run_blocks(Team& team, const Model& m, const Block* blocks, int64_t count, const Step& step, const Mix& mix,
                float* x) {
    int64_t n = step.tokens, query = m.heads * m.head_width, wide = query + 2 * m.key_heads * m.head_width;
    static thread_local std::vector<float> room;
    int64_t widest = std::max(wide, 2 * m.inner);
    size_t need = static_cast<size_t>(n * (m.width + query + widest + m.inner + (mix.groups ? widest : 0)));
    if (room.size() < need) room.resize(need);
    Room parts;
    parts.normed = room.data();
    parts.attended = parts.normed + n * m.width;
    parts.wide = parts.attended + n * query;
    parts.inner = parts.wide + n * widest;
    parts.added = parts.inner + n * m.inner;
    team.run([&](int64_t id) { run_share(m, blocks, count, step, mix, x, parts, {id, team.size, &team}); });
}

// A share for each of OpenMP's threads, where none waits for another inside.
template <class Work>
inline void in_parallel(Work work) {
#ifdef _OPENMP
#pragma omp parallel
    work(Share{omp_get_thread_num(), omp_get_num_threads(), nullptr});
#else
    work(Share{});
#endif
}

}  // namespace

#define EXPORT(TYPE, SUFFIX)                                                                                           \
    extern "C" void store_pages_##SUFFIX(const TYPE* key, int64_t key_token, int64_t key_head, const TYPE* value,      \
                                         int64_t value_token, int64_t value_head, TYPE* keys, TYPE* values,            \
                                         const int64_t* slots, int64_t count, int64_t heads, int64_t width) {          \
        store_pages(key, key_token, key_head, value, value_token, value_head, keys, values, slots, count, heads,       \
                    width);                                                                                            \
    }                                                                                                                  \
    extern "C" void attend_pages_##SUFFIX(                                                                             \
        const TYPE* query, int64_t query_token, int64_t query_head, TYPE* keys, TYPE* values, TYPE* out,               \
        const int64_t* tables, int64_t table_row, const int64_t* starts, const int64_t* new_tokens,                    \
        const int64_t* contexts, int64_t count, int64_t heads, int64_t key_heads, int64_t width, float scale,          \
        int64_t window) {                                                                                              \
        in_parallel([&](Share share) {                                                                                 \
            attend_pages(query, query_token, query_head, keys, values, out, tables, table_row, starts, new_tokens,     \
                         contexts, count, heads, key_heads, width, scale, window, share);                              \
        });                                                                                                            \
    }                                                                                                                  \
    extern "C" void add_adapters_##SUFFIX(const TYPE* x, int64_t x_row, TYPE* out, int64_t out_row, const Mix* mix,    \
                                          int64_t parts, const int64_t* offsets, const int64_t* widths,                \
                                          int64_t inputs, const TYPE* bias) {                                          \
        add_adapters(x, x_row, out, out_row, *mix, {parts, inputs, offsets, widths}, bias);                            \
    }                                                                                                                  \
    extern "C" int64_t place_matrices_##SUFFIX(void* team, const char* file, const Move* moves, int64_t count) {       \
        Team& own = *static_cast<Team*>(team);                                                                         \
        std::vector<int64_t> wrong(static_cast<size_t>(own.size));                                                     \
        own.run([&](int64_t id) {                                                                                      \
            wrong[static_cast<size_t>(id)] = place_matrices<TYPE>(file, moves, count, {id, own.size, &own});           \
        });                                                                                                            \
        for (int64_t first : wrong)                                                                                    \
            if (first) return first;                                                                                   \
        return 0;                                                                                                      \
    }

#ifdef OF_BFLOAT16
EXPORT(bfloat16, bfloat16)
#else
EXPORT(float, float32)

extern "C" void* make_team_float32(int64_t size) { return new Team(size); }

// OpenMP's loops of the calling thread, torch's among them, take no other thread from here on.
extern "C" void stay_alone_float32() {
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
}

extern "C" void run_blocks_float32(void* team, const Model* model, const Block* blocks, int64_t count, const Step* step,
                                   const Mix* mix, float* x) {
    run_blocks(*static_cast<Team*>(team), *model, blocks, count, *step, *mix, x);
}

extern "C" int64_t multiplies_halves_float32() {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

extern "C" void multiply_panels_float32(void* team, const float* x, int64_t x_row, const void* panels, float* out,
                                        int64_t out_row, int64_t rows, int64_t inputs, int64_t outputs, int64_t kind) {
    Team& own = *static_cast<Team*>(team);
    const float* no_bias = nullptr;
    own.run([&](int64_t id) {
        multiply_panels(x, x_row, panels, no_bias, out, out_row, rows, inputs, outputs, kind, {id, own.size, &own});
    });
}
#endif
