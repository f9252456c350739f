"""Train the dense network of a job, and keep its weights where the job reads them.

    uv run python jobs/train_dense.py jobs/vit_cifar10.toml

`[dense]` of the job says how. A training that was stopped goes on from its last checkpoint, beside the weights. The
accuracy on the validation split is printed after each epoch; the test split is not touched.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from safetensors.numpy import save_file

from raprune.errors import RapruneError
from raprune.pruning.preparation import prepare
from raprune.pruning.workload import build_workload, train_dense
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.training.checkpoint import StoreCheckpoints
from raprune.training.epoch import Epoch
from raprune.training.evaluate import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", help="job file whose model.weights are made")
    parser.add_argument("--epochs", type=float, help="default: those of the job")
    parser.add_argument("--device", default="cpu", help="default cpu")
    arguments = parser.parse_args()
    try:
        trained(arguments.job, arguments.epochs, arguments.device)
    except RapruneError as error:
        sys.exit(f"{error}\n{error.hint}")


def trained(job: str, epochs: float | None, device: str) -> None:
    """Train, and write the weights.

    Raises:
        RapruneError: if the job names no weights, or its network or data cannot be read.
    """
    wanted = load_spec(Path(job)).model.weights
    if wanted is None:
        raise RapruneError(f"{job}: model.weights names no file.", hint="Name the file that is to be written.")
    changes = {} if epochs is None else {"dense.epochs": epochs}
    spec = load_spec(Path(job), {"model.weights": None, **changes})
    prepared = prepare(spec)
    workload = build_workload(prepared.spec, data=prepared.data, device=device, weights=prepared.weights)
    path = Path(wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints = StoreCheckpoints(Store(path.parent), f"{path.stem}.checkpoint", every_s=60.0)

    def say(epoch: Epoch) -> None:
        result = evaluate(workload.model, workload.validation, task=workload.task, batch_size=256)
        print(f"epoch {epoch.number}: loss {epoch.loss:.3f}, validation {result.accuracy:.2%}, {epoch.seconds:.0f} s")
        sys.stdout.flush()

    train_dense(workload, prepared.spec, checkpoints=checkpoints, on_epoch=say)
    save_file(workload.weights(), path)
    checkpoints.remove()
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
