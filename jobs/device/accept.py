"""The acceptance run on a GPU: `python jobs/device/accept.py --compare FILE --deadline SECONDS --out FOLDER`.

Before, on a CPU, `--reference FILE` writes the scores that a GPU has to come to, and `--dry` runs all sections in
small. Sections run in the order of their worth. One for which the time does not suffice is skipped as a whole, and one
that fails is recorded with its traceback; the others run. Results are written as JSON after each line, and printed as a
table at the end. The exit code is 0 if every section that ran passed. `README.md` beside this file says more.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from acceptance.bench import Bench
from acceptance.machine import describe
from acceptance.results import Results, SectionState
from acceptance.runner import Section, run_sections
from acceptance.sections import METHODS, SECTIONS
from acceptance.sizes import DRY, REAL
from acceptance.tables import as_text

NAMES = [section.name for section in SECTIONS]


def main() -> int:
    """Run the sections that the flags ask for; return the exit code."""
    began = time.monotonic()
    options = parsed(sys.argv[1:])
    options.out.mkdir(parents=True, exist_ok=True)
    if options.dry and options.device == "cpu":
        # Threads cost more than they gain at these sizes; processes that sections start read the variable.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="raprune-acceptance-") as work:
        # Graphs that an earlier version traced must not decide anything here.
        os.environ.setdefault("RAPRUNE_CACHE", str(Path(work) / "cache"))
        bench = bench_of(options, Path(work), began)
        rest = run_sections(bench, wanted(options, bench.results))
        if not rest:
            return finish(bench, options)
    # CUDA fails for the rest of a process after some errors. Buffered output would be lost.
    sys.stdout.flush()
    return os.execv(sys.executable, [sys.executable, __file__, *words_for(sys.argv[1:], bench, rest)])


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse and check the flags.

    Raises:
        SystemExit: if they do not go together or name what is not there.
    """
    parser = argparse.ArgumentParser(
        prog="accept.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_argument_group("what is run").add_mutually_exclusive_group()
    mode.add_argument(
        "--reference", type=Path, metavar="FILE", help="run `methods` on the CPU, write its scores to FILE"
    )
    mode.add_argument("--compare", type=Path, metavar="FILE", help="compare the scores with those of --reference")
    parser.add_argument("--dry", action="store_true", help="tiny sizes: shows that every section runs through")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda, but cpu for --dry and --reference")
    parser.add_argument(
        "--deadline", type=float, default=math.inf, metavar="SECONDS", help="begin nothing that ends after it"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("RAPRUNE_DATA") or None,
        metavar="FOLDER",
        help="images and weights (default: the environment variable RAPRUNE_DATA); only --dry runs without",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(".device/out"), metavar="FOLDER", help="results (default .device/out)"
    )
    parser.add_argument("--only", default="", metavar="SECTIONS", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="results to complete: what passed is not run again")
    options = parser.parse_args(words)
    options.device = options.device or ("cpu" if options.dry or options.reference else "cuda")
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    unknown = [name for name in options.only.split(",") if name and name not in NAMES]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: no such section. Sections are {', '.join(NAMES)}.")
    if options.reference and (options.device != "cpu" or options.only):
        parser.error("--reference: is made on a CPU, by the section methods alone; leave out --device and --only.")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here. Try --dry, which runs on a CPU.")
    if options.data is None and not options.dry:
        parser.error("--data: no folder with images and weights. Name one, or set RAPRUNE_DATA; see build.py.")
    for flag, path in (("--data", options.data), ("--compare", options.compare), ("--resume", options.resume)):
        if path is not None and not path.exists():
            parser.error(f"{flag} {path}: is not there.")
    if options.deadline <= 0:
        parser.error(f"--deadline {options.deadline:g}: must be above 0 seconds.")


def bench_of(options: argparse.Namespace, work: Path, began: float) -> Bench:
    """Return the bench that the flags describe."""
    machine = describe(options.device, dry=options.dry)
    results = Results(machine) if options.resume is None else Results.load(options.resume)
    name = "-".join([machine["date"][:16], machine["card"], machine["commit"].removesuffix("+")])
    safe = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    file = options.resume or options.out / f"{'-'.join(part for part in safe.split('-') if part)}.json"
    reference = dict(np.load(options.compare)) if options.compare else {}
    return Bench(
        device=options.device,
        sizes=DRY if options.dry else REAL,
        data=None if options.data is None else options.data.resolve(),
        out=options.out.resolve(),
        work=work,
        file=file.resolve(),
        results=results,
        deadline_s=options.deadline,
        began=began,
        reference=reference,
    )


def wanted(options: argparse.Namespace, results: Results) -> list[Section]:
    """Return the sections to run, without those that have passed in resumed results; drop what is run again."""
    names = options.only.split(",") if options.only else NAMES
    if options.reference:
        names = [METHODS.name]
    passed = {section.name for section in results.sections if section.state is SectionState.PASSED}
    chosen = [section for section in SECTIONS if section.name in names and section.name not in passed]
    again = {section.name for section in chosen}
    results.sections = [section for section in results.sections if section.name not in again]
    # A reference has to be whole, so it has no deadline.
    return [replace(section, seconds=0.0) for section in chosen] if options.reference else chosen


def finish(bench: Bench, options: argparse.Namespace) -> int:
    """Write the reference if it is asked for, print the table, and return the exit code."""
    if options.reference and bench.scores:
        options.reference.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(options.reference, **bench.scores)  # type: ignore[arg-type]  # its stub names a keyword
        print(f"scores of {len(bench.scores) // 3} methods: {options.reference}")
    print(f"\n{as_text(bench.results)}\n\n{bench.file}", flush=True)
    return 0 if bench.results.passed else 1


def words_for(words: Sequence[str], bench: Bench, rest: Sequence[Section]) -> list[str]:
    """Return the flags of a new process that runs the `rest` in the time that is left."""
    kept: list[str] = []
    given = iter(words)
    for word in given:
        if word in ("--only", "--resume", "--deadline"):
            next(given)
        elif not word.startswith(("--only=", "--resume=", "--deadline=")):
            kept.append(word)
    left = [] if math.isinf(bench.left_s) else ["--deadline", f"{max(1.0, bench.left_s):.0f}"]
    return [*kept, "--resume", str(bench.file), "--only", ",".join(section.name for section in rest), *left]


if __name__ == "__main__":
    sys.exit(main())
