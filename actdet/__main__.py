"""The command `actdet`, also as `python -m actdet`.

Every spawned process imports this module again, so the command line is imported only when it is called.
"""

import os
import sys
from collections.abc import MutableMapping

from actdet.errors import shortage


def main() -> None:
    """Run the command line. What cannot even be loaded is one line for the user, too."""
    spin_briefly(os.environ)
    try:
        from actdet.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit("actdet: interrupted")
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        problem = shortage(error)
        if problem is None:
            raise
        sys.exit(f"actdet: {problem}")
    run()


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Let threads that wait for each other go to sleep soon, unless the user has set how they wait.

    On a CPU PyTorch uses GNU's OpenMP, whose threads spin for milliseconds at every barrier. Beside another busy
    process they then hold the very core that they wait for (docs/LOG.md has figures). OpenMP reads the setting when
    PyTorch is loaded.

    Args:
        environment: The environment variables of this process; one of them is set.
    """
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        environment["GOMP_SPINCOUNT"] = "1000"


if __name__ == "__main__":
    main()
