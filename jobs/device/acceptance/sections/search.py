"""Section `search`: a whole search on Ray, two actors on one device, one of which gets an error of CUDA that stays."""

from __future__ import annotations

import statistics
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from acceptance.bench import Bench
from acceptance.machine import processes_on_card
from acceptance.networks import MEAN, RESNET56, STD, WEIGHTS
from acceptance.poison import MARK, Poisoned
from acceptance.processes import environment, watch
from raprune.errors import RapruneError
from raprune.records import Stage, TrialState
from raprune.store.folder import Store

WORKERS = 2
LIMIT_S, DRY_LIMIT_S = 200.0, 600.0
"""Seconds after which a search is ended. A dry run may be on a machine that has other work."""
SETTLED = 4
"""Recorded trials after which only the actors of the search may be on the card."""
POISONED = f"{Poisoned.__module__}:{Poisoned.__name__}"


def run(bench: Bench) -> None:
    """Run a search of which one actor is broken; where that fails, also one that nothing disturbs, to tell the two."""
    methods = bench.sizes.searched
    if not _search(bench, "with one broken actor", (*methods, POISONED)) and bench.left_s > LIMIT_S / 2:
        _search(bench, "undisturbed", methods or ("l2",))


@dataclass
class CardWatch:
    """Processes on the card while a search is between its first trials and its last."""

    bench: Bench
    store: Store
    before: set[int] = field(default_factory=lambda: set(processes_on_card()))
    most: int = 0
    seen: bool = False
    """True if the driver shows processes at all."""

    def look(self) -> None:
        """Count the processes that came since the search began, while only its actors should be there."""
        trials = 0
        # The search writes meanwhile; the next look counts again.
        with suppress(RapruneError, OSError):
            trials = len(self.store.rows(["stage"])) if self.store.is_run() else 0
        if self.bench.on_gpu and SETTLED <= trials < self.bench.sizes.trials:
            there = set(processes_on_card())
            self.seen = self.seen or bool(there)
            self.most = max(self.most, len(there - self.before))


def _search(bench: Bench, name: str, methods: tuple[str, ...]) -> bool:
    """Run `raprune search`; check that it ends well with all trials complete, and return True if it did."""
    slug = name.replace(" ", "-")
    folder, mark, log = bench.work / slug, bench.work / f"{slug}.mark", bench.out / f"search-{slug}.log"
    watching = CardWatch(bench, Store(folder))
    code = watch(
        search_command(bench, folder, methods),
        log,
        environment=environment(bench, **{MARK: str(mark)}),
        limit_s=min(DRY_LIMIT_S if bench.sizes.dry else LIMIT_S, bench.left_s),
        look=watching.look,
    )
    bench.check(f"{name}: exit code 0", code == 0, "" if code == 0 else _end_of(log, code))
    if POISONED in methods:
        bench.check(f"{name}: an actor was broken", mark.exists())
    if not Store(folder).is_run():
        return False
    trials = [trial for trial in Store(folder).trials() if trial.proposal.stage is Stage.SEARCH]
    incomplete = [trial for trial in trials if trial.state is not TrialState.COMPLETE]
    errors = sorted({str(trial.error).strip().splitlines()[-1][:150] for trial in incomplete if trial.error})
    complete = len(trials) >= bench.sizes.trials and not incomplete
    bench.check(
        f"{name}: all trials complete",
        complete,
        "; ".join([f"{len(trials) - len(incomplete)} of {bench.sizes.trials}", *errors[:3]]),
    )
    bench.record(f"{name}: workers that recorded trials", len({trial.worker for trial in trials}))
    if trials:
        seconds = statistics.median(trial.seconds for trial in trials)
        bench.record(f"{name}: median of a trial", seconds, "s")
    if watching.seen:
        bench.at_most(f"{name}: its processes on the card during trials", watching.most, WORKERS, "processes")
    return code == 0 and complete


def search_command(bench: Bench, folder: Path, methods: tuple[str, ...]) -> list[str]:
    """Return a search for half of the FLOPs by two actors that share one device, with one finalist."""
    sizes = bench.sizes
    words = [sys.executable, "-m", "raprune", "search", "--methods", ",".join(methods), "--budget-flops", "0.5"]
    words += ["--trials", str(sizes.trials), "--workers", str(WORKERS), "--output", str(folder)]
    words += ["--finalists", "1", "--epochs", f"{sizes.search_epochs}"]
    fields = ["finalists.each_method=false", f"search.calibration_images={sizes.calibration}"]
    if sizes.search_images is not None:
        fields.append(f"data.max_images={sizes.search_images}")
    if bench.on_gpu:
        fields.append(f"resources.gpus_per_trial={1 / WORKERS}")
    if bench.data is not None:
        words += ["--model", RESNET56, "--weights", str(bench.data / WEIGHTS[RESNET56]), "--data", "parquet"]
        for split in ("train", "test"):
            words += [f"--{split}", str(bench.data / f"cifar10-{split}.parquet")]
        fields += ["data.validation_fraction=0.1", "data.augment=shift-flip"]
        fields += [f"data.mean={list(MEAN)}", f"data.std={list(STD)}"]
    for one in fields:
        words += ["--set", one]
    return words


def _end_of(log: Path, code: int | None) -> str:
    """Return why a search did not end well, by the end of its log."""
    state = "ended after its limit" if code is None else f"exit code {code}"
    return f"{state}: {log.read_text(errors='replace')[-600:].strip()}"
