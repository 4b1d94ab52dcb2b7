// The Python module `native`. It takes numbers and pointers, which its callers have checked, and knows nothing of
// PyTorch. It uses the stable ABI, so that one build serves every Python from 3.11 on.
//
// From top to bottom: the choice of an instruction set, the reading of arguments, the threads, a function for each
// operation, and the module's definition.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "operations.hpp"
#include "threads.hpp"

namespace {

using actdet::Counter;

// Starting one more thread pays if it has as many numbers as this to work on.
constexpr int64_t kWorthThread = 1 << 14;

const char* isa_name = "baseline";

// Returns the operations for the widest vector instructions that this processor has, and sets isa_name.
const actdet::Operations& choose() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        isa_name = "avx512";
        return actdet::kAvx512;
    }
    if (__builtin_cpu_supports("avx2")) {
        isa_name = "avx2";
        return actdet::kAvx2;
    }
#endif
    return actdet::kBaseline;
}

const actdet::Operations* operations = nullptr;

// Reads the arguments of a call from Python, one after the other. Errors are left to `finish`.
class Reader {
  public:
    Reader(PyObject* const* arguments, Py_ssize_t count) : arguments_(arguments), count_(count) {}

    int64_t integer() {
        PyObject* argument = next();
        return argument == nullptr ? 0 : PyLong_AsLongLong(argument);
    }

    uintptr_t pointer() { return static_cast<uintptr_t>(integer()); }

    double real() {
        PyObject* argument = next();
        return argument == nullptr ? 0 : PyFloat_AsDouble(argument);
    }

    // Returns whether there were as many arguments as were read, all of the right type. Otherwise an exception is set.
    bool finish() const {
        if (PyErr_Occurred() != nullptr) return false;
        if (place_ == count_) return true;
        PyErr_Format(PyExc_TypeError, "got %zd arguments, expected %zd", count_, place_);
        return false;
    }

  private:
    PyObject* next() {
        const Py_ssize_t place = place_++;
        return place < count_ && PyErr_Occurred() == nullptr ? arguments_[place] : nullptr;
    }

    PyObject* const* arguments_;
    const Py_ssize_t count_;
    Py_ssize_t place_ = 0;
};

actdet::Predictions read_predictions(Reader& read) {
    actdet::Predictions p;
    p.logits = read.pointer();
    p.boxes = read.pointer();
    p.labels = read.pointer();
    p.target_boxes = read.pointer();
    p.counts = read.pointer();
    p.visible = read.pointer();
    p.layers = read.integer();
    p.batch = read.integer();
    p.queries = read.integer();
    p.classes = read.integer();
    p.size = read.integer();
    p.frames = read.integer();
    p.labels_each = read.integer();
    p.each_frame = read.integer();
    p.label_frames = read.integer();
    return p;
}

actdet::CostOptions read_cost_options(Reader& read) {
    actdet::CostOptions o;
    o.cls = read.real();
    o.l1 = read.real();
    o.giou = read.real();
    o.class_cost = read.integer();
    o.alpha = read.real();
    o.gamma = read.real();
    o.box_term = read.integer();
    return o;
}

actdet::LossOptions read_loss_options(Reader& read) {
    actdet::LossOptions o;
    o.no_object_weight = read.real();
    o.class_loss = read.integer();
    o.alpha = read.real();
    o.gamma = read.real();
    o.box_term = read.integer();
    o.matched = read.pointer();
    o.class_weights = read.pointer();
    return o;
}

// Works on the items in as many threads as pay, and returns whether there was enough memory. `size` is how many numbers
// there are to work on.
template <typename Arguments>
bool run(
    void (*work)(const Arguments&, Counter&), const Arguments& arguments, int64_t threads, int64_t items, int64_t size
) {
    const int64_t worth = std::clamp<int64_t>(size / kWorthThread, 1, std::max<int64_t>(threads, 1));
    return actdet::in_threads(worth, items, [&](Counter& next) { work(arguments, next); });
}

// Returns how many numbers an operation on predictions works on.
int64_t size_of(const actdet::Predictions& p) {
    return p.problems() * p.queries * (p.class_frames() * p.classes + p.size * p.frames * 4);
}

// Computes while other threads of Python run. `compute` returns whether there was enough memory.
template <typename Compute>
PyObject* without_gil(const Compute& compute) {
    bool enough;
    Py_BEGIN_ALLOW_THREADS;
    try {
        enough = compute();
    } catch (const std::bad_alloc&) {
        enough = false;
    }
    Py_END_ALLOW_THREADS;
    if (!enough) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

// assign(is_double, threads, *AssignArguments)
PyObject* assign(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    actdet::AssignArguments a;
    a.cost = read.pointer();
    a.batch = read.integer();
    a.rows = read.integer();
    a.columns = read.integer();
    a.stride_p = read.integer();
    a.stride_n = read.integer();
    a.stride_m = read.integer();
    a.counts = read.pointer();
    a.samples = read.integer();
    a.maximize = read.integer();
    a.row_of_column = read.pointer();
    a.column_of_row = read.pointer();
    a.row_dual = read.pointer();
    a.column_dual = read.pointer();
    a.status = read.pointer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        const auto work = is_double ? operations->assign_double : operations->assign_float;
        return run(work, a, threads, a.batch, a.batch * a.rows * a.columns);
    });
}

// pairwise_cost(is_double, threads, *Predictions, *CostOptions, cost)
PyObject* pairwise_cost(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    actdet::CostArguments a;
    a.predictions = read_predictions(read);
    a.options = read_cost_options(read);
    a.cost = read.pointer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        const auto work = is_double ? operations->cost_double : operations->cost_float;
        return run(work, a, threads, a.predictions.problems(), size_of(a.predictions));
    });
}

// match(is_double, threads, *Predictions, *CostOptions, matched, status)
PyObject* match(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    actdet::MatchArguments a;
    a.predictions = read_predictions(read);
    a.options = read_cost_options(read);
    a.matched = read.pointer();
    a.status = read.pointer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        const auto work = is_double ? operations->match_double : operations->match_float;
        return run(work, a, threads, a.predictions.problems(), size_of(a.predictions));
    });
}

// The results of `set_loss`: total, cls, l1 and giou, (layers) with per_layer and otherwise (1), and divisors
// (2, layers) of the class losses and of the other terms.
struct LossOutputs {
    uintptr_t total, cls, l1, giou, divisors;
    double weights[3];
    bool per_layer;
};

// Returns the number of targets of all samples, at least 1.
double target_count(const actdet::Predictions& p) {
    int64_t targets = 0;
    for (int64_t i = 0; i < p.batch; ++i) {
        targets += std::clamp<int64_t>(reinterpret_cast<const int64_t*>(p.counts)[i], 0, p.size);
    }
    return static_cast<double>(std::max<int64_t>(targets, 1));
}

// Adds up the sums of the problems in their order, divides them, and writes the losses.
template <typename Real>
void add_up(const actdet::LossArguments& a, const std::vector<double>& sums, const LossOutputs& to) {
    const actdet::Predictions& p = a.predictions;
    const int64_t layers = p.layers;
    const bool cross_entropy = a.options.class_loss == 0;
    const double targets = target_count(p);

    Real* const outputs[4] = {
        reinterpret_cast<Real*>(to.total),
        reinterpret_cast<Real*>(to.cls),
        reinterpret_cast<Real*>(to.l1),
        reinterpret_cast<Real*>(to.giou),
    };
    Real* divisors = reinterpret_cast<Real*>(to.divisors);

    double all[3] = {0, 0, 0};
    const auto write = [&](int64_t place, const double* terms) {
        outputs[0][place] =
            static_cast<Real>(to.weights[0] * terms[0] + to.weights[1] * terms[1] + to.weights[2] * terms[2]);
        for (int k = 0; k < 3; ++k) outputs[k + 1][place] = static_cast<Real>(terms[k]);
    };

    for (int64_t layer = 0; layer < layers; ++layer) {
        double sum[4] = {0, 0, 0, 0};
        for (int64_t i = 0; i < p.batch; ++i) {
            for (int k = 0; k < 4; ++k) sum[k] += sums[(layer * p.batch + i) * 4 + k];
        }

        // A cross entropy is divided by the sum of its weights, which may be 0.
        const double divisor = !cross_entropy ? targets * p.class_frames() : sum[1] > 0 ? sum[1] : 1;
        divisors[layer] = static_cast<Real>(divisor);
        divisors[layers + layer] = static_cast<Real>(targets);

        const double terms[3] = {sum[0] / divisor, sum[2] / targets, sum[3] / targets};
        if (to.per_layer) write(layer, terms);
        for (int k = 0; k < 3; ++k) all[k] += terms[k];
    }
    if (!to.per_layer) write(0, all);
}

// set_loss(is_double, threads, *Predictions, *LossOptions, *weights, per_layer, total, cls, l1, giou, divisors)
PyObject* set_loss(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    actdet::LossArguments a;
    a.predictions = read_predictions(read);
    a.options = read_loss_options(read);

    LossOutputs to;
    for (double& weight : to.weights) weight = read.real();
    to.per_layer = read.integer() != 0;
    to.total = read.pointer();
    to.cls = read.pointer();
    to.l1 = read.pointer();
    to.giou = read.pointer();
    to.divisors = read.pointer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        std::vector<double> sums(a.predictions.problems() * 4);
        a.sums = reinterpret_cast<uintptr_t>(sums.data());
        const auto work = is_double ? operations->loss_double : operations->loss_float;
        const bool enough = run(work, a, threads, a.predictions.problems(), size_of(a.predictions));
        is_double ? add_up<double>(a, sums, to) : add_up<float>(a, sums, to);
        return enough;
    });
}

// Fills the factors that multiply the derivatives of each layer's terms: their cotangents, which may be null, divided
// by their divisors.
template <typename Real>
void fill_factors(
    const uintptr_t* cotangents, const double* weights, bool per_layer, uintptr_t divisors, int64_t layers,
    double* factors
) {
    const Real* d_total = reinterpret_cast<const Real*>(cotangents[0]);
    const Real* divisor = reinterpret_cast<const Real*>(divisors);
    for (int64_t layer = 0; layer < layers; ++layer) {
        const int64_t place = per_layer ? layer : 0;
        for (int k = 0; k < 3; ++k) {
            const Real* d_term = reinterpret_cast<const Real*>(cotangents[k + 1]);
            double value = 0;
            if (d_total != nullptr) value += weights[k] * d_total[place];
            if (d_term != nullptr) value += d_term[place];
            factors[layer * 3 + k] = value / divisor[(k == 0 ? 0 : layers) + layer];
        }
    }
}

// set_loss_gradient(is_double, threads, *Predictions, *LossOptions, *weights, per_layer, divisors, d_total, d_cls,
// d_l1, d_giou, d_logits, d_boxes)
PyObject* set_loss_gradient(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    actdet::GradientArguments a;
    a.predictions = read_predictions(read);
    a.options = read_loss_options(read);

    double weights[3];
    for (double& weight : weights) weight = read.real();
    const bool per_layer = read.integer() != 0;
    const uintptr_t divisors = read.pointer();
    uintptr_t cotangents[4];
    for (uintptr_t& cotangent : cotangents) cotangent = read.pointer();
    a.d_logits = read.pointer();
    a.d_boxes = read.pointer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        const int64_t layers = a.predictions.layers;
        std::vector<double> factors(layers * 3);
        a.factors = reinterpret_cast<uintptr_t>(factors.data());
        const auto fill = is_double ? fill_factors<double> : fill_factors<float>;
        fill(cotangents, weights, per_layer, divisors, layers, factors.data());
        const auto work = is_double ? operations->gradient_double : operations->gradient_float;
        return run(work, a, threads, a.predictions.problems(), size_of(a.predictions));
    });
}

// gather_clips(type, threads, *ClipArguments), where type is 0 for float, 1 for bfloat16 and 2 for double.
PyObject* gather_clips(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const int64_t type = read.integer();
    const int64_t threads = read.integer();
    actdet::ClipArguments a;
    a.pool = read.pointer();
    a.indices = read.pointer();
    a.crops = read.pointer();
    a.color = read.pointer();
    a.frame_means = read.pointer();
    a.out = read.pointer();
    a.frames = read.integer();
    a.clips = read.integer();
    a.length = read.integer();
    a.height = read.integer();
    a.width = read.integer();
    for (double& value : a.mean) value = read.real();
    for (double& value : a.std_dev) value = read.real();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        const auto work = type == 0   ? operations->clips_float
                          : type == 1 ? operations->clips_bfloat16
                                      : operations->clips_double;
        const int64_t frames = a.clips * a.length;
        return run(work, a, threads, frames, frames * a.height * a.width * 3);
    });
}

// frame_levels(threads, *LevelArguments)
PyObject* frame_levels(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const int64_t threads = read.integer();
    actdet::LevelArguments a;
    a.pool = read.pointer();
    a.frame_means = read.pointer();
    a.frames = read.integer();
    a.size = read.integer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        return run(operations->frame_means, a, threads, a.frames, a.frames * a.size / 16);
    });
}

actdet::DeformableArguments read_deformable(Reader& read) {
    actdet::DeformableArguments a;
    a.values = read.pointer();
    a.points = read.pointer();
    a.weights = read.pointer();
    a.levels = read.pointer();
    a.mask = read.pointer();
    a.out = read.pointer();
    a.d_out = read.pointer();
    a.d_values = read.pointer();
    a.d_points = read.pointer();
    a.d_weights = read.pointer();
    a.samples = read.integer();
    a.pixels = read.integer();
    a.heads = read.integer();
    a.features = read.integer();
    a.queries = read.integer();
    a.levels_each = read.integer();
    a.points_each = read.integer();
    return a;
}

// Returns how many numbers of all heads are read for all points.
int64_t size_of(const actdet::DeformableArguments& a) {
    return a.items() * (a.queries * a.levels_each * a.points_each * 4 + a.pixels) * a.features;
}

using Attend = void (*)(const actdet::DeformableArguments&, Counter&);

// Reads is_double, threads and *DeformableArguments, and runs one of the two.
PyObject* attend(PyObject* const* given, Py_ssize_t count, Attend in_float, Attend in_double) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    const actdet::DeformableArguments a = read_deformable(read);
    if (!read.finish()) return nullptr;

    return without_gil([&] { return run(is_double ? in_double : in_float, a, threads, a.items(), size_of(a)); });
}

// deformable_attention(is_double, threads, *DeformableArguments)
PyObject* deformable_attention(PyObject*, PyObject* const* given, Py_ssize_t count) {
    return attend(given, count, operations->attend_float, operations->attend_double);
}

// deformable_attention_gradient(is_double, threads, *DeformableArguments)
PyObject* deformable_attention_gradient(PyObject*, PyObject* const* given, Py_ssize_t count) {
    return attend(given, count, operations->attend_gradient_float, operations->attend_gradient_double);
}

actdet::CenterArguments read_centers(Reader& read) {
    actdet::CenterArguments a{};
    a.centers = read.pointer();
    a.movement = read.pointer();
    a.sizes = read.pointer();
    a.classes = read.pointer();
    a.labels = read.pointer();
    a.boxes = read.pointer();
    a.counts = read.pointer();
    a.visible = read.pointer();
    a.samples = read.integer();
    a.channels = read.integer();
    a.height = read.integer();
    a.width = read.integer();
    a.frames = read.integer();
    a.class_count = read.integer();
    a.class_height = read.integer();
    a.class_width = read.integer();
    a.size = read.integer();
    a.key = read.integer();
    a.corrected = read.integer();
    a.movement_area = read.integer();
    a.size_area = read.integer();
    a.moved = read.integer();
    a.stride = read.integer();
    a.alpha = read.real();
    a.beta = read.real();
    return a;
}

// What is known of the actors of all samples: how many count, and 1, or NaN if one of them cannot be.
struct Survey {
    double number = 0;
    double flaw = 1;
};

// Fills the survey. Actors are so few that one thread is enough.
bool survey(const actdet::CenterArguments& given, bool is_double, Survey& to) {
    std::vector<double> numbers(given.samples * 2);
    actdet::CenterArguments a = given;
    a.survey = reinterpret_cast<uintptr_t>(numbers.data());
    if (!run(is_double ? operations->survey_double : operations->survey_float, a, 1, a.samples, 0)) return false;

    for (int64_t i = 0; i < a.samples; ++i) {
        to.number += numbers[i * 2];
        to.flaw *= numbers[i * 2 + 1];
    }
    return true;
}

// Adds up the sums of the items in their order, divides them, and writes the six results of `center_loss`.
template <typename Real>
void write_center_losses(
    const actdet::CenterArguments& a, const Survey& known, const std::vector<double>& sums, const double* weights,
    const uintptr_t* outputs
) {
    double sum[actdet::kCenterSums] = {};
    for (int64_t i = 0; i < a.items(); ++i) {
        for (int64_t k = 0; k < actdet::kCenterSums; ++k) sum[k] += sums[i * actdet::kCenterSums + k];
    }

    const double number = std::max(known.number, 1.0);
    const double by_movement = sum[4] > 0 ? sum[4] : 1;
    const double by_sizes = sum[5] > 0 ? sum[5] : 1;
    const double divisors[4] = {number, number, by_movement, by_sizes};

    double total = 0;
    for (int k = 0; k < 4; ++k) {
        const double term = sum[k] / divisors[k] * known.flaw;
        total += weights[k] * term;
        *reinterpret_cast<Real*>(outputs[k + 1]) = static_cast<Real>(term);
    }
    *reinterpret_cast<Real*>(outputs[0]) = static_cast<Real>(total);
    for (int k = 0; k < 3; ++k) reinterpret_cast<Real*>(outputs[5])[k] = static_cast<Real>(divisors[k + 1]);
}

// center_loss(is_double, threads, *CenterArguments up to beta, *weights, total, classes, centers, movement, sizes,
// divisors)
PyObject* center_loss(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    actdet::CenterArguments a = read_centers(read);
    double weights[4];
    for (double& weight : weights) weight = read.real();
    uintptr_t outputs[6];
    for (uintptr_t& output : outputs) output = read.pointer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        Survey known;
        if (!survey(a, is_double, known)) return false;

        std::vector<double> sums(a.items() * actdet::kCenterSums);
        a.sums = reinterpret_cast<uintptr_t>(sums.data());
        const auto work = is_double ? operations->centers_double : operations->centers_float;
        const bool enough = run(work, a, threads, a.items(), a.samples * a.channels * a.pixels());
        const auto write = is_double ? write_center_losses<double> : write_center_losses<float>;
        write(a, known, sums, weights, outputs);
        return enough;
    });
}

// Fills the factors that multiply the derivatives of the four sums: their cotangents, which may be null, divided by
// their divisors. They are 0 if there is no cotangent, even if an actor cannot be.
template <typename Real>
void fill_center_factors(
    const uintptr_t* cotangents, const double* weights, uintptr_t divisors, double flaw, double* factors
) {
    const Real* d_total = reinterpret_cast<const Real*>(cotangents[0]);
    const Real* divisor = reinterpret_cast<const Real*>(divisors);
    for (int k = 0; k < 4; ++k) {
        const Real* d_term = reinterpret_cast<const Real*>(cotangents[k + 1]);
        factors[k] = 0;
        if (d_total != nullptr) factors[k] += weights[k] * *d_total;
        if (d_term != nullptr) factors[k] += *d_term;
        if (d_total != nullptr || d_term != nullptr) factors[k] *= flaw / divisor[std::max(k - 1, 0)];
    }
}

// center_loss_gradient(is_double, threads, *CenterArguments up to beta, *weights, divisors, d_total, d_classes,
// d_centers, d_movement, d_sizes, and the gradients of centers, movement, sizes and classes)
PyObject* center_loss_gradient(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    actdet::CenterArguments a = read_centers(read);
    double weights[4];
    for (double& weight : weights) weight = read.real();
    const uintptr_t divisors = read.pointer();
    uintptr_t cotangents[5];
    for (uintptr_t& cotangent : cotangents) cotangent = read.pointer();
    a.d_centers = read.pointer();
    a.d_movement = read.pointer();
    a.d_sizes = read.pointer();
    a.d_classes = read.pointer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        Survey known;
        if (!survey(a, is_double, known)) return false;

        double factors[4];
        a.factors = reinterpret_cast<uintptr_t>(factors);
        const auto fill = is_double ? fill_center_factors<double> : fill_center_factors<float>;
        fill(cotangents, weights, divisors, known.flaw, factors);
        const auto work = is_double ? operations->centers_gradient_double : operations->centers_gradient_float;
        return run(work, a, threads, a.items(), a.samples * (a.channels + a.frames) * a.pixels());
    });
}

actdet::Map read_map(Reader& read) {
    actdet::Map m;
    m.data = read.pointer();
    m.stride_b = read.integer();
    m.stride_c = read.integer();
    m.stride_p = read.integer();
    return m;
}

// center_peaks(is_double, threads, *PeakArguments)
PyObject* center_peaks(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    actdet::PeakArguments a;
    a.centers = read_map(read);
    a.movement = read_map(read);
    a.sizes = read_map(read);
    a.classes = read_map(read);
    a.samples = read.integer();
    a.channels = read.integer();
    a.height = read.integer();
    a.width = read.integer();
    a.frames = read.integer();
    a.count = read.integer();
    a.rows = read.integer();
    a.columns = read.integer();
    a.peaks = read.integer();
    a.moved = read.integer();
    a.pixels = read.pointer();
    a.channel_numbers = read.pointer();
    a.scores = read.pointer();
    a.boxes = read.pointer();
    a.logits = read.pointer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        const auto work = is_double ? operations->peaks_double : operations->peaks_float;
        return run(work, a, threads, a.samples, a.samples * a.channels * a.height * a.width);
    });
}

// suppress_overlaps(is_double, threads, *SuppressionArguments)
PyObject* suppress_overlaps(PyObject*, PyObject* const* given, Py_ssize_t count) {
    Reader read(given, count);
    const bool is_double = read.integer() != 0;
    const int64_t threads = read.integer();
    actdet::SuppressionArguments a;
    a.boxes = read.pointer();
    a.scores = read.pointer();
    a.samples = read.integer();
    a.rows = read.integer();
    a.frames = read.integer();
    a.classes = read.integer();
    a.iou_threshold = read.real();
    a.score_threshold = read.real();
    a.kept = read.pointer();
    if (!read.finish()) return nullptr;

    return without_gil([&] {
        const auto work = is_double ? operations->suppress_double : operations->suppress_float;
        const int64_t items = a.samples * a.classes;
        return run(work, a, threads, items, items * a.rows * a.frames);
    });
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

PyMethodDef method(const char* name, Fast function) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, nullptr};
}

PyMethodDef methods[] = {
    method("assign", assign),
    method("pairwise_cost", pairwise_cost),
    method("match", match),
    method("set_loss", set_loss),
    method("set_loss_gradient", set_loss_gradient),
    method("gather_clips", gather_clips),
    method("frame_levels", frame_levels),
    method("deformable_attention", deformable_attention),
    method("deformable_attention_gradient", deformable_attention_gradient),
    method("center_loss", center_loss),
    method("center_loss_gradient", center_loss_gradient),
    method("center_peaks", center_peaks),
    method("suppress_overlaps", suppress_overlaps),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_native() {
    operations = &choose();
    PyObject* module = PyModule_Create(&definition);
    if (module != nullptr && PyModule_AddStringConstant(module, "isa", isa_name) < 0) {
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
