"""The command line as a process: `unlearn`, and `python -m cluster`."""

import os
import sys
import warnings

from cluster.cli import main


def program() -> None:
    """Run the command line, and end the process without tearing down what is loaded.

    Arrow's threads can abort a process that ends ("terminate called without an active exception"),
    seen under load after a deletion was whole; its exit code then says that it failed. With Ray in
    the process the ordinary end is kept, since Ray ends its own processes there.
    """
    # What torch warns itself of when it first derives a derivative; nobody here can act on it.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
    try:
        main()
        code: object = 0
    except SystemExit as stop:
        code = stop.code
    if "ray" in sys.modules or not (code is None or isinstance(code, int)):
        sys.exit(code)  # type: ignore[arg-type]
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = 1  # the reader is gone, and what was to be said with it
    os._exit(code or 0)


if __name__ == "__main__":
    program()
