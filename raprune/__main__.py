"""The `raprune` command, and `python -m raprune` where its script is not on the path, as in a job that Ray started."""

from __future__ import annotations

import signal
import sys

from raprune.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, Terminated
from raprune.orchestration.interruption import behind, heard, let_go


def main() -> None:
    """Run the command line; an interruption, from its imports to its end, is one line and an exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # After the command, while the interpreter ends: no stack of whatever was interrupted there.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with heard():
        try:
            from raprune.cli import main as command_line

            command_line()
        except (Exception, KeyboardInterrupt) as error:
            stop = behind(error)
            if stop is None:
                raise
            let_go()
            is_terminated = issubclass(stop, Terminated)
            print("Error:", "Terminated." if is_terminated else "Interrupted.", file=sys.stderr)
            sys.exit(EXIT_TERMINATED if is_terminated else EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
