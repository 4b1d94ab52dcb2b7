// The threads of one call, none of which outlives it.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace actdet {

// Hands out the numbers below `end` to several threads, each number once.
class Counter {
  public:
    explicit Counter(int64_t end) : end_(end) {}

    // Returns whether there was one more.
    bool next(int64_t& index) {
        index = next_.fetch_add(1, std::memory_order_relaxed);
        return index < end_;
    }

  private:
    std::atomic<int64_t> next_{0};
    const int64_t end_;
};

// Runs work(counter) over `items` in `count` threads, of which this is one. Returns whether there was enough memory.
template <typename Work>
bool in_threads(int64_t count, int64_t items, const Work& work) {
    Counter counter(items);
    std::atomic<bool> enough{true};
    const auto part = [&] {
        try {
            work(counter);
        } catch (const std::bad_alloc&) {
            enough.store(false, std::memory_order_relaxed);
        }
    };

    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < count && i < items; ++i) others.emplace_back(part);
    } catch (const std::system_error&) {
        // The system has no more threads, so those that have started do all the work.
    } catch (const std::bad_alloc&) {
        enough.store(false, std::memory_order_relaxed);
    }

    part();
    for (std::thread& other : others) other.join();
    return enough.load(std::memory_order_relaxed);
}

}  // namespace actdet
