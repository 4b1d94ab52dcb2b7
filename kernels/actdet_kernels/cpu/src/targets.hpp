// The part of predictions and targets that belongs to one problem, for cost, matching and loss.
#pragma once

#include <algorithm>
#include <cstdint>

#include "operations.hpp"

namespace actdet::ACTDET_ISA {

// A sample under a layer, with logits (queries, class_frames, classes) and boxes (queries, frames, 4). Its `count`
// targets have labels (count, label_frames, labels_each), target_boxes (count, frames, 4) and visible (count, frames),
// which is null if all are visible.
template <typename Real>
struct Sample {
    const Real* logits;
    const Real* boxes;
    const int64_t* labels;
    const Real* target_boxes;
    const bool* visible;
    int64_t queries, class_frames, classes, frames, labels_each, label_frames, count;
    bool each_frame;

    Sample(const Predictions& p, int64_t problem) {
        const int64_t sample = problem % p.batch;
        queries = p.queries;
        each_frame = p.each_frame != 0;
        class_frames = p.class_frames();
        classes = p.classes;
        frames = p.frames;
        labels_each = p.labels_each;
        label_frames = p.label_frames;
        count = count_of(p, sample);

        logits = reinterpret_cast<const Real*>(p.logits) + problem * queries * class_frames * classes;
        boxes = reinterpret_cast<const Real*>(p.boxes) + problem * queries * frames * 4;
        labels = reinterpret_cast<const int64_t*>(p.labels) + sample * p.size * label_frames * labels_each;
        target_boxes = reinterpret_cast<const Real*>(p.target_boxes) + sample * p.size * frames * 4;
        visible = p.visible == 0 ? nullptr : reinterpret_cast<const bool*>(p.visible) + sample * p.size * frames;
    }

    static int64_t count_of(const Predictions& p, int64_t sample) {
        return std::clamp<int64_t>(reinterpret_cast<const int64_t*>(p.counts)[sample], 0, p.size);
    }

    // Returns the target of a query to which `target` belongs, in a frame of its logits: -1 if that is not visible there.
    int64_t in_frame(int64_t target, int64_t frame) const {
        return target < 0 || !each_frame || visible[target * frames + frame] ? target : -1;
    }

    // Returns the labels (labels_each) of a target, in a frame of its logits if they are not the same in all frames.
    const int64_t* labels_of(int64_t target, int64_t frame) const {
        return labels + (target * label_frames + (label_frames > 1 ? frame : 0)) * labels_each;
    }

    // Returns whether label k of a target is padding, because the target has fewer labels.
    static bool absent(const int64_t* of_target, int64_t k) { return k > 0 && of_target[k] == -1; }

    // Returns whether there is a logit for a label.
    bool known(int64_t label) const { return label >= 0 && label < classes; }
};

}  // namespace actdet::ACTDET_ISA
