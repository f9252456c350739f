"""The page of a run on S3: the run grows, its server stops and starts again, and no credential is shown."""

from __future__ import annotations

import pytest

from raprune.store.folder import Store
from tests.factories import live_trial as trial
from tests.factories import make_live_run as make_run
from tests.page.served import served, wait_until
from tests.store.s3_server import CREDENTIALS, SECRET, Bucket


@pytest.mark.nightly
def test_run_on_s3_is_shown_while_it_grows_and_when_it_is_unreachable(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = make_run(bucket.uri("folder/run", user=f"key:{SECRET}@"))
    shown = f"s3://{bucket.name}/folder/run"
    with served(Store(store.uri), every_s=0.2) as page:
        run = page.get("/api/run")
        assert run.json["store"] == shown and run.json["away"] is None
        assert page.get("/api/trials").json["total"] == 8
        store.append([trial(60)])
        assert wait_until(lambda: page.get("/api/trials").json["total"] == 9)
        name = page.get("/api/trials/finetune-00000").json["trial"]["candidate"]
        assert page.get(f"/download/{name}/weights.safetensors").body == bytes(3_000_000)
        detail = page.get("/api/trials/finetune-00000")
        assert detail.json["curve"] and detail.json["download"]["bytes"] == 3_000_000
        bucket.stop()
        assert wait_until(lambda: page.get("/api/run").json["away"] is not None, 60)
        away = page.get("/api/run")
        assert away.json["away"]["error"].startswith(shown)
        assert page.get("/api/trials").json["total"] == 9
        bucket.start()
        assert wait_until(lambda: page.get("/api/run").json["away"] is None, 60)
        for answer in (run, away, detail, page.get("/download/nobody.zip")):
            assert SECRET.encode() not in answer.body and b"endpoint_override" not in answer.body
