// The operations and their arguments, which module.cpp fills and the code of each instruction set reads.
//
// Tensors are contiguous unless they have strides. Pointers are numbers, as in Python, and 0 if there is no tensor.
// `real` is float or double, as the operation's name says. A problem is a matrix of costs, or a sample under a layer.
#pragma once

#include <cstdint>

namespace actdet {

class Counter;

// Reads cost (batch, rows, columns) of real, with strides in elements, and counts (samples) int64 or none, of which
// problem p has that of p % samples. Writes row_of_column (batch, columns) int64, status (batch) int32 or none, and
// column_of_row (batch, rows) int64, row_dual (batch, rows) and column_dual (batch, columns) of real, or none of these
// three.
struct AssignArguments {
    uintptr_t cost;
    int64_t batch, rows, columns;
    int64_t stride_p, stride_n, stride_m;
    uintptr_t counts;
    int64_t samples, maximize;
    uintptr_t row_of_column, column_of_row, row_dual, column_dual, status;
};

// Predictions and targets: logits (problems, queries, class_frames, classes) and boxes (problems, queries, frames, 4) of
// real, labels (batch, size, label_frames, labels_each) int64, target_boxes (batch, size, frames, 4) of real, counts
// (batch) int64, and visible (batch, size, frames) bool or none. With each_frame, class_frames is frames, label_frames is
// frames or 1, and there is visible. Otherwise both are 1.
struct Predictions {
    uintptr_t logits, boxes, labels, target_boxes, counts, visible;
    int64_t layers, batch, queries, classes, size, frames, labels_each, each_frame, label_frames;

    int64_t class_frames() const { return each_frame ? frames : 1; }

    int64_t problems() const { return layers * batch; }
};

// class_cost is a Kind of classes.hpp, box_term a BoxTerm of boxes.hpp.
struct CostOptions {
    double cls, l1, giou;
    int64_t class_cost;
    double alpha, gamma;
    int64_t box_term;
};

// Writes cost (problems, size, queries) of real.
struct CostArguments {
    Predictions predictions;
    CostOptions options;
    uintptr_t cost;
};

// Writes matched (problems, size) int64 and status (problems) int32.
struct MatchArguments {
    Predictions predictions;
    CostOptions options;
    uintptr_t matched, status;
};

// class_loss is a Kind, kSoftmax for the cross entropy, and box_term a BoxTerm. matched is (problems, size) int64, and
// class_weights (classes) of real, or none.
struct LossOptions {
    double no_object_weight;
    int64_t class_loss;
    double alpha, gamma;
    int64_t box_term;
    uintptr_t matched, class_weights;
};

// Writes sums (problems, 4) double: weighted class losses, their weights, L1 and box terms.
struct LossArguments {
    Predictions predictions;
    LossOptions options;
    uintptr_t sums;
};

// Reads factors (layers, 3) double, which multiply the derivatives of class losses, L1 and box terms. Writes d_logits
// and d_boxes of real, in the shapes of logits and boxes.
struct GradientArguments {
    Predictions predictions;
    LossOptions options;
    uintptr_t factors, d_logits, d_boxes;
};

// Reads pool (frames, height, width, 3) uint8, indices (clips, length) int64, and crops (clips, 4), color (clips, 3)
// and frame_means (frames) float, or none. Writes out (clips, length, height, width, 3) of the operation's type.
struct ClipArguments {
    uintptr_t pool, indices, crops, color, frame_means, out;
    int64_t frames, clips, length, height, width;
    double mean[3], std_dev[3];
};

// Reads pool, frames of `size` uint8 each. Writes frame_means (frames) float.
struct LevelArguments {
    uintptr_t pool, frame_means;
    int64_t frames, size;
};

// Reads values (samples, pixels, heads, features), points (samples, queries, heads, levels_each, points_each, 2) and
// weights (samples, queries, heads, levels_each, points_each) of real, levels (levels_each, 2) int64 heights and widths,
// and mask (samples, pixels) bool or none. Writes out (samples, queries, heads, features) of real, or reads d_out in its
// shape and writes d_values, d_points and d_weights.
struct DeformableArguments {
    uintptr_t values, points, weights, levels, mask;
    uintptr_t out, d_out, d_values, d_points, d_weights;
    int64_t samples, pixels, heads, features, queries, levels_each, points_each;

    int64_t items() const { return samples * heads; }
};

// Maps and targets of `center_loss`: centers (samples, channels, height, width), movement (samples, frames, 2, height,
// width), sizes (samples, frames, 4, height, width) and classes (samples, class_count, class_height, class_width) or
// none, of real, labels (samples, size) int64, boxes (samples, size, frames, 4) of real, counts (samples) int64, and visible
// (samples, size, frames) bool. The areas are each an Area of actors.hpp.
//
// Reads factors (4) double, which multiply the derivatives of the sums of classes, centers, movement and sizes. Writes
// survey (samples, 2) double, sums (items, kCenterSums) double, or the gradients in the shapes of the maps, of real.
struct CenterArguments {
    uintptr_t centers, movement, sizes, classes, labels, boxes, counts, visible;
    int64_t samples, channels, height, width, frames, class_count, class_height, class_width, size;
    int64_t key, corrected, movement_area, size_area, moved, stride;
    double alpha, beta;
    uintptr_t survey, sums, factors, d_centers, d_movement, d_sizes, d_classes;

    int64_t pixels() const { return height * width; }

    // The rows of the grid that an item of `centers` has, of all channels one after the other. What an item is depends
    // on no number of threads, so that sums do not, either.
    int64_t rows_each() const { return width < kPixelsEach ? kPixelsEach / width : 1; }

    int64_t row_items() const { return (channels * height + rows_each() - 1) / rows_each(); }

    // The items of a sample are its frames, the rows of its centers, and its classes.
    int64_t items_each() const { return frames + row_items() + (classes != 0 ? 1 : 0); }

    int64_t items() const { return samples * items_each(); }

    static constexpr int64_t kPixelsEach = 1 << 13;
};

// The sums of an item: of the four terms, and of the weights of movement and sizes.
constexpr int64_t kCenterSums = 6;

// A map (samples, channels, pixels) of real, with strides in elements.
struct Map {
    uintptr_t data;
    int64_t stride_b, stride_c, stride_p;
};

// Reads centers with `channels` channels and movement with 2 and sizes with 4 for each frame, all of height times width
// pixels, and classes with `count` channels of rows times columns pixels, or none. Writes pixels and channel_numbers
// (samples, peaks) int64, and scores (samples, peaks), boxes (samples, peaks, frames, 4) and logits
// (samples, peaks, count) of real.
struct PeakArguments {
    Map centers, movement, sizes, classes;
    int64_t samples, channels, height, width, frames, count, rows, columns, peaks, moved;
    uintptr_t pixels, channel_numbers, scores, boxes, logits;
};

// Reads boxes (samples, rows, frames, 4) x1 y1 x2 y2 and scores (samples, rows, classes) of real, and writes kept
// (samples, rows, classes) int8, 1 or 0.
struct SuppressionArguments {
    uintptr_t boxes, scores;
    int64_t samples, rows, frames, classes;
    double iou_threshold, score_threshold;
    uintptr_t kept;
};

// The table of the operations of an instruction set. Each works on the problems, frames, heads or items that `next`
// hands out, until there are no more.
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
    void (*attend_float)(const DeformableArguments&, Counter& next);
    void (*attend_double)(const DeformableArguments&, Counter& next);
    void (*attend_gradient_float)(const DeformableArguments&, Counter& next);
    void (*attend_gradient_double)(const DeformableArguments&, Counter& next);
    void (*survey_float)(const CenterArguments&, Counter& next);
    void (*survey_double)(const CenterArguments&, Counter& next);
    void (*centers_float)(const CenterArguments&, Counter& next);
    void (*centers_double)(const CenterArguments&, Counter& next);
    void (*centers_gradient_float)(const CenterArguments&, Counter& next);
    void (*centers_gradient_double)(const CenterArguments&, Counter& next);
    void (*peaks_float)(const PeakArguments&, Counter& next);
    void (*peaks_double)(const PeakArguments&, Counter& next);
    void (*suppress_float)(const SuppressionArguments&, Counter& next);
    void (*suppress_double)(const SuppressionArguments&, Counter& next);
};

extern const Operations kBaseline;
#if defined(__x86_64__) && defined(__GNUC__)
extern const Operations kAvx2;
extern const Operations kAvx512;
#endif

}  // namespace actdet
