// The tensors that cost, matching and loss read, and what belongs to one sample of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "operations.hpp"

namespace actdet::ACTDET_ISA {

// One sample under one layer: logits (queries, classes), boxes (queries, frames, 4); of its `count` targets labels
// (.., labels_each), boxes (.., frames, 4) and visible (.., frames), null where all are.
template <typename Real>
struct Sample {
    const Real* logits;
    const Real* boxes;
    const int64_t* labels;
    const Real* target_boxes;
    const bool* visible;
    int64_t queries, classes, frames, labels_each, count;

    Sample(const Predictions& p, int64_t problem) {
        const int64_t sample = problem % p.batch;
        queries = p.queries;
        classes = p.classes;
        frames = p.frames;
        labels_each = p.labels_each;
        count = count_of(p, sample);
        logits = reinterpret_cast<const Real*>(p.logits) + problem * queries * classes;
        boxes = reinterpret_cast<const Real*>(p.boxes) + problem * queries * frames * 4;
        labels = reinterpret_cast<const int64_t*>(p.labels) + sample * p.size * labels_each;
        target_boxes = reinterpret_cast<const Real*>(p.target_boxes) + sample * p.size * frames * 4;
        visible = p.visible == 0 ? nullptr : reinterpret_cast<const bool*>(p.visible) + sample * p.size * frames;
    }

    static int64_t count_of(const Predictions& p, int64_t sample) {
        return std::clamp<int64_t>(reinterpret_cast<const int64_t*>(p.counts)[sample], 0, p.size);
    }

    // Label k of a target is none, because it has fewer.
    bool absent(int64_t target, int64_t k) const { return k > 0 && labels[target * labels_each + k] == -1; }

    bool known(int64_t target, int64_t k) const {
        const int64_t label = labels[target * labels_each + k];
        return label >= 0 && label < classes;
    }
};

}  // namespace actdet::ACTDET_ISA
