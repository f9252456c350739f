"""Binary search against linear search on LeNet-5 / MNIST: `uv run python jobs/benchmarks/binary_search.py`.

Both take the smallest filters of a layer away while the accuracy allows it and train before the next layer; the linear
search does so one filter at a time, until the first that is refused. Where the accuracy is not monotone in what goes,
the two may stop at different widths: the script says so. Then the network that binary search found is trained as the
job's finalists are, and both it and the dense one are looked at on the test split, once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path

import torch
from bar import show

from raprune.channels.graph import ChannelGraph
from raprune.channels.trace import trace
from raprune.cost.flops import CostModel
from raprune.data import load_data
from raprune.methods import Network, Step
from raprune.methods.binary_search import BinarySearch
from raprune.pruning.services import WorkloadServices
from raprune.pruning.workload import Workload, build_workload, train_dense
from raprune.spec.toml import load_spec
from raprune.training.evaluate import evaluate
from raprune.training.loop import train

JOB = Path(__file__).parent.parent / "lenet5_mnist_binary_search.toml"


@dataclass(frozen=True, kw_only=True)
class LinearSearch(BinarySearch):
    """One channel more until one is refused."""

    def largest_removal(self, count: int, accept: Callable[[int], bool]) -> int:
        return next((removed for removed in range(count) if not accept(removed + 1)), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, default=JOB, help="network, data and settings (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the whole experiment (default: the job's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on the CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = load_spec(arguments.job, {} if arguments.seed is None else {"seed": arguments.seed})
    workload = build_workload(spec, data=load_data(spec.data, seed=spec.seed), device=arguments.device)
    if spec.model.weights is None:
        train_dense(workload, spec)
    graph = trace(workload.model, workload.example_input())
    print(f"{spec.model.name}, seed {spec.seed}: settings {spec.settings['binary_search']}")
    print(f"dense: validation {_validation(workload, workload.model):.2%}", flush=True)
    binary, linear = (_search(kind, workload, graph) for kind in (BinarySearch, LinearSearch))
    same = binary.network.kept == linear.network.kept
    print(f"same channels: {'yes' if same else 'no, the accuracy is not monotone there'}")
    evaluations = int(binary.settings["evaluations"])
    bound = sum(ceil(log2(group.num_channels)) for group in graph.groups)
    show("evaluations of binary search", figure=evaluations, bar=bound, unit="", more_is_better=False)
    ratio = int(linear.settings["evaluations"]) / evaluations
    show("evaluations, linear over binary", figure=ratio, bar=5, unit="x", more_is_better=True)
    _finetune(workload, binary.network.model)


def _search(kind: type[BinarySearch], workload: Workload, graph: ChannelGraph) -> Step:
    """The last network of a search that no wanted width binds; told in a line."""
    spec = workload.spec
    method = kind(**spec.settings["binary_search"])  # type: ignore[arg-type]  # it checks them itself
    generator = torch.Generator().manual_seed(spec.seed)
    calibration = workload.sample(spec.search.calibration, generator)
    services = WorkloadServices(workload, lambda: calibration.batches(256), seed=spec.seed)
    whole = {group.name: tuple(range(group.num_channels)) for group in graph.groups}
    started = time.perf_counter()
    *_, last = method.path(Network(workload.model, graph, whole), graph.widths, services)
    seconds, cost, found = time.perf_counter() - started, CostModel(graph), last.network.graph.widths
    vector = cost.vector(found)
    print(
        f"{kind.__name__}: {last.settings['evaluations']} evaluations, {last.epochs:g} epochs, {seconds:.0f} s; "
        f"widths {found}, {int(cost.flops(vector)) / cost.dense_flops:.2%} of the FLOPs, "
        f"{int(cost.params(vector)) / cost.dense_params:.2%} of the parameters, "
        f"validation {_validation(workload, last.network.model):.2%}",
        flush=True,
    )
    return last


def _finetune(workload: Workload, model: torch.nn.Module) -> None:
    spec = workload.spec
    finetuning = spec.finalists.train.decided()
    train(
        model,
        workload.training,
        finetuning,
        augment=workload.augment,
        seed=spec.seed,
        teacher=workload.model if finetuning.distillation > 0 else None,
    )
    print(f"trained {finetuning.epochs:g} epochs more: validation {_validation(workload, model):.2%}")
    if workload.test is not None:
        size = spec.search.batch_size
        dense, found = (evaluate(m, workload.test, batch_size=size).accuracy for m in (workload.model, model))
        print(f"test: {found:.2%}, dense {dense:.2%}, {100 * (found - dense):+.2f} points")


def _validation(workload: Workload, model: torch.nn.Module) -> float:
    return evaluate(model, workload.validation, batch_size=workload.spec.search.eval_batch_size).accuracy


if __name__ == "__main__":
    main()
