"""The script `actdet`, and `python -m actdet`.

Every spawned process imports this module again, so the command line is imported only where it is called.
"""

import os
import sys
from collections.abc import MutableMapping

from actdet.errors import shortage


def main() -> None:
    spin_briefly(os.environ)
    try:
        from actdet.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit("actdet: interrupted")
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        if (problem := shortage(error)) is None:
            raise
        sys.exit(f"actdet: {problem}")
    run()


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Let threads that wait for each other sleep soon, unless somebody set how they wait.

    GNU's OpenMP, which PyTorch uses on a CPU, has them spin for milliseconds at every barrier: beside another busy
    process they hold the very core that they wait for (docs/LOG.md has figures). It reads this when PyTorch is loaded.
    """
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        environment["GOMP_SPINCOUNT"] = "1000"


if __name__ == "__main__":
    main()
