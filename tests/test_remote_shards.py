"""Shards behind a URL: the same samples, once each, fetched once, and trusted no more than local ones."""

import functools
import hashlib
import http.server
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch

from hoi_lightning.data import remote
from hoi_lightning.data.datamodule import HoiDataModule
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.errors import InputError
from tests import bad_shards as bad
from tests.tiny import write_shards

COUNT = 43


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and counts what is asked for."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine training shards: three groups."""
    return write_shards(tmp_path / "s", {"train": COUNT, "val": 7}, size=bad.SIDE, per_shard=5)


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    Quiet.asked.clear()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


@pytest.fixture(params=["http", "file", "memory"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "http":
        return request.getfixturevalue("server")
    if request.param == "file":
        return f"file://{folder}"
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.put(f"{folder}/", "/pairs/", recursive=True)
    return "memory://pairs"


def module(url: str | Path, tmp_path: Path, **options: Any) -> HoiDataModule:
    options = {"batch_size": 4, "num_workers": 2, "fields": ("hoi", "obj", "hand")} | options
    data = HoiDataModule(url, cache_dir=tmp_path / "cache", **options)
    data.setup("fit")
    return data


def epoch(data: HoiDataModule) -> list[dict[str, Any]]:
    return list(data.train_dataloader())


def keys(batches: list[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def test_remote_samples_are_the_local_ones_once_each(url: str, folder: Path, tmp_path: Path) -> None:
    batches = epoch(module(url, tmp_path))
    index = ShardIndex(folder, "train")
    assert sorted(keys(batches)) == sorted(index.keys)
    for batch in batches:
        for row, key in enumerate(batch["key"]):
            expected = index.sample(index.keys.index(key), ("hoi", "obj", "hand"))
            assert torch.equal(batch["hoi"][row].permute(1, 2, 0), torch.from_numpy(expected.hoi))
            assert torch.equal(batch["hand"][row, 0], torch.from_numpy(expected.hand))
            assert torch.equal(batch["layout"][row], expected.info.layout.to_tensor())
            assert batch["category"][row] == expected.info.category
            assert int(batch["index"][row]) == index.keys.index(key)


def test_each_tar_is_fetched_once(server: str, tmp_path: Path) -> None:
    loader = module(server, tmp_path).train_dataloader()
    first, second = list(loader), list(loader)
    epoch(module(server, tmp_path))
    tars = {path: count for path, count in Quiet.asked.items() if "train" in path}
    assert len(tars) == 9
    assert set(tars.values()) == {1}
    assert keys(first) != keys(second)


def test_a_large_tar_comes_from_a_server_without_ranges(server: str, folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["shards"][0]
    data = (folder / entry["name"]).read_bytes() + bytes(6 << 20)  # more than fsspec reads at a time
    (folder / entry["name"]).write_bytes(data)
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert sorted(keys(epoch(module(server, tmp_path)))) == sorted(ShardIndex(folder, "train").keys)


def test_going_on_gives_the_rest(folder: Path, tmp_path: Path) -> None:
    url = f"file://{folder}"
    straight = [keys([batch]) for batch in epoch(module(url, tmp_path))]
    for stop in (1, 5, len(straight) - 1):
        data = module(url, tmp_path / str(stop), num_workers=0)
        data.load_state_dict({"epoch": 0, "position": sum(map(len, straight[:stop]))})
        assert [keys([batch]) for batch in epoch(data)] == straight[stop:]


def test_a_group_of_tars_is_mixed(folder: Path, tmp_path: Path) -> None:
    batches = epoch(module(f"file://{folder}", tmp_path, batch_size=20))
    shards = [set((batch["index"] // 5).tolist()) for batch in batches]
    assert len(shards[0]) == remote.GROUP
    assert not shards[0] & shards[1]


def test_no_more_is_kept_than_there_is_room_for(folder: Path, tmp_path: Path) -> None:
    size = (folder / "train-000000.tar").stat().st_size
    data = module(f"file://{folder}", tmp_path, cache_gb=2.5 * size / 1e9)
    for _ in range(2):
        assert sorted(keys(epoch(data))) == sorted(ShardIndex(folder, "train").keys)
    data.index("train")._ahead.shutdown()  # it may be at the next tar
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2


def test_categories_are_not_repeated_from_a_url(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--data\.category_repeats: not for shards behind a URL .*leave it out"):
        module(folder.as_uri(), tmp_path, category_repeats={"Mug": 2}).train_dataloader()


def test_validation_and_layout_statistics(folder: Path, tmp_path: Path) -> None:
    data = module(f"file://{folder}", tmp_path)
    assert keys(list(data.val_dataloader())) == ShardIndex(folder, "val").keys
    mean, _ = data.layout_statistics()
    first = ShardIndex(folder, "train").layouts()[: 5 * remote.GROUP]
    np.testing.assert_allclose(mean, first.mean(0), rtol=1e-5)


@pytest.mark.parametrize("kind", ["flipped", "cut", "missing"])
def test_a_tar_that_is_not_the_manifest_s_is_not_read(
    folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    path = folder / bad.SHARD
    data = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    else:
        data[2000] ^= 1
        path.write_bytes(data if kind == "flipped" else data[:-100])
    url = f"file://{folder}"
    refusing = module(url, tmp_path)
    with pytest.raises(InputError, match=rf"{url}/{bad.SHARD}: cannot be fetched.*copy the shard again"):
        epoch(refusing)
    refusing.index("train")._ahead.shutdown()  # it may be at the next tar
    assert not list((tmp_path / "cache").glob("*.tmp"))
    skipping = module(url, tmp_path, on_error="skip", max_bad_fraction=0.2)
    assert len(keys(epoch(skipping))) == COUNT - 5
    assert all(bad.SHARD in text for text in skipping.skipped)


def test_a_tar_that_was_cut_in_the_cache_is_fetched_again(folder: Path, tmp_path: Path) -> None:
    url = f"file://{folder}"
    whole = sorted(keys(epoch(module(url, tmp_path))))
    for path in (tmp_path / "cache").glob("*.tar"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert sorted(keys(epoch(module(url, tmp_path)))) == whole


def test_a_server_that_fails_once_is_asked_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    data = module(f"file://{folder}", tmp_path, num_workers=0)
    files = data.index("train")._files
    failed = []

    class Flaky:
        def get_file(self, path: str, target: str) -> None:
            if path not in failed:
                failed.append(path)
                raise ConnectionResetError
            files.get_file(path, target)

    data.index("train")._files = Flaky()
    assert len(keys(epoch(data))) == COUNT
    assert len(failed) == 9


@pytest.mark.parametrize("name", ["pickle", "parent", "symbolic link", "member twice"])
def test_remote_members_are_refused_by_name(folder: Path, tmp_path: Path, name: str) -> None:
    change, complaint = bad.hostile(tmp_path / "canary")[name]
    bad.rewrite(folder, change)
    with pytest.raises(InputError, match=complaint):
        epoch(module(f"file://{folder}", tmp_path, on_error="skip", max_bad_fraction=1))
    assert not (tmp_path / "canary").exists()


def test_a_wrong_remote_sample_names_its_key_or_is_left_out(folder: Path, tmp_path: Path) -> None:
    key = bad.keys(bad.read_members(folder / bad.SHARD))[2]
    bad.rewrite(folder, bad.replace_member("json", b"[]"))
    with pytest.raises(InputError, match=rf"{bad.SHARD}, sample {key}.*no sample record"):
        epoch(module(f"file://{folder}", tmp_path))
    found = keys(epoch(module(f"file://{folder}", tmp_path, on_error="skip", max_bad_fraction=0.05)))
    assert sorted(found) == sorted({*found})
    assert len(found) == COUNT - 1
    assert key not in found


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("ftp://x/pairs", "one of https"),
        ("pipe://touch x", "one of https"),
        ("simplecache::http://x/pairs", "one of https"),
        ("pipe:touch canary", "no HO3Pairs shards there"),
        ("http://127.0.0.1:9/pairs", r"manifest\.json cannot be read"),
        ("memory://nowhere", r"manifest\.json cannot be read"),
    ],
)
def test_a_wrong_url_is_one_line(tmp_path: Path, where: str, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=complaint) as caught:
        module(where, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_two_copies_of_a_data_set_share_what_is_fetched(folder: Path, tmp_path: Path) -> None:
    epoch(module(f"file://{folder}", tmp_path))
    other = shutil.copytree(folder, tmp_path / "other")
    for tar in other.glob("train-*.tar"):
        tar.unlink()
    assert len(keys(epoch(module(f"file://{other}", tmp_path)))) == COUNT
