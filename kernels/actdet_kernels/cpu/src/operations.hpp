// What each instruction set is compiled for, and how Python's module finds it.
//
// Tensors are contiguous unless they have strides, and their pointers numbers, as Python has them; 0 for none. `real`
// is float or double, as the operation's name says.
#pragma once

#include <cstdint>

namespace actdet {

class Counter;

// Problems cost (batch, rows, columns) of real, by strides in elements. counts (samples) int64 or none: problem p has
// that of p % samples. row_of_column (batch, columns) int64; column_of_row (batch, rows) int64 and row_dual and
// column_dual of real, or none of the three; status (batch) int32.
struct AssignArguments {
    uintptr_t cost;
    int64_t batch, rows, columns;
    int64_t stride_p, stride_n, stride_m;
    uintptr_t counts;
    int64_t samples, maximize;
    uintptr_t row_of_column, column_of_row, row_dual, column_dual, status;
};

// logits (problems, queries, classes) and boxes (problems, queries, frames, 4) of real, a problem being a sample under
// a layer; labels (batch, size, labels_each) int64, target_boxes (batch, size, frames, 4) of real, counts (batch)
// int64, visible (batch, size, frames) bool or none.
struct Predictions {
    uintptr_t logits, boxes, labels, target_boxes, counts, visible;
    int64_t layers, batch, queries, classes, size, frames, labels_each;

    int64_t problems() const { return layers * batch; }
};

// class_cost is a Kind, box_term a BoxTerm.
struct CostOptions {
    double cls, l1, giou;
    int64_t class_cost;
    double alpha, gamma;
    int64_t box_term;
};

// cost (problems, size, queries) of real.
struct CostArguments {
    Predictions predictions;
    CostOptions options;
    uintptr_t cost;
};

// matched (problems, size) int64, status (problems) int32.
struct MatchArguments {
    Predictions predictions;
    CostOptions options;
    uintptr_t matched, status;
};

// class_loss is a Kind, kSoftmax for the cross entropy. matched (problems, size) int64; class_weights (classes) of
// real, or none.
struct LossOptions {
    double no_object_weight;
    int64_t class_loss;
    double alpha, gamma;
    int64_t box_term;
    uintptr_t matched, class_weights;
};

// sums (problems, 4) double: weighted class losses, their weights, L1 and box terms.
struct LossArguments {
    Predictions predictions;
    LossOptions options;
    uintptr_t sums;
};

// factors (layers, 3) double: what multiplies the derivatives of class losses, L1 and box terms; d_logits and d_boxes
// of real, in the shapes of logits and boxes.
struct GradientArguments {
    Predictions predictions;
    LossOptions options;
    uintptr_t factors, d_logits, d_boxes;
};

// pool (frames, height, width, 3) uint8; indices (clips, length) int64; crops (clips, 4), color (clips, 3) and
// frame_means (frames) float, or none; out (clips, length, height, width, 3) of the operation's type.
struct ClipArguments {
    uintptr_t pool, indices, crops, color, frame_means, out;
    int64_t frames, clips, length, height, width;
    double mean[3], std_dev[3];
};

// pool: frames of `size` uint8; frame_means (frames) float.
struct LevelArguments {
    uintptr_t pool, frame_means;
    int64_t frames, size;
};

// Each works on the problems, or frames, that `next` hands out, until there are no more.
struct Operations {
    void (*assign_float)(const AssignArguments&, Counter& next);
    void (*assign_double)(const AssignArguments&, Counter& next);
    void (*cost_float)(const CostArguments&, Counter& next);
    void (*cost_double)(const CostArguments&, Counter& next);
    void (*match_float)(const MatchArguments&, Counter& next);
    void (*match_double)(const MatchArguments&, Counter& next);
    void (*loss_float)(const LossArguments&, Counter& next);
    void (*loss_double)(const LossArguments&, Counter& next);
    void (*gradient_float)(const GradientArguments&, Counter& next);
    void (*gradient_double)(const GradientArguments&, Counter& next);
    void (*clips_float)(const ClipArguments&, Counter& next);
    void (*clips_bfloat16)(const ClipArguments&, Counter& next);
    void (*clips_double)(const ClipArguments&, Counter& next);
    void (*frame_means)(const LevelArguments&, Counter& next);
};

extern const Operations kBaseline;
#if defined(__x86_64__) && defined(__GNUC__)
extern const Operations kAvx2;
extern const Operations kAvx512;
#endif

}  // namespace actdet
