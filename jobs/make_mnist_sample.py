"""Make the bundled data set and network: `RAPRUNE_DATA=... uv run python jobs/make_mnist_sample.py`.

`raprune/data/mnist-sample.parquet`: 12,500 of MNIST's images, drawn by class with seed 0. 8,000 training and 2,000
validation images come from MNIST's training split, 2,500 test images from its test split; a column `split` tells them
apart. `raprune/models/mnist-resnet.safetensors`: the network `mnist-resnet`, trained on those 8,000 images alone.

The folder RAPRUNE_DATA holds `mnist-train.parquet` and `mnist-test.parquet`, all of MNIST with the columns `image` and
`label`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from raprune.data import load_data
from raprune.pruning.workload import build_workload, train_dense
from raprune.spec.job import DataSpec, DenseTrainSpec, ModelSpec, SearchSpec
from raprune.training.evaluate import evaluate

PACKAGE = Path(__file__).parent.parent / "raprune"
SAMPLE = PACKAGE / "data" / "mnist-sample.parquet"
WEIGHTS = PACKAGE / "models" / "mnist-resnet.safetensors"
TRAIN, VALIDATION, TEST = 800, 200, 250
"""Images of each class."""
SEED = 0


def main() -> None:
    folder = Path(os.environ["RAPRUNE_DATA"])
    pq.write_table(sample(folder), SAMPLE, compression="zstd")
    print(f"{SAMPLE.name}: {SAMPLE.stat().st_size:,} bytes")
    train()


def sample(folder: Path) -> pa.Table:
    """The images of all three splits, with the column `split`."""
    generator = np.random.default_rng(SEED)
    learnt, tested = (pq.read_table(folder / f"mnist-{name}.parquet") for name in ("train", "test"))
    train, validation = _drawn(learnt, (TRAIN, VALIDATION), generator)
    (test,) = _drawn(tested, (TEST,), generator)
    parts = [("train", learnt, train), ("validation", learnt, validation), ("test", tested, test)]
    tables = [
        table.take(pa.array(rows)).append_column("split", pa.array([name] * len(rows))) for name, table, rows in parts
    ]
    return pa.concat_tables(tables)


def train() -> None:
    """Train `mnist-resnet` on the sample's training images, and say how good it is."""
    # The number of threads decides the order of sums, and so the last digits of the weights.
    torch.set_num_threads(1)
    # Without the bundled weights: an argument of the network leaves them out.
    spec = SearchSpec(
        model=ModelSpec(arguments={"num_classes": 10}),
        data=DataSpec(),
        dense=DenseTrainSpec(epochs=16.0, lr=0.2),
        seed=SEED,
    )
    workload = build_workload(spec, data=load_data(spec.data, seed=SEED), device="cpu")
    train_dense(workload, spec, on_epoch=lambda epoch: print(f"epoch {epoch.number}: {epoch.accuracy:.2%}", flush=True))
    save_file({name: value.contiguous() for name, value in workload.model.state_dict().items()}, WEIGHTS)
    assert workload.test is not None
    accuracies = [evaluate(workload.model, split).accuracy for split in (workload.validation, workload.test)]
    print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size:,} bytes; {accuracies[0]:.2%} validation, {accuracies[1]:.2%} test")


def _drawn(table: pa.Table, counts: Iterable[int], generator: np.random.Generator) -> list[np.ndarray]:
    """Rows of the table, for each of `counts` so many of each class, no row twice; in ascending order."""
    labels = table["label"].to_numpy()
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        for part, count in zip(parts, counts, strict=True):
            part.append(rows[:count])
            rows = rows[count:]
    return [np.sort(np.concatenate(part)) for part in parts]


if __name__ == "__main__":
    main()
