"""Random networks, each proved, frozen or refused: `uv run --group dev python jobs/benchmarks/random_networks.py`.

Hypothesis draws programs of convolutions, norms, attention, splits, views, sums and things that trip a trace
(`tests/channels/random_networks.py`). Each network is traced and proved, a half of its channels is cut, and the outputs
are compared with those of the dense network under hooks that zero what was removed; FLOPs and parameters of the cut
network are compared with the closed form. A nightly test does the same with a few networks. The program prints how
many were proved, frozen as a whole or refused, and the smallest program of each kind of failure.

It needs `PYTHONPATH=.`. `--count` networks are drawn from `--seed`; with `--seconds`, no network starts after so many
seconds.
"""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections import Counter

import torch
from bar import show
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.channels.random_check import checked
from tests.channels.random_networks import Step, programs

Program = tuple[Step, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="number of networks")
    parser.add_argument("--seed", type=int, default=0, help="seed of the programs")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no network after so many seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: Counter[str] = Counter()
    wrong: dict[str, Program] = {}
    started = time.monotonic()

    @seed(arguments.seed)
    @settings(
        max_examples=arguments.count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def run(program: Program) -> None:
        if time.monotonic() - started > arguments.seconds:
            found["not started"] += 1
            return
        try:
            found[checked(program)] += 1
        except Exception as error:
            found["wrong"] += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {place.name}: {str(error).partition(' by ')[0][:80]}"
            if kind not in wrong or len(repr(program)) < len(repr(wrong[kind])):
                wrong[kind] = program

    run()
    seconds = time.monotonic() - started
    print(", ".join(f"{count:,} {name}" for name, count in sorted(found.items())), f"in {seconds:.0f} s", flush=True)
    for kind, program in wrong.items():
        print(f"{kind}\n    {program!r}")
    show("wrong networks", figure=found["wrong"], bar=0, unit="", more_is_better=False)


if __name__ == "__main__":
    main()
