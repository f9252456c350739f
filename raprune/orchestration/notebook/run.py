"""A run as a Python session holds it: its front, its networks, its figures."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load as load_safetensors
from torch import nn

from raprune.errors import RapruneError, StoreError, UsageError
from raprune.models import build_model
from raprune.models.given import give_model, load_arrays
from raprune.orchestration.notebook.budget import plain_budget
from raprune.orchestration.notebook.tables import CandidateTable, described
from raprune.pruning.artifact import load_from, read_recipe
from raprune.pruning.export import Exported, export, find_trial
from raprune.pruning.preparation import DENSE
from raprune.report.figures import FIGURES
from raprune.report.figures.canvas import KINDS, PAGE_IN, canvas, save
from raprune.results.front import measured_in, pick
from raprune.results.rows import CandidateRow
from raprune.results.run_results import RunResults, read_run_results
from raprune.spec.budget import Budget
from raprune.spec.job import ModelSpec, SearchSpec
from raprune.store.folder import Store
from raprune.store.networks import find_network


@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """A figure of a run; a notebook shows it."""

    name: str
    files: Mapping[str, bytes]
    """Kind (`png`, `svg` or `pdf`) -> content."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the figure to a file; its ending says the kind.

        Raises:
            UsageError: if the ending is no kind of figure.
        """
        kind = Path(path).suffix.removeprefix(".")
        if kind not in self.files:
            raise UsageError(f"{path}: no kind of figure.", hint=f"Valid endings: {', '.join(self.files)}.")
        Path(path).write_bytes(self.files[kind])

    def _repr_png_(self) -> bytes:
        return self.files["png"]

    def __repr__(self) -> str:
        return f"Picture({self.name!r})"


class OpenedRun:
    """A run, finished or under way: `raprune.Run("runs/...")`, or what `raprune.search` returns.

    The folder of a run under way is read again each time. Nothing that is read is executed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        model: nn.Module | Callable[[], nn.Module] | None = None,
        spec: SearchSpec | None = None,
    ) -> None:
        """Open the run in `folder`, a path or a URI such as `s3://bucket/run`.

        `model` is the dense network of a run whose network was an object; `load` builds networks from it. `spec` is
        the job with its objects, as `raprune.search` gives it.

        Raises:
            StoreError: if there is no run, or it cannot be read.
        """
        self._store = Store(os.fspath(folder))
        self._given = give_model(model) if model is not None else None if spec is None else spec.model.given
        self._data = None if spec is None else spec.data.given
        self._read: RunResults | None = None
        self._results()

    @property
    def folder(self) -> str:
        """Folder of the run, without credentials that its URI may hold."""
        return self._store.name

    @property
    def finished(self) -> bool:
        """True if the run has ended with its report."""
        return self._results().run.finished

    @property
    def front(self) -> CandidateTable:
        """The networks on the front within the budget and the recommended one, by ascending FLOPs."""
        results = self._results()
        return CandidateTable(tuple(results.listed), results)

    @property
    def candidates(self) -> CandidateTable:
        """Every candidate, by ascending FLOPs."""
        results = self._results()
        return CandidateTable(tuple(results.rows), results)

    @property
    def best(self) -> CandidateRow:
        """The recommended candidate.

        Raises:
            RapruneError: if no candidate is within the budget yet.
        """
        chosen = self._results().chosen
        if chosen is None:
            raise RapruneError(
                f"{self.folder}: no candidate is within the budget yet.", hint="run.candidates has all of them."
            )
        return chosen

    def pick(
        self, budget: Budget | Mapping[str, Any] | None = None, *, min_accuracy: float | None = None
    ) -> CandidateRow:
        """The best candidate under another budget, without new work.

        It is the most accurate one within the budget or, with `min_accuracy` in [0, 1], the cheapest that is at least
        so accurate on the validation split.

        Raises:
            RapruneError: if there is no such candidate; the message names the nearest.
        """
        results = self._results()
        return pick(results.rows, measured_in(plain_budget(budget), results.run), min_accuracy=min_accuracy)

    def load(self, candidate: str | CandidateRow | None = None) -> nn.Module:
        """The network of a candidate, of its name or its beginning; by default the recommended one.

        It is in evaluation mode and on the CPU. A network without stored weights is made again from the data.

        Raises:
            UsageError: if there is no such network, or the run needs its dense network as an object.
            RapruneError: if a network has to be made again, and that cannot be.
        """
        name = self._name(candidate)
        trial = find_trial(self._store, self._store.trials(), name)
        folder = find_network(self._store, trial)
        if folder is not None:
            return load_from(self._dense(self._store, folder), self._store, folder)
        with tempfile.TemporaryDirectory(prefix="raprune-") as made:
            self.export(name, Path(made) / "network")
            store = Store(str(Path(made) / "network"))
            return load_from(self._dense(store, ""), store, "")

    def load_dense(self) -> nn.Module:
        """The dense network with the weights that the search began with, in evaluation mode and on the CPU.

        Raises:
            UsageError: if the run needs its dense network as an object.
            StoreError: if the run has no weights of it yet.
        """
        weights = load_safetensors(self._store.read_bytes(DENSE))
        folders = (find_network(self._store, trial) for trial in self._store.trials() if trial.counts)
        model = self._dense(self._store, next((folder for folder in folders if folder is not None), None))
        load_arrays(model, weights)
        return model.eval()

    def export(self, candidate: str | CandidateRow | None, folder: str | os.PathLike[str]) -> Exported:
        """Write `recipe.json` and `weights.safetensors` of a candidate to `folder`; None: the recommended one.

        `raprune.load(dense_network, folder)` reads them.

        Raises:
            UsageError: if there is no such network.
            StoreError: if `folder` holds a recipe already.
        """
        spec = SearchSpec.model_validate(self._store.record().spec)
        spec = spec.model_copy(update={"model": spec.model.holding(self._given), "data": spec.data.holding(self._data)})
        return export(self._store.uri, self._name(candidate), os.fspath(folder), spec=spec, tell=lambda text: None)

    def plot(self, figure: str = "front") -> Picture:
        """A figure of the run: `front`, `widths`, `ablation` or `cost`. A notebook shows it.

        Raises:
            UsageError: if there is no such figure.
        """
        if figure not in FIGURES:
            raise UsageError(f"figure {figure!r}: no such figure.", hint=f"Valid: {', '.join(FIGURES)}.")
        results = self._results()
        with canvas(PAGE_IN, FIGURES[figure].height_in(results, wide=True)) as drawn:
            FIGURES[figure].draw(drawn, results)
            return Picture(figure, {kind: save(drawn, kind) for kind in KINDS})

    def __fspath__(self) -> str:
        return self._store.uri

    def __str__(self) -> str:
        return self.folder

    def __repr__(self) -> str:
        return f"Run({self.folder!r}): {described(self._results())}\n{self.front!r}"

    def _repr_html_(self) -> str:
        told = html.escape(f"{self.folder}: {described(self._results())}")
        return f"<p>{told}</p>{self.front.to_html()}"

    def _results(self) -> RunResults:
        if self._read is None or not self._read.run.finished:
            self._read = read_run_results(self._store)
        return self._read

    def _name(self, candidate: str | CandidateRow | None) -> str:
        if candidate is None:
            return self.best.candidate
        return candidate.candidate if isinstance(candidate, CandidateRow) else candidate

    def _dense(self, store: Store, folder: str | None) -> nn.Module:
        """The dense network without its weights; `folder` holds a network of the store, which says its image size."""
        described = self._store.record()
        spec = ModelSpec.model_validate(described.spec.get("model", {})).holding(self._given)
        if folder is None and self._given is None:
            raise StoreError(
                f"{self.folder}: it keeps no network yet that says how large an image is.",
                hint="Wait until the run has ended.",
            )
        channels, height, width = (0, 0, 0) if folder is None else read_recipe(store, folder)["input_shape"]
        classes = described.data.num_classes or 0
        return build_model(spec, num_classes=classes, image_shape=(channels, height, width), takes_images=False)
