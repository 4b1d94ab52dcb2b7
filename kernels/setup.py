"""The C++ kernels, compiled where there is a compiler. All else is in pyproject.toml.

Without one the installation succeeds, and the operations run in PyTorch and SciPy; `actdet_kernels.explain_backend`
says so. One build serves every Python from 3.11 on, and every PyTorch, of which it knows nothing.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = "actdet_kernels/cpu/src"

# No operation looks at the sign of a zero, at floating-point exceptions or at errno. To reorder sums is allowed where a
# loop says so, and nowhere else; to fuse multiplications with additions is not, so that near ties fall the same way.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fopenmp-simd",
    "-fvisibility=hidden",
]


def native(kernels: str = "") -> Extension:
    """The extension, for a setup.py from which the folder of this one is at the relative path `kernels`."""
    folder = f"{kernels}{SOURCES}"
    here = Path(__file__).parent / SOURCES
    return Extension(
        "actdet_kernels.cpu.native",
        sources=[f"{folder}/{source.name}" for source in sorted(here.glob("*.cpp"))],
        depends=[f"{folder}/{source.name}" for source in sorted([*here.glob("*.hpp"), *here.glob("*.inc")])],
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
        language="c++",
        py_limited_api=True,
        optional=True,
    )


WHEEL = {"bdist_wheel": {"py_limited_api": "cp311"}}

# The name it has where setuptools runs it; the checkout's setup.py takes the extension from here.
if __name__ == "__main__":
    setup(ext_modules=[native()], options=WHEEL)
