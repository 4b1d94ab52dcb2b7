"""The script `actdet`, and `python -m actdet`.

Every spawned process imports this module again, so the command line is imported only where it is called.
"""

import sys

from actdet.errors import shortage


def main() -> None:
    try:
        from actdet.cli import main as run
    except KeyboardInterrupt:
        sys.exit("actdet: interrupted")
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        if (problem := shortage(error)) is None:
            raise
        sys.exit(f"actdet: {problem}")
    run()


if __name__ == "__main__":
    main()
