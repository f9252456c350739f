"""One network without a search: made alone, and handed out from a run."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]  # it has no types
from rich.console import Console
from safetensors.numpy import save as save_arrays
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from raprune.cli import app
from raprune.errors import ModelError, RapruneError, StoreError, UsageError
from raprune.models import build_model
from raprune.pruning.artifact import load, read_recipe
from raprune.pruning.export import export, prune_once
from raprune.pruning.preparation import DENSE, prepare
from raprune.pruning.prune import Pruner
from raprune.pruning.workload import build_workload, train_dense
from raprune.records import Proposal, Stage, Trial
from raprune.report.exports import render_exports
from raprune.results.exports import read_proofs
from raprune.results.stages import FINETUNE, JUDGE_DENSE, LOAD_DATA, LOAD_NETWORK, PROVE, PRUNE, TRAIN_DENSE, Stages
from raprune.spec.budget import Budget
from raprune.spec.job import SearchSpec
from raprune.spec.toml import load_spec
from raprune.store.folder import Store
from raprune.store.record import RunRecord

SPEC = load_spec(
    None,
    {
        "model.name": "digits-net",
        "data.name": "digits",
        "seed": 3,
        "dense.epochs": 2.0,
        "finalists.train.epochs": 1.0,
        "finalists.train.lr": 0.05,
        "output": "unused",
    },
)


def dense(spec: SearchSpec) -> nn.Module:
    return build_model(spec.model, num_classes=10, image_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Trial, nn.Module]:
    """A run of one repaired trial, its trial, and its network as it was evaluated."""
    prepared = prepare(SPEC)
    workload = build_workload(SPEC, data=prepared.data, device="cpu", weights=prepared.weights)
    train_dense(workload, SPEC)
    pruner = Pruner(workload, prepared.graph, SPEC)
    proposal = Proposal(number=0, method="l1", allocation="global_rank", target=Budget(flops=0.25), seed=8)
    trial, model, _ = pruner.prune(proposal)
    store = Store(tmp_path_factory.mktemp("single") / "run")
    store.create(RunRecord.model_validate({"spec": SPEC.model_dump(mode="json"), "state": "searching"}))
    store.write_bytes(DENSE, save_arrays(workload.weights()))
    store.append([trial])
    return store, trial, model


def test_a_repaired_candidate_is_exported_as_it_was_evaluated(
    run: tuple[Store, Trial, nn.Module], tmp_path: Path
) -> None:
    store, trial, model = run
    assert trial.candidate is not None
    told: list[str] = []
    made = export(store.uri, trial.candidate.id[:5], str(tmp_path / "out"), tell=told.append)
    assert (made.network, made.trial_id, made.is_stored) == (trial.network, trial.trial_id, False)
    assert trial.metrics is not None and made.val_accuracy == trial.metrics.accuracy
    assert len(told) == 1 and told[0].startswith(f"Making {trial.network} again from the dense network")
    loaded = load(dense(SPEC), str(tmp_path / "out"))
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    recipe = read_recipe(Store(tmp_path / "out"), "")
    assert recipe["trial_id"] == trial.trial_id
    assert recipe["accuracy"] == trial.metrics.accuracy
    assert recipe["seed"] == 3


def test_a_candidate_is_found_by_its_trial(run: tuple[Store, Trial, nn.Module], tmp_path: Path) -> None:
    store, trial, _ = run
    assert trial.candidate is not None
    assert export(store.uri, trial.trial_id, str(tmp_path / "out")).network == trial.candidate.id


@pytest.fixture
def finetuned(run: tuple[Store, Trial, nn.Module], tmp_path: Path) -> tuple[Store, Trial]:
    """The run in a folder of its own, with a fine-tuning of its trial that made it worse, in the layout of before."""
    store, repaired, _ = run
    folder = tmp_path / "run"
    shutil.copytree(store.uri, folder)
    copy = Store(folder)
    proposal = replace(repaired.proposal, stage=Stage.FINETUNE, parent=repaired.trial_id)
    assert repaired.metrics is not None and repaired.candidate is not None
    tuned = replace(
        repaired,
        trial_id=proposal.trial_id,
        proposal=proposal,
        metrics=replace(repaired.metrics, accuracy=repaired.metrics.accuracy - 0.1),
        epochs=1.0,
    )
    copy.append([tuned])
    copy.write_bytes(f"models/{repaired.candidate.id}/weights.safetensors", b"fine-tuned")
    copy.write_json(f"models/{repaired.candidate.id}/recipe.json", {"trial_id": tuned.trial_id})
    return copy, tuned


def test_export_gives_the_network_that_was_named(
    run: tuple[Store, Trial, nn.Module], finetuned: tuple[Store, Trial], tmp_path: Path
) -> None:
    _, repaired, model = run
    store, tuned = finetuned
    assert tuned.network == f"{repaired.network}-ft"
    for number, name in enumerate((tuned.trial_id, tuned.network)):
        made = export(store.uri, name, str(tmp_path / f"tuned-{number}"))
        assert (made.network, made.is_stored) == (tuned.network, True)
        assert (tmp_path / f"tuned-{number}" / "weights.safetensors").read_bytes() == b"fine-tuned"
    for number, name in enumerate((repaired.trial_id, repaired.network)):
        made = export(store.uri, name, str(tmp_path / f"repaired-{number}"))
        assert (made.network, made.is_stored) == (repaired.network, False)
        loaded = load(dense(SPEC), str(tmp_path / f"repaired-{number}"))
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(loaded(images), model(images))


def test_a_beginning_that_several_networks_have_is_refused_with_their_names(
    finetuned: tuple[Store, Trial], tmp_path: Path
) -> None:
    store, tuned = finetuned
    with pytest.raises(UsageError, match="several networks of this run begin so") as caught:
        export(store.uri, tuned.network[:5], str(tmp_path / "out"))
    assert tuned.name.removesuffix("-ft") in caught.value.hint and tuned.network in caught.value.hint
    assert export(store.uri, f"{tuned.network[:-1]}", str(tmp_path / "out")).network == tuned.network


def test_weights_that_were_trained_and_lost_are_not_made_again(finetuned: tuple[Store, Trial], tmp_path: Path) -> None:
    store, tuned = finetuned
    store.remove_folder("models/" + tuned.network.removesuffix("-ft"))
    with pytest.raises(ModelError, match="which was trained, are not in the run"):
        export(store.uri, tuned.network, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_network_whose_data_changed_is_not_made_again(run: tuple[Store, Trial, nn.Module], tmp_path: Path) -> None:
    store, trial, _ = run
    shutil.copytree(store.uri, tmp_path / "run")
    moved = Store(tmp_path / "run")
    moved.write_json("run.json", moved.run() | {"data": {"fingerprint": "of other data"}})
    with pytest.raises(RapruneError, match=f"{trial.network} cannot be made again: the data changed") as caught:
        export(moved.uri, trial.network, str(tmp_path / "out"))
    assert "Bring the data back" in caught.value.hint and f"{moved.name}/models" in caught.value.hint


def test_an_unknown_candidate_is_refused_with_those_there_are(
    run: tuple[Store, Trial, nn.Module], tmp_path: Path
) -> None:
    store, trial, _ = run
    assert trial.candidate is not None
    with pytest.raises(UsageError, match=r"network 'zzz': no network of this run") as caught:
        export(store.uri, "zzz", str(tmp_path / "out"))
    assert trial.candidate.id in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_recipe_is_not_overwritten(run: tuple[Store, Trial, nn.Module], tmp_path: Path) -> None:
    store, trial, _ = run
    export(store.uri, trial.trial_id, str(tmp_path))
    before = (tmp_path / "recipe.json").read_bytes()
    with pytest.raises(StoreError, match="holds a recipe"):
        export(store.uri, trial.trial_id, str(tmp_path))
    assert (tmp_path / "recipe.json").read_bytes() == before


def test_network_pruned_alone_in_three_cuts_has_as_many_epochs_and_other_weights(tmp_path: Path) -> None:
    at_once, in_three = (
        prune_once(in_steps(steps), method="l2", allocation="uniform", finetune=True) for steps in ([1], [3])
    )
    assert at_once.trial.candidate == in_three.trial.candidate and at_once.trial.epochs == in_three.trial.epochs
    assert at_once.trial.metrics is not None and in_three.trial.metrics is not None
    assert at_once.trial.metrics.flops == in_three.trial.metrics.flops
    assert at_once.trial.metrics.loss != in_three.trial.metrics.loss


def test_network_pruned_alone_takes_one_number_of_cuts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"finalists.steps \[1, 3\]: one network is made in one way") as caught:
        prune_once(in_steps([1, 3]), method="l2", allocation="uniform", finetune=True)
    assert "--set finalists.steps=3" in caught.value.hint


def in_steps(steps: list[int]) -> SearchSpec:
    """The job with finalists in so many cuts."""
    fields = SPEC.model_dump()
    return SearchSpec.model_validate(fields | {"finalists": fields["finalists"] | {"steps": steps}})


def test_a_network_pruned_alone_meets_its_budget_and_loads(tmp_path: Path) -> None:
    stages = Stages()
    made = prune_once(
        SPEC,
        method="l2",
        allocation="uniform",
        folder=str(tmp_path),
        finetune=True,
        stages=stages,
    )
    gone_through = stages.now().stages
    assert [s.name for s in gone_through] == [
        LOAD_DATA,
        LOAD_NETWORK,
        PROVE,
        TRAIN_DENSE,
        JUDGE_DENSE,
        PRUNE,
        FINETUNE,
    ]
    assert [s.done for s in gone_through if s.unit == "epochs"] == [2, 1], "epochs of the two trainings"
    assert made.trial.metrics is not None
    assert 0.29 < made.trial.metrics.flops_fraction <= 0.3
    loaded = load(dense(SPEC), str(tmp_path))
    assert sum(p.numel() for p in loaded.parameters()) == made.trial.metrics.params
    with pytest.raises(StoreError, match="holds a recipe"):
        prune_once(SPEC, method="l2", allocation="uniform", folder=str(tmp_path))


def test_prune_of_weights_that_classify_nothing_prints_the_warning(tmp_path: Path) -> None:
    weights = tmp_path / "random.safetensors"
    torch.manual_seed(0)
    save_file(dense(SPEC).state_dict(), weights)
    words = ["prune", "--model", "digits-net", "--data", "digits", "--weights", str(weights), "--budget-flops", "0.3"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    (warning,) = [line for line in done.output.splitlines() if line.startswith("Warning: ")]
    assert "where a constant guess scores" in warning and "belong to another task or checkpoint" in warning


def test_settings_of_the_job_are_those_of_the_network() -> None:
    spec = SPEC.model_copy(update={"settings": {"binary_search": {"norm": "l2", "finetune_epochs": 0.0}}})
    made = prune_once(spec, method="binary_search", allocation="uniform")
    assert dict(made.trial.proposal.settings) == {"norm": "l2", "finetune_epochs": 0.0}
    assert made.trial.epochs == 0.0


def outputs(model: nn.Module, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and the model's outputs for them."""
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
    with torch.no_grad():
        return images, model(images)


def test_a_torch_program_of_a_run_gives_the_outputs_of_its_network_for_any_batch(
    run: tuple[Store, Trial, nn.Module], tmp_path: Path
) -> None:
    store, trial, model = run
    made = export(store.uri, trial.trial_id, str(tmp_path), formats=["torch", "recipe"], tell=lambda text: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(made.files)
    assert sorted(made.files) == ["export.json", "model.pt2", "recipe.json", "weights.safetensors"]
    facts = {"classes.txt": "", "network.txt": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=facts).module()
    for count in (1, 2, 37):
        images, wanted = outputs(model, count)
        with torch.no_grad():
            assert torch.allclose(program(images), wanted, atol=1e-5)
    assert json.loads(facts["classes.txt"]) == [str(digit) for digit in range(10)]
    assert facts["network.txt"] == trial.network
    assert made.proof is not None
    written = json.loads((tmp_path / "export.json").read_text())
    assert read_proofs(store) == {trial.network: made.proof}
    assert written == json.loads(json.dumps(made.proof.to_json()))
    (file,) = written["files"]
    assert written["images"] == file["equal_top1"] == 251
    assert trial.metrics is not None
    assert file["accuracy"] == written["accuracy"] == trial.metrics.accuracy
    assert file["relative_difference"] < 1e-5
    assert 0 < file["size_bytes"] < file["dense_bytes"]
    assert [times["batch_size"] for times in file["times"]] == [1, 32]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_exports(made.proof))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80 and any("model.pt2" in line and "251/251" in line for line in lines)


def test_an_unknown_format_is_refused_with_those_there_are(run: tuple[Store, Trial, nn.Module], tmp_path: Path) -> None:
    store, trial, _ = run
    with pytest.raises(UsageError, match="--format coreml: no such format") as caught:
        export(store.uri, trial.trial_id, str(tmp_path), formats=["recipe", "coreml"])
    assert "recipe, torch, onnx, huggingface" in caught.value.hint


def test_a_format_whose_libraries_are_missing_is_refused_with_the_command_that_installs_them(
    run: tuple[Store, Trial, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, trial, _ = run
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    with pytest.raises(UsageError, match="--format onnx needs onnx, onnxscript, onnxruntime, which are not") as caught:
        export(store.uri, trial.trial_id, str(tmp_path / "out"), formats=["onnx"])
    assert 'pip install "raprune[export]"' in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_program_that_cannot_be_made_leaves_nothing_behind(
    run: tuple[Store, Trial, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, trial, _ = run

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("No ONNX function found for <OpOverload(op='aten.special_bessel_j0', overload='default')>.")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ModelError, match=r"the exporter stops at aten\.special_bessel_j0") as caught:
        export(store.uri, trial.trial_id, str(tmp_path / "out"), formats=["recipe", "torch"], tell=lambda text: None)
    assert len(str(caught.value).splitlines()) < 8
    assert not (tmp_path / "out").exists()


def test_a_folder_with_an_exported_program_is_not_overwritten(
    run: tuple[Store, Trial, nn.Module], tmp_path: Path
) -> None:
    store, trial, _ = run
    (tmp_path / "model.pt2").write_bytes(b"mine")
    with pytest.raises(StoreError, match=r"holds a model\.pt2 already"):
        export(store.uri, trial.trial_id, str(tmp_path), formats=["torch"])
    assert (tmp_path / "model.pt2").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("quantize", "said"),
    [("int4", "--quantize int4: no such precision"), ("int8", "--quantize int8 quantises an ONNX file")],
)
def test_a_precision_that_cannot_be_is_refused(
    run: tuple[Store, Trial, nn.Module], tmp_path: Path, quantize: str, said: str
) -> None:
    store, trial, _ = run
    with pytest.raises(UsageError, match=said):
        export(store.uri, trial.trial_id, str(tmp_path), formats=["torch"], quantize=quantize)


def test_prune_with_a_format_but_no_folder_is_refused() -> None:
    with pytest.raises(UsageError, match="--format torch: there is no folder"):
        prune_once(SPEC, method="l2", allocation="uniform", formats=["torch"])


def test_a_folder_for_the_hugging_face_hub_loads_and_its_card_has_the_figures_of_the_run(
    run: tuple[Store, Trial, nn.Module], tmp_path: Path
) -> None:
    store, trial, model = run
    shutil.copytree(store.uri, tmp_path / "run")
    source = Store(tmp_path / "run")
    source.write_json("report/test.json", {"names": 2, "dense": 0.875, "candidates": {trial.network: 0.8125}})
    out = tmp_path / "hub"
    made = export(source.uri, trial.trial_id, str(out), formats=["huggingface"], tell=lambda text: None)
    assert made.proof is None
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.json",
    ]
    images, wanted = outputs(model, 4)
    with torch.no_grad():
        assert torch.equal(load(dense(SPEC), str(out))(images), wanted)
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {str(digit): str(digit) for digit in range(10)}
    assert (config["num_channels"], config["image_size"]) == (1, [8, 8])
    _, header, text = (out / "README.md").read_text().split("---\n", 2)
    described = yaml.safe_load(header)
    assert trial.metrics is not None
    results = described["model-index"][0]["results"]
    assert [(r["dataset"]["split"], r["metrics"][0]["value"]) for r in results] == [
        ("validation", trial.metrics.accuracy),
        ("test", 0.8125),
    ]
    assert "| test accuracy | 81.25% | 87.50% |" in text
    assert f"| FLOPs for one image | {trial.metrics.flops:,} |" in text
