"""A search over objects of the session: what comes out, and what is refused in one sentence."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

import raprune
from raprune.errors import DataError, ModelError, RapruneError, StoreError, UsageError
from raprune.store.folder import Store
from tests.factories import make_run
from tests.orchestration.in_process import in_process
from tests.orchestration.notebook.objects import SMALL, LockedNet, Stripes, StripesNet, arrays, flipped, trained_net
from tests.store.s3_server import SECRET, Bucket

QUIET = Console(file=io.StringIO())


def searched(output: Path, **changes: Any) -> raprune.Run:
    asked: dict[str, Any] = {
        "budget": raprune.Budget(flops=0.5),
        "methods": ["l2"],
        "trials": 4,
        "finalists": 1,
        "epochs": 0.5,
        "workers": 2,
        "job": SMALL,
        "console": QUIET,
    }
    train = changes.pop("train", None) or Stripes(300, seed=0, transform=flipped)
    model = changes.pop("model", None) or trained_net()
    test = changes.pop("test", None) or Stripes(100, seed=1)
    with in_process():
        return raprune.search(model, train, test, output=output, **asked | changes)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> raprune.Run:
    return searched(tmp_path_factory.mktemp("objects") / "run")


def test_search_over_objects_gives_a_front_whose_networks_load(found: raprune.Run) -> None:
    assert found.finished and found.folder.endswith("run") and len(found.front) >= 1
    assert found.best.flops_fraction <= 0.5 and found.best.val_accuracy > 0.9
    small = found.load()
    images, labels = arrays(100, seed=1)
    with torch.inference_mode():
        right = small(torch.from_numpy(images).float() / 255).argmax(1).numpy() == labels
    assert found.best.test_accuracy == pytest.approx(right.mean())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in StripesNet().parameters())


def test_run_shows_itself_on_one_screen_and_as_a_table(found: raprune.Run) -> None:
    shown = repr(found).splitlines()
    assert shown[0].startswith("Run('") and "finished, 5 trials" in shown[0] and len(shown) <= 40
    html = found._repr_html_()
    assert html.count("<tr>") == len(found.front) + 2 and "dense network" in html and "★" in html
    assert list(found.candidates.to_pandas()["candidate"]) == [row.candidate for row in found.candidates]
    assert len(found.candidates[:2]) == 2 and len(repr(found.best)) < 250
    picture = found.plot("widths")
    assert picture._repr_png_().startswith(b"\x89PNG") and repr(picture) == "Picture('widths')"
    with pytest.raises(UsageError, match="no such figure"):
        found.plot("histogram")
    assert found.pick({"flops": 0.5}).flops_fraction <= 0.5
    with pytest.raises(RapruneError, match="No candidate is within"):
        found.pick(raprune.Budget(flops=0.001))


def test_candidate_without_stored_weights_is_made_again_from_the_objects(found: raprune.Run) -> None:
    stored = set(Store(found.folder).names("models"))
    other = next(row for row in found.candidates if row.candidate not in stored and not row.epochs)
    small = found.load(other)
    assert sum(p.numel() for p in small.parameters()) == other.params


def test_folder_of_a_run_over_objects_holds_no_pickle_and_says_that_they_were_objects(found: raprune.Run) -> None:
    record = Store(found.folder).record()
    assert record.job.model.name == "object:StripesNet" and record.data.name == "object:Stripes"
    for path in Path(found.folder).rglob("*"):
        assert not path.is_file() or b"cloudpickle" not in path.read_bytes(), path


def test_run_opened_again_needs_its_network_to_load_but_not_to_show_the_front(found: raprune.Run) -> None:
    opened = raprune.Run(found.folder)
    assert [row.candidate for row in opened.front] == [row.candidate for row in found.front]
    with pytest.raises(UsageError, match="the network is an object of a Python session"):
        opened.load()
    small = raprune.Run(found.folder, model=StripesNet()).load()
    for name, tensor in found.load().state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name]), name


def test_run_over_objects_resumes_with_the_same_objects_alone(found: raprune.Run, tmp_path: Path) -> None:
    cut_off = Store(tmp_path / "run")
    shutil.copytree(found.folder, cut_off.uri)
    cut_off.note({"state": "searching"})
    part = sorted(Path(cut_off.uri, "trials").iterdir())[-1]
    part.unlink()
    from raprune.orchestration.search import resume

    with in_process(), pytest.raises(UsageError, match="the data are objects of a Python session"):
        resume(cut_off.uri, console=QUIET)
    with pytest.raises(UsageError, match="the run has object:Stripes, and now object:arrays"):
        searched(tmp_path / "other", train=arrays(300, seed=0), resume=cut_off.uri)
    with pytest.raises(StoreError, match="the data changed"):
        searched(tmp_path / "other", train=Stripes(300, seed=5), resume=cut_off.uri)
    again = searched(tmp_path / "other", resume=cut_off.uri)
    assert again.finished and again.best.candidate == found.best.candidate


def test_objects_that_fit_no_form_are_refused_by_name(tmp_path: Path) -> None:
    def refused(error: type[RapruneError], pattern: str, **changes: Any) -> None:
        with pytest.raises(error, match=pattern):
            searched(tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()

    refused(ModelError, "LockedNet cannot travel to the workers: TypeError: cannot pickle", model=LockedNet())
    refused(ModelError, "0.weight has no shape yet", model=nn.Sequential(nn.LazyConv2d(4, 3)))
    refused(UsageError, "model: a int is no network", model=5)
    refused(UsageError, "train: a dict is no data set", train={"train": arrays(10, 0)})
    refused(DataError, "an image is builtins.str|an image is str, not a tensor", train=[("a", 0), ("b", 1), ("c", 0)])
    refused(UsageError, "budget: flops 30: must be a number above 0 and at most 1", budget={"flops": 30})
    refused(UsageError, "search.trails: no such field. Did you mean search.trials", job={"search": {"trails": 5}})


def test_arrays_and_a_function_that_builds_the_network_are_searched_over(tmp_path: Path) -> None:
    images, labels = arrays(300, seed=0)
    weights = trained_net().state_dict()
    run = searched(
        tmp_path / "run",
        model=lambda: StripesNet(),
        weights=weights,
        train=(torch.from_numpy(images), torch.from_numpy(labels)),
        test=arrays(100, seed=1),
        job=SMALL | {"data": {"mean": [0.0], "std": [1.0]}},
        finalists=0,
    )
    assert Store(run.folder).record().job.model.name == "object:<lambda>"
    assert run.best.val_accuracy > 0.9 and (run.best.test_accuracy or 0) > 0.9


def test_loader_gives_its_data_set_and_its_collate_function() -> None:
    def doubled(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([2 * image for image, _ in items]), torch.tensor([label for _, label in items])

    from raprune.data.given import first_image, give_data

    data = Stripes(8, seed=0)
    given = give_data(DataLoader(data, batch_size=4, collate_fn=doubled))
    assert given.name == "object:Stripes"
    assert np.allclose(first_image(given).images[0], 2 * data[0][0].numpy())


@pytest.mark.nightly
def test_run_on_an_object_store_opens_and_shows_no_credentials(bucket: Bucket) -> None:
    uri = bucket.uri("folder/run", user=f"key:{SECRET}@")
    make_run(uri)
    run = raprune.Run(uri)
    assert len(run.front) >= 1 and run.pick({"flops": 0.3}).flops_fraction <= 0.3
    assert SECRET not in repr(run) + run._repr_html_() + run.folder
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
