"""The script `actdet`, and `python -m actdet`.

Every spawned process imports this module again, so the command line is imported only where it is called.
"""

import sys


def main() -> None:
    try:
        from actdet.cli import main as run
    except KeyboardInterrupt:
        sys.exit("actdet: interrupted")
    run()


if __name__ == "__main__":
    main()
