"""Ctrl-C and SIGTERM at any moment of a command: one screen, the right exit code, no trace.

    uv run python jobs/benchmarks/interruption.py --delays 20 --until 4
    uv run python jobs/benchmarks/interruption.py --delays 5 --until 4 --command search

Starts `raprune prune` (or `search`) on the digits once for each delay and signal, and sends the signal after the delay.
Earlier than the first delay the interpreter itself starts, and nobody hears a signal.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time

from raprune.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

COMMANDS = {
    "prune": ["prune", "--model", "digits-net", "--data", "digits", "--budget-flops", "0.3"],
    "search": ["search", "--model", "digits-net", "--data", "digits", "--methods", "l2", "--output", "run"],
    "models": ["models"],
}
CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
FIRST_S = 0.15
LINES = 6
"""Of stderr, at most."""


def interrupt(command: list[str], number: signal.Signals, delay_s: float) -> tuple[bool, str]:
    """True if the command ended as it must, and how it ended; one that was done before the signal ends with 0."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "raprune", *command]
        process = subprocess.Popen(
            words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        time.sleep(delay_s)
        process.send_signal(number)
        sent = time.monotonic()
        try:
            _, told = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            return False, "does not end"
        took_s = time.monotonic() - sent
    lines = told.strip().splitlines()
    is_told = "Traceback" not in told and len(lines) <= LINES and any(line.startswith("Error: ") for line in lines)
    is_right = (process.returncode == CODES[number] and is_told) or (process.returncode == 0 and not told)
    return is_right, f"exit code {process.returncode:4d} after {took_s:4.1f} s: {' / '.join(lines)[:400]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", choices=COMMANDS, default="prune")
    parser.add_argument("--delays", type=int, default=20)
    parser.add_argument("--from", dest="first", type=float, default=FIRST_S)
    parser.add_argument("--until", type=float, default=4.0)
    arguments = parser.parse_args()
    steps = max(1, arguments.delays - 1)
    wrong = 0
    for number in CODES:
        for step in range(arguments.delays):
            delay_s = arguments.first + (arguments.until - arguments.first) * step / steps
            is_right, how = interrupt(COMMANDS[arguments.command], number, delay_s)
            wrong += not is_right
            print(f"{'ok   ' if is_right else 'WRONG'} {number.name:8}{delay_s:5.2f} s  {how}", flush=True)
    print(f"{wrong} of {2 * arguments.delays} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
