"""One training of the section `accuracy`: `python -m acceptance.finalist JSON`; its last line is its result as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from acceptance.bench import Bench
from acceptance.networks import RESNET56, cifar_job, make_subject, proposal
from acceptance.results import Results
from acceptance.sizes import DRY, REAL
from raprune.spec.job import TrainSpec
from raprune.training.evaluate import evaluate
from raprune.training.loop import train


def main() -> None:
    """Cut, repair and train the network, and look at the test images."""
    given = json.loads(sys.argv[1])
    work = Path(given["work"])
    bench = Bench(
        device=given["device"],
        sizes=DRY if given["dry"] else REAL,
        data=None if given["data"] is None else Path(given["data"]),
        out=work,
        work=work,
        file=work / "unused.json",
        results=Results({}),
    )
    subject = make_subject(bench, cifar_job(bench, RESNET56, images=bench.sizes.cifar))
    workload = subject.workload
    assert workload.test is not None, "CIFAR-10 and the bundled data have test images"
    method, allocation = ("l1", "uniform") if given["dry"] else ("reconstruction", "least_damage")
    pruned = subject.pruner.cut_and_repair(proposal(method, flops=given["flops"], allocation=allocation))
    found = {"repaired": evaluate(pruned.model, workload.test).accuracy}
    spec = TrainSpec(epochs=given["epochs"], lr=0.05, batch_size=32 if given["dry"] else 128)
    bench.wait()
    began = time.perf_counter()
    train(pruned.model, workload.training, spec, augment=workload.augment, seed=0, teacher=workload.model)
    bench.wait()
    seconds = time.perf_counter() - began
    found["dense"] = evaluate(workload.model, workload.test).accuracy
    found["tuned"] = evaluate(pruned.model, workload.test).accuracy
    found["images_a_second"] = spec.epochs * len(workload.training) / seconds
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
