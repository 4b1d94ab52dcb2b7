// Threads for one call, none of which outlives it.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace actdet {

// Hands out the numbers below `end`, each of them once.
class Counter {
  public:
    explicit Counter(int64_t end) : end_(end) {}

    // Whether there was one more.
    bool next(int64_t& index) {
        index = next_.fetch_add(1, std::memory_order_relaxed);
        return index < end_;
    }

  private:
    std::atomic<int64_t> next_{0};
    const int64_t end_;
};

// Runs `work` in this thread and in others, `count` together.
template <typename Work>
void in_threads(int64_t count, const Work& work) {
    std::vector<std::thread> others;
    for (int64_t i = 1; i < count; ++i) {
        try {
            others.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // the system has no more: those there are do all of it
        }
    }
    work();
    for (std::thread& other : others) other.join();
}

}  // namespace actdet
