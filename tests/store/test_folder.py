"""The store: what goes in comes out, whole or not at all, on a disk and on S3."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from raprune.errors import StoreError
from raprune.records import Candidate, Metrics, Proposal, Stage, Trial, TrialState
from raprune.spec.budget import Budget
from raprune.store.folder import Store
from raprune.store.record import RunRecord
from raprune.store.retry import Patience
from raprune.store.rows import SCHEMA


def complete(number: int, *, stage: Stage = Stage.SEARCH) -> Trial:
    proposal = Proposal(number=number, method="l2", allocation="uniform", target=Budget(flops=0.3), stage=stage)
    return Trial(
        trial_id=proposal.trial_id,
        proposal=proposal,
        state=TrialState.COMPLETE,
        candidate=Candidate("l2", {"conv1": (0, number + 1)}),
        metrics=Metrics(accuracy=0.9, loss=0.3, flops=100, params=10, flops_fraction=0.3, params_fraction=0.2),
    )


def test_trials_stored_and_read_are_equal_and_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.create(RunRecord.model_validate({"seed": 3}))
    failed = Trial(
        trial_id="search-00002",
        proposal=Proposal(
            number=2, method="l1", allocation="ratios", target=Budget(flops=0.2), keep_ratios={"conv1": 0.5}
        ),
        state=TrialState.FAILED,
        error="out of memory\nin conv1",
    )
    store.append([complete(0), failed])
    store.append([complete(1)])
    store.append([complete(0, stage=Stage.FINETUNE)])
    expected = [complete(0), failed, complete(1), complete(0, stage=Stage.FINETUNE)]
    assert store.trials() == expected
    assert Store(tmp_path / "run").trials() == expected
    assert pickle.loads(pickle.dumps(store)).trials() == expected
    assert store.run() == {"seed": 3}


def test_trials_folder_is_read_without_raprune(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(RunRecord())
    for number in range(3):
        store.append([complete(number)])
    assert pads.dataset(tmp_path / "trials").to_table()["trial_id"].to_pylist() == [
        "search-00000",
        "search-00001",
        "search-00002",
    ]
    assert pq.read_table(tmp_path / "trials").schema.equals(SCHEMA)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "trials", "writers"]


def test_run_without_records_has_no_trials(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(RunRecord())
    store.append([])
    assert store.trials() == []
    assert store.names("models") == []


def test_trial_recorded_twice_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(RunRecord())
    store.append([complete(0)])
    for again in (store, Store(tmp_path)):
        with pytest.raises(StoreError, match="search-00000 is recorded already"):
            again.append([complete(1), complete(0)])
    with pytest.raises(StoreError, match="search-00004"):
        store.append([complete(4), complete(4)])
    assert [trial.trial_id for trial in store.trials()] == ["search-00000"]


def test_folder_of_a_run_under_way_that_is_gone_is_waited_for_and_never_made_again(tmp_path: Path) -> None:
    """As when the disk that holds it is unmounted: what is written then must not land on the disk below."""
    run, away = tmp_path / "run", tmp_path / "away"
    Store(run).create(RunRecord())
    said: list[str | None] = []
    store = Store(run).patient(Patience(total_s=30), said.append)
    store.append([complete(0)])
    run.rename(away)
    back = threading.Timer(1.0, lambda: away.rename(run))
    back.start()
    began = time.monotonic()
    store.append([complete(1)])
    back.join()
    assert 1.0 <= time.monotonic() - began < 15
    assert Store(run).trials() == [complete(0), complete(1)]
    assert len(said) == 2 and said[0] and "the folder is gone" in said[0] and said[1] is None
    run.rename(away)
    hasty = pickle.loads(pickle.dumps(Store(run).patient(Patience(total_s=0.2, first_s=0.1))))
    for act in (lambda: hasty.append([complete(2)]), hasty.trials, lambda: hasty.names("trials")):
        with pytest.raises(StoreError, match=r"tried \d times"):
            act()
    assert not run.exists()


def test_error_that_needs_a_person_is_raised_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path).patient(Patience(total_s=60))
    (tmp_path / "models").write_text("")
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot write"):
        store.write_bytes("models/a/weights", b"")
    assert time.monotonic() - began < 1


def test_second_writer_overwrites_nothing(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    first.create(RunRecord())
    second.append([complete(0)])
    first.append([complete(1)])
    for number in (1, 2, 3):
        with pytest.raises(StoreError, match="another process writes this run"):
            second.append([replace(complete(number), worker="second")])
    first.append([complete(4)])
    # A writer learns with its next part that it was replaced; that part is the last one that it writes.
    assert [part.first for part in first.parts()] == [0, 1, 1, 2]
    assert [trial.proposal.number for trial in Store(tmp_path).trials()] == [0, 1, 4], "each once"


def test_lock_of_a_run_is_held_until_its_process_ends_or_dies(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(RunRecord())
    program = f"""
from raprune.store.folder import Store
with Store({os.fspath(tmp_path)!r}).locked():
    print("locked", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(StoreError, match=rf"another process works on this run .*process {other.pid}\)"):
            store.locked().__enter__()
        other.kill()
        other.wait()
    with store.locked():
        pass
    with store.locked():
        pass


def test_create_refuses_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    Store(tmp_path).create(RunRecord.model_validate({"seed": 1}))
    with pytest.raises(StoreError, match="raprune resume") as caught:
        Store(tmp_path).create(RunRecord.model_validate({"seed": 2}))
    assert "--output" in caught.value.hint
    assert Store(tmp_path).run() == {"seed": 1}


def test_folder_without_run_json_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreError, match="not the folder of a run"):
            Store(folder).run()


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_damaged_run_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match=r"run\.json: damaged"):
        Store(tmp_path).run()


def test_part_that_lacks_a_column_is_read_with_nulls(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(RunRecord())
    for number in range(3):
        store.append([complete(number)])
    path = tmp_path / "trials" / store.parts()[1].name
    pq.write_table(pq.read_table(path).drop_columns(["rung", "zeros", "cuts"]), path)
    table = store.table()
    assert table.schema == SCHEMA and table["trial_id"].to_pylist() == [complete(n).trial_id for n in range(3)]
    assert [row["rung"] for row in store.rows(["rung"])] == [complete(0).proposal.rung, None, complete(2).proposal.rung]
    assert {trial.proposal.cuts for trial in store.trials()} == {1}
    assert store.table(["zeros", "number"]).column_names == ["zeros", "number"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"PAR1 cut off",
        lambda good: good[:4] + bytes(60) + good[64:],
        lambda good: good[:-200] + bytes(100) + good[-100:],
    ],
    ids=["cut off", "in its values", "in its description"],
)
def test_damaged_part_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = Store(tmp_path)
    store.create(RunRecord())
    store.append([complete(0)])
    store.append([complete(1)])
    path = tmp_path / "trials" / store.parts()[1].name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=r"part-000001-\w+\.parquet") as caught:
        store.trials()
    assert "damaged" in caught.value.hint


def test_create_where_a_file_stands_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write") as caught:
        Store(tmp_path / "file" / "run").create(RunRecord())
    assert "--output" in caught.value.hint


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"report/test\.json: cannot read"):
        Store(tmp_path).read_json("report/test.json")


def test_uri_of_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StoreError, match="no filesystem opens this"):
        Store("carrier-pigeon://loft/run").is_run()


def test_name_of_a_store_has_no_credentials() -> None:
    store = Store("s3://key:secret@bucket/run?endpoint_override=localhost:9000&secret_key=abc")
    assert store.name == "s3://bucket/run"
    assert "secret" not in repr(store)


def test_write_without_room_leaves_the_records(tmp_path: Path) -> None:
    Store(tmp_path).create(RunRecord())
    Store(tmp_path).append([complete(0)])
    program = f"""
import resource
from raprune.errors import StoreError
from raprune.store.retry import Patience
from raprune.store.folder import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Store({os.fspath(tmp_path)!r}).write_bytes("models/a/weights", bytes(100_000))
except StoreError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "no room left" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "run.json", "trials", "writers"]
    assert Store(tmp_path).names("models/a") == []
    assert Store(tmp_path).trials() == [complete(0)]


def test_writer_killed_at_any_moment_leaves_whole_parts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(RunRecord())
    program = f"""
import sys
from raprune.store.folder import Store
from raprune.records import Proposal, Trial, TrialState
from raprune.spec.budget import Budget
store = Store({os.fspath(tmp_path)!r})
for number in range(10**6):
    proposal = Proposal(number=number, method="l2", allocation="uniform", target=Budget(flops=0.3))
    store.append([Trial(trial_id=proposal.trial_id, proposal=proposal, state=TrialState.COMPLETE, worker="w" * 10**5)])
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(20)]
        read_while_writing = len(store.trials())
        os.kill(writer.pid, signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().split()]
    recorded = [trial.proposal.number for trial in store.trials()]
    assert read_while_writing >= 20
    assert recorded == list(range(len(recorded)))
    assert set(told) <= set(recorded)
    Store(tmp_path).append([complete(len(recorded))])
    assert len(store.trials()) == len(recorded) + 1


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of an empty bucket on an S3 server of our own, without its folder."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/runs", method="PUT")).close()
    yield f"s3://key:secret@runs/{{}}?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()


def test_run_on_s3_is_stored_and_read(bucket: str) -> None:
    store = Store(bucket.format("folder/one"))
    store.create(RunRecord.model_validate({"seed": 3}))
    store.append([complete(0), complete(1)])
    store.append([complete(2)])
    store.write_bytes("report/front.png", b"png")
    again = pickle.loads(pickle.dumps(store))
    assert again.trials() == [complete(0), complete(1), complete(2)]
    assert again.run() == {"seed": 3}
    assert again.read_bytes("report/front.png") == b"png"
    assert [part.numbers for part in again.parts()] == [range(1), range(1, 2)]
    with pytest.raises(StoreError, match="holds a run already"):
        again.create(RunRecord())
    with pytest.raises(StoreError, match="is recorded already"):
        again.append([complete(1)])


@pytest.mark.nightly
def test_s3_that_is_away_is_waited_for() -> None:
    """The server of a bucket is stopped, and started again on its port; what it held is there again."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/away", method="PUT")).close()
    said: list[str | None] = []
    uri = f"s3://key:hush@away/run?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    Store(uri).create(RunRecord.model_validate({"seed": 3}))
    store = Store(uri).patient(Patience(total_s=60), said.append)
    store.append([complete(0)])
    server.stop()
    with pytest.raises(StoreError, match=r"cannot read: .*NETWORK_CONNECTION") as caught:
        Store(uri).run()
    assert "hush" not in str(caught.value)
    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    # Longer than what Amazon's client tries by itself.
    coming = threading.Timer(7.0, again.start)
    coming.start()
    store.append([complete(1)])
    coming.join()
    assert Store(uri).trials() == [complete(0), complete(1)]
    again.stop()
    assert len(said) == 2 and said[0] and "s3://away/run does not answer" in said[0] and said[1] is None
    assert "hush" not in said[0]


def test_json_that_grows_on_s3_while_it_is_read_is_read_whole(bucket: str) -> None:
    lengths = (1, 2_000)
    store, stop = Store(bucket.format("run")), threading.Event()
    store.write_json("list.json", [0] * lengths[0])

    def write() -> None:
        writer = Store(bucket.format("run"))
        while not stop.is_set():
            for length in lengths[::-1]:
                writer.write_json("list.json", [0] * length)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        # Without another try about one read in four got a part.
        assert {len(store.read_json("list.json")) for _ in range(60)} <= set(lengths)
    finally:
        stop.set()
        thread.join()


def test_missing_run_or_bucket_on_s3_is_named(bucket: str) -> None:
    with pytest.raises(StoreError, match="not the folder of a run"):
        Store(bucket.format("nothing")).run()
    with pytest.raises(StoreError, match="cannot write"):
        Store(bucket.format("x").replace("@runs/", "@no-such-bucket/")).create(RunRecord())


def test_run_json_of_any_name_is_plain_json(tmp_path: Path) -> None:
    Store(tmp_path).create(RunRecord.model_validate({"name": "größe", "dense": {"flops": 10}}))
    assert json.loads((tmp_path / "run.json").read_text()) == {"name": "größe", "dense": {"flops": 10}}


def test_removed_folder_goes_with_its_content_and_nothing_beside_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for rel in ("train/group/marker", "train/file", "trained/file"):
        store.write_bytes(rel, b"x")
    store.remove_folder("train")
    store.remove_folder("train")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == ["trained/file"]
    filesystem, path = store.location
    assert filesystem.get_file_info(f"{path}/trained/file").size == 1
