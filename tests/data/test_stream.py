from __future__ import annotations

import io
import pickle
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import torch
from moto.server import ThreadedMotoServer
from PIL import Image
from rich.console import Console

from raprune.checks.job import check
from raprune.data import Dataset, load_data, shuffle, sorted_stream
from raprune.data.arrays import Split
from raprune.data.batches import DeviceSplit
from raprune.data.ranks import Ranks
from raprune.data.shuffle import POOL_BYTES, mixed, pool_size
from raprune.data.stream import HashRule, StreamSource, ThreadReader
from raprune.data.streamed import StreamedSplit
from raprune.errors import DataError, UsageError
from raprune.pruning.workload import build_workload, train_dense
from raprune.spec.job import DataSpec, SearchSpec
from raprune.spec.toml import load_spec
from raprune.training.epoch import Epoch
from raprune.training.evaluate import evaluate
from tests.streams import digits, write_images, write_parts


def load(train: str, *, name: str = "parquet", seed: int = 0, **fields: object) -> Dataset:
    given = {"name": name, "train": train, "stream": True, "resident_images": 100, **fields}
    return load_data(DataSpec.model_validate(given), seed=seed)


@pytest.fixture(scope="module", params=["parquet", "imagefolder"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("digits") / "train"
    write = write_parts if request.param == "parquet" else write_images
    return load(write(folder, digits()), name=request.param)


def stream_of(data: Dataset) -> StreamSource:
    assert data.stream is not None
    return data.stream


def split_of(data: Dataset) -> StreamedSplit:
    sample = DeviceSplit.place(data.train, data.mean, data.std, "cpu")
    return StreamedSplit(stream_of(data), ThreadReader(), sample)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counted(blocks: Iterator[Split]) -> Counter[bytes]:
    return Counter(image.tobytes() for block in blocks for image in block.images)


def read(source: StreamSource, *, seed: int = 0, rank: int = 0, size: int = 1) -> Counter[bytes]:
    return counted(ThreadReader().blocks(source, seed=seed, rank=rank, size=size))


def test_every_row_is_either_trained_on_or_validation_and_never_both(data: Dataset) -> None:
    everything = load_data(DataSpec(name="digits"), seed=0)
    rows = counted(iter([everything.train, everything.validation]))
    trained, validation = read(stream_of(data)), counted(iter([data.validation]))
    assert trained + validation == rows
    assert not set(trained) & set(validation)
    assert trained.total() == stream_of(data).count
    assert abs(len(data.validation) / rows.total() - 0.2) < 0.05


def test_load_data_streamed_keeps_a_sample_of_the_training_images(data: Dataset) -> None:
    sample = counted(iter([data.train]))
    assert len(data.train) == 100
    assert sample <= read(stream_of(data))
    assert len(set(data.train.labels.tolist())) == 10, "not the first classes only"
    pixels = data.train.images / 255
    assert data.mean == pytest.approx((pixels.mean(),), abs=1e-12)


def test_labels_stay_with_their_images(data: Dataset) -> None:
    everything = load_data(DataSpec(name="digits"), seed=0)
    label_of = {
        image.tobytes(): int(label)
        for split in (everything.train, everything.validation)
        for image, label in zip(split.images, split.labels, strict=True)
    }
    blocks = [*ThreadReader().blocks(stream_of(data), seed=3, rank=0, size=1), data.train, data.validation]
    for block in blocks:
        assert [label_of[image.tobytes()] for image in block.images] == block.labels.tolist()


def test_validation_does_not_depend_on_the_order_of_the_rows_or_on_their_files(tmp_path: Path) -> None:
    table = digits()
    forward = load(write_parts(tmp_path / "a", table))
    backward = load(write_parts(tmp_path / "b", table.take(pa.array(range(len(table)))[::-1]), parts=2, row_group=99))
    other = load(write_parts(tmp_path / "a", table), seed=1)
    assert np.array_equal(forward.validation.images, backward.validation.images)
    assert np.array_equal(forward.train.images, backward.train.images)
    assert counted(iter([forward.validation])) != counted(iter([other.validation]))


def test_copies_of_an_image_lie_on_the_same_side(tmp_path: Path) -> None:
    table = digits().slice(0, 300)
    data = load(write_parts(tmp_path, pa.concat_tables([table, table, table])))
    assert set(counted(iter([data.validation])).values()) == {3}
    assert not set(counted(iter([data.validation]))) & set(read(stream_of(data)))


def test_validation_held_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raprune.data.division.VALIDATION_IMAGES", 40)
    data = load(write_parts(tmp_path, digits()))
    assert 20 < len(data.validation) < 60
    assert stream_of(data).count == 1257 - len(data.validation), "the rest is trained on"


def test_streamed_data_with_its_own_validation_trains_on_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation = write_parts(tmp_path / "train", digits()), write_parts(tmp_path / "validation", digits("test"))
    data = load(train, validation=validation)
    assert stream_of(data).count == read(stream_of(data)).total() == 1257
    everything = load_data(DataSpec(name="digits"), seed=0)
    assert everything.test is not None
    assert counted(iter([data.validation])) == counted(iter([everything.test]))
    monkeypatch.setattr("raprune.data.VALIDATION_IMAGES", 40)
    assert len(load(train, validation=validation).validation) == 40


def test_max_images_limits_what_is_used(tmp_path: Path) -> None:
    data = load(write_parts(tmp_path, digits()), max_images=400)
    used = stream_of(data).count + len(data.validation)
    assert abs(used - 400) < 60
    assert read(stream_of(data)).total() == stream_of(data).count


def test_an_epoch_shows_every_training_image_once_in_an_order_that_the_seed_repeats(data: Dataset) -> None:
    split = split_of(data)
    first, again, other = (
        [y for _, y in split.shuffled(64, generator)] for generator in (seeded(), seeded(), seeded(1))
    )
    sizes = [len(y) for y in first]
    assert sum(sizes) == len(split) and set(sizes[:-1]) == {64}
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    pixels = Counter(
        ((x[:, 0] * data.std[0] + data.mean[0]) * 255).round().to(torch.uint8).numpy().tobytes()
        for x, _ in split.shuffled(1, seeded())
    )
    assert sum((pixels & read(stream_of(data))).values()) >= len(split) - 1, "but for one that joins another"


def test_the_next_epoch_has_another_order(data: Dataset) -> None:
    generator, split = seeded(), split_of(data)
    one, two = (torch.cat([y for _, y in split.shuffled(64, generator)]) for _ in range(2))
    assert not torch.equal(one, two)
    assert torch.equal(one.sort().values, two.sort().values)


def test_images_come_augmented_and_normalised(data: Dataset) -> None:
    split = split_of(data)
    plain, moved = (next(iter(split.shuffled(64, seeded(), augment))) for augment in ("none", "shift"))
    assert torch.equal(plain[1], moved[1]) and not torch.equal(plain[0], moved[0])
    assert plain[0].dtype == torch.float32 and abs(float(plain[0].mean())) < 0.2


@pytest.mark.parametrize("size", [2, 3])
def test_processes_read_rows_of_their_own(data: Dataset, size: int) -> None:
    shares = [read(stream_of(data), rank=rank, size=size) for rank in range(size)]
    assert sum(shares, Counter()) == read(stream_of(data))
    assert max(share.total() for share in shares) < 1.2 * min(share.total() for share in shares)


def test_whole_pieces_are_dealt_out_where_there_are_enough(tmp_path: Path) -> None:
    source = stream_of(load(write_parts(tmp_path, digits(), row_group=7)))
    both = [source.pieces(seed=0, rank=rank, size=2) for rank in range(2)]
    assert {len(piece) for piece in both[0]} <= {6, 7}
    assert sorted(np.concatenate(both[0] + both[1]).tolist()) == list(range(1257))


def test_streamed_split_several_ranks_get_equally_many_batches(data: Dataset) -> None:
    split = split_of(data)
    sizes = [[len(y) for _, y in split.shuffled(64, seeded(), "shift", Ranks(rank, 3))] for rank in range(3)]
    assert [sum(batch) for batch in zip(*sizes, strict=True)][:-1] == [64] * (len(sizes[0]) - 1)
    assert len(sizes[0]) == -(-len(split) // 64)


def test_a_reader_that_is_left_early_ends(data: Dataset) -> None:
    blocks = ThreadReader().blocks(stream_of(data), seed=0, rank=0, size=1)
    next(blocks)
    blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_a_streamed_data_set_survives_pickling(data: Dataset) -> None:
    copy = pickle.loads(pickle.dumps(data))
    assert copy.fingerprint == data.fingerprint
    assert read(stream_of(copy), seed=5) == read(stream_of(data), seed=5)


def test_other_files_give_another_fingerprint(tmp_path: Path) -> None:
    table = digits()
    known = {load(write_parts(tmp_path / "a", table)).fingerprint, load(write_parts(tmp_path / "a", table)).fingerprint}
    known.add(load(write_parts(tmp_path / "b", table)).fingerprint)
    assert len(known) == 1, "where they lie does not matter"
    known.add(load(write_parts(tmp_path / "c", table.slice(1))).fingerprint)
    known.add(load(write_parts(tmp_path / "d", table, row_group=50)).fingerprint)
    labels = table.set_column(1, "label", pa.array([9 - label for label in table["label"].to_pylist()]))
    known.add(load(write_parts(tmp_path / "e", labels)).fingerprint)
    known.add(load(str(tmp_path / "a"), seed=1).fingerprint)
    assert len(known) == 5


@pytest.mark.parametrize(("is_sorted", "row_group", "mixes"), [(False, 70, True), (True, 500, False), (True, 10, True)])
def test_files_sorted_by_class_in_pieces_as_large_as_the_pool_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sorted: bool, row_group: int, mixes: bool
) -> None:
    monkeypatch.setattr(shuffle, "POOL_IMAGES", 100)
    table = digits().sort_by("label") if is_sorted else digits()
    data = load(write_parts(tmp_path / "train", table, row_group=row_group))
    said = sorted_stream(data)
    assert (data.mixing > 0.7, said is None) == (mixes, mixes)
    assert mixes or (said or "").startswith("The training files are sorted by class: 100 images that the stream mixes")


def test_places_are_uniform_and_depend_on_the_seed() -> None:
    images = [bytes([i % 256, i // 256]) for i in range(4000)]
    places = HashRule(0, 0.25).places(images)
    assert places.min() >= 0 and places.max() < 1
    assert np.abs(np.histogram(places, 10, (0, 1))[0] - 400).max() < 90
    assert abs(HashRule(0, 0.25).trained(images).mean() - 0.75) < 0.03
    assert not np.array_equal(places, HashRule(1, 0.25).places(images))


def test_parts_in_a_bucket_are_read_as_on_disk(tmp_path: Path) -> None:
    table = digits().slice(0, 300)
    write_parts(tmp_path, table)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/data", method="PUT")).close()
        uri = f"s3://key:secret@data/digits?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        filesystem, folder = pafs.FileSystem.from_uri(uri)
        pafs.copy_files(str(tmp_path), folder, destination_filesystem=filesystem)
        there, here = load(uri), load(str(tmp_path))
        assert there.fingerprint == here.fingerprint
        assert read(pickle.loads(pickle.dumps(stream_of(there)))) == read(stream_of(here))
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["digits", "cifar10", "tests.streams:digits"])
def test_load_data_stream_of_data_without_files_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"data\.stream is set, but data\.name .* cannot be streamed") as caught:
        load_data(DataSpec(name=name, stream=True), seed=0)
    assert "parquet, imagefolder" in caught.value.hint


def broken(table: pa.Table, row: int, content: bytes) -> pa.Table:
    rows = table.to_pylist()
    rows[row]["image"]["bytes"] = content
    return pa.Table.from_pylist(rows, schema=table.schema)


def test_load_data_streamed_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    train = write_parts(tmp_path, broken(digits(), 500, b"not a picture"))
    with pytest.raises(DataError, match="row 500 cannot be decoded"):
        load(train)


def test_an_image_of_another_size_is_refused_before_any_training(tmp_path: Path) -> None:
    images = write_images(tmp_path / "all", digits())
    (tmp_path / "all" / "3" / "00003.png").write_bytes(larger())
    with pytest.raises(DataError, match="is 9x12, the first is 8x8") as caught:
        load(images, name="imagefolder")
    assert "data.image_size" in caught.value.hint
    assert load(images, name="imagefolder", image_size=8).image_shape == (1, 8, 8)


def larger() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((9, 12), np.uint8)).save(file, format="PNG")
    return file.getvalue()


def test_an_image_that_is_cut_short_is_named_when_it_is_read(tmp_path: Path) -> None:
    table = digits()
    content = table["image"][500]["bytes"].as_py()
    data = load(
        write_parts(tmp_path, broken(table, 500, content[: len(content) // 2])),
        resident_images=1,
        validation_fraction=0.01,
    )
    with pytest.raises(DataError, match="row 500 cannot be decoded"):
        read(stream_of(data))


def test_files_that_vanish_are_an_error_that_says_so(tmp_path: Path) -> None:
    data = load(write_images(tmp_path / "all", digits()), name="imagefolder")
    (tmp_path / "all" / "3" / "00003.png").unlink()
    with pytest.raises(DataError, match=r"00003\.png cannot be read: No such file"):
        read(stream_of(data))


def test_too_few_images_to_validate_on_are_refused(tmp_path: Path) -> None:
    train = write_parts(tmp_path, digits().slice(0, 10), parts=1)
    with pytest.raises(DataError, match="0 for validation"):
        load(train, validation_fraction=0.001)


def numbered(count: int, block: int) -> Iterator[Split]:
    for start in range(0, count, block):
        numbers = np.arange(start, min(start + block, count))
        yield Split(np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (len(numbers), 1, 2, 2)), numbers)


@pytest.mark.parametrize("block", [1, 7, 40, 1000])
def test_pool_any_block_size_yields_every_image_once(block: int) -> None:
    drawn = list(mixed(numbered(200, block), [30] * 6 + [20], capacity=64, seed=0))
    assert [len(part) for part in drawn] == [30] * 6 + [20]
    labels = np.concatenate([part.labels for part in drawn])
    assert sorted(labels.tolist()) == list(range(200))
    assert all(np.array_equal(part.images[:, 0, 0, 0], part.labels.astype(np.uint8)) for part in drawn)
    assert labels[:30].max() < 64, "no more were in the pool"
    again = np.concatenate([part.labels for part in mixed(numbered(200, 13), [30] * 6 + [20], capacity=64, seed=0)])
    assert np.array_equal(labels, again), "the blocks' sizes do not matter"


def test_the_pool_takes_no_more_than_it_gives() -> None:
    taken = []

    def watched() -> Iterator[Split]:
        for part in numbered(200, 10):
            taken.append(len(part))
            yield part

    assert sum(len(part) for part in mixed(watched(), [16, 16], capacity=64, seed=0)) == 32
    assert sum(taken) == 40


def test_the_pool_is_bounded_in_bytes_and_holds_two_batches() -> None:
    assert pool_size(3 * 224 * 224, 128) * 3 * 224 * 224 <= POOL_BYTES
    assert pool_size(10**9, 128) == 256


def test_workload_streamed_trains_on_the_stream_and_calibrates_on_the_sample(data: Dataset) -> None:
    spec = SearchSpec.model_validate({"dense": {"epochs": 4, "batch_size": 32, "lr": 0.2}})
    workload = build_workload(spec, data=data, device="cpu")
    assert len(workload.sample(1000, torch.Generator())) == 100
    assert len(workload.training) == stream_of(data).count == data.num_train
    train_dense(workload, spec)
    assert evaluate(workload.model, workload.validation).accuracy > 0.8


class Kept:
    """A checkpoint in memory."""

    content: bytes | None = None

    def load(self) -> bytes | None:
        return self.content

    def is_due(self) -> bool:
        return True

    def save(self, content: bytes) -> None:
        self.content = content


def test_stream_training_that_was_interrupted_resumes_in_the_same_order(data: Dataset) -> None:
    spec = SearchSpec.model_validate({"dense": {"epochs": 3, "batch_size": 64, "lr": 0.1}})
    whole, cut_off, again = (build_workload(spec, data=data, device="cpu") for _ in range(3))
    train_dense(whole, spec)
    kept = Kept()

    def fall(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dense(cut_off, spec, checkpoints=kept, on_epoch=fall)
    train_dense(again, spec, checkpoints=kept)
    assert again.weights_hash == whole.weights_hash


def test_check_of_streamed_data_prints_the_number_of_images_in_memory(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    fields = {"name": "parquet", "train": write_parts(tmp_path, digits()), "stream": True, "resident_images": 100}
    check(load_spec(None, {f"data.{field}": value for field, value in fields.items()}), console=console)
    assert isinstance(console.file, io.StringIO)
    assert "training (streamed, 100 of them in memory), " in console.file.getvalue()
