// The Python module `_cpu`: pointers in, which its callers have checked, and nothing of PyTorch.
//
// Of the stable ABI, so that one build serves every Python from 3.11 on.
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <algorithm>
#include <new>

#include "operations.hpp"
#include "threads.hpp"

namespace {

using actdet::Operations;

// Problems of so many entries together that threads pay.
constexpr int64_t kWorthThreads = 1 << 15;

const char* isa_name = "baseline";

const Operations& choose() {
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

const Operations* operations = nullptr;

bool numbers(PyObject* const* arguments, Py_ssize_t count, Py_ssize_t wanted, int64_t* values) {
    if (count != wanted) {
        PyErr_Format(PyExc_TypeError, "%zd arguments, %zd wanted", count, wanted);
        return false;
    }
    for (Py_ssize_t i = 0; i < count; ++i) {
        values[i] = PyLong_AsLongLong(arguments[i]);
        if (values[i] == -1 && PyErr_Occurred() != nullptr) return false;
    }
    return true;
}

PyObject* assign(PyObject*, PyObject* const* given, Py_ssize_t count) {
    int64_t x[17];
    if (!numbers(given, count, 17, x)) return nullptr;
    const bool is_double = x[0] != 0;
    const int64_t threads = x[1];
    const actdet::AssignArguments a = {
        static_cast<uintptr_t>(x[2]), x[3], x[4], x[5], x[6], x[7], x[8], static_cast<uintptr_t>(x[9]), x[10], x[11] != 0,
        static_cast<uintptr_t>(x[12]), static_cast<uintptr_t>(x[13]), static_cast<uintptr_t>(x[14]),
        static_cast<uintptr_t>(x[15]), static_cast<uintptr_t>(x[16]),
    };
    bool failed = false;
    Py_BEGIN_ALLOW_THREADS;
    actdet::Counter next(a.batch);
    const auto solve = is_double ? operations->assign_double : operations->assign_float;
    const bool worth = a.batch * a.rows * a.columns >= kWorthThreads;
    try {
        actdet::in_threads(worth ? std::min(threads, a.batch) : 1, [&] { solve(a, next); });
    } catch (const std::bad_alloc&) {
        failed = true;
    }
    Py_END_ALLOW_THREADS;
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"assign", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(assign)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() {
    operations = &choose();
    PyObject* module = PyModule_Create(&definition);
    if (module != nullptr && PyModule_AddStringConstant(module, "isa", isa_name) < 0) {
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
