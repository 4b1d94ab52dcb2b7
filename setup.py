"""What is built of a checkout, and where the package of the kernels comes from. All else is in pyproject.toml.

`actdet-kernels` is a distribution of its own, in `kernels`, and on no index:

- `pip install .` takes it from there by its path: two distributions, one copy of each. So a wheel that is built here
  is for this machine.
- `pip install --editable .` links both packages to the checkout, so that nobody tests a copy of the kernels. A path
  among the requirements would install that copy, even over `pip install --editable ./kernels`. The C++ kernels are
  compiled into the checkout.
- a source archive holds no kernels, and lies where it is deleted once it is built: what is built of it asks for the
  kernels by their version. Hand out the archives of both, for `pip install --find-links FOLDER actdet`.

This file is also the build backend, which is setuptools but for one hook, `prepare_metadata_for_build_editable`.
Without it pip reads the requirements off the editable wheel itself, whose command is known here.
"""

import runpy
import sys
import tomllib
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent
KERNELS = ROOT / "kernels"

packages = find_packages(include=["actdet", "actdet.*"])
package_dir = {"actdet": "actdet"}
extensions = []
requirements = [
    "torch>=2.7",
    "torchvision>=0.22",
    "triton>=3.3; platform_system == 'Linux'",
    "numpy>=1.26",
    "scipy>=1.11",
    # 19 has no metadata_errors, and times that are no Fractions.
    "av>=14.1,<19",
    "faster-coco-eval>=1.6",
    "jinja2>=3.1",
    "matplotlib>=3.8",
    "pillow>=10",
    "safetensors>=0.5",
    "scikit-learn>=1.4",
    "torchmetrics>=1.6",
    "tqdm>=4.66",
    "tyro>=0.9",
]

if not KERNELS.is_dir():
    # Both packages have one version.
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    requirements.append(f"actdet-kernels=={version}")
elif "editable_wheel" in sys.argv:
    packages += ["actdet_kernels", "actdet_kernels.cpu", "actdet_kernels.triton"]
    package_dir["actdet_kernels"] = "kernels/actdet_kernels"
    extensions.append(runpy.run_path(str(KERNELS / "setup.py"))["native"]("kernels/"))
else:
    requirements.append(f"actdet-kernels @ {KERNELS.as_uri()}")

# The name it has where setuptools runs it; imported as the backend it builds nothing.
if __name__ == "__main__":
    setup(
        packages=packages,
        package_dir=package_dir,
        ext_modules=extensions,
        package_data={"actdet": ["py.typed", "evaluation/*.html.jinja"]},
        install_requires=requirements,
    )
