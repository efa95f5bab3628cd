"""The shard reader: its index and cache, and what it makes of shards from strangers, opened through the DataModule."""

import contextlib
import json
import os
import stat
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st

from hoi_lightning.data import index as index_file
from hoi_lightning.data.datamodule import HoiDataModule
from hoi_lightning.data.decode import decode_mask, encode_mask, jpeg_into, mask_into
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.data.sample import decode
from hoi_lightning.data.shard import BLOCK
from hoi_lightning.errors import InputError
from tests import bad_shards as bad
from tests.tiny import write_shards

COUNT = 25


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "s", {"train": COUNT, "val": 3}, size=bad.SIDE)


def opened(folder: Path | str, **options: Any) -> HoiDataModule:
    """A DataModule as `fit` has it before the first step."""
    data = HoiDataModule(folder, batch_size=4, num_workers=0, **options)
    data.setup("fit")
    return data


def read(data: HoiDataModule) -> list[str]:
    """Keys of one epoch."""
    return [key for batch in data.train_dataloader() for key in batch["key"]]


def test_plain_webdataset_reads_the_same_samples(shards: Path) -> None:
    index = ShardIndex(shards, "val")
    stream = wds.WebDataset(sorted(str(p) for p in shards.glob("val-*.tar")), shardshuffle=False)
    for i, record in enumerate(stream):
        assert record["__key__"] == index.keys[i] == index.key(i)
        expected = decode({k: v for k, v in record.items() if not k.startswith("__")})
        np.testing.assert_array_equal(index.sample(i, ("hoi",)).hoi, expected.hoi)
        assert index.info(i) == expected.info
    assert i + 1 == len(index)
    np.testing.assert_array_equal(index.layouts()[i], expected.info.layout.to_tensor())


def test_an_index_is_built_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ShardIndex(folder, "train")
    monkeypatch.setattr(index_file, "build", None)
    again = ShardIndex(folder, "train")
    assert again.keys == first.keys
    np.testing.assert_array_equal(again.layouts(), first.layouts())


@pytest.mark.parametrize("spoil", ["cut", "a bit", "empty", "not JSON", "another manifest", "another time"])
def test_a_stale_or_broken_index_is_built_anew(folder: Path, spoil: str) -> None:
    expected = ShardIndex(folder, "train").keys
    cache = folder / ".train.index"
    data = bytearray(cache.read_bytes())
    if spoil == "another manifest":
        bad.rewrite(folder, lambda members: members[::-1])  # the members of each sample, and the samples
        expected = ShardIndex(folder, "train").keys
        assert expected != sorted(expected)
        return
    if spoil == "another time":
        os.utime(folder / bad.SHARD, ns=(1, 1))
    elif spoil == "cut":
        cache.write_bytes(data[:-7])
    elif spoil == "a bit":
        data[-100] ^= 4
        cache.write_bytes(data)
    else:
        cache.write_bytes(b"" if spoil == "empty" else b"[]\n")
    assert ShardIndex(folder, "train").keys == expected
    assert json.loads(cache.read_bytes().split(b"\n")[0])["count"] == COUNT


@given(flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), min_size=1, max_size=3))
def test_no_flipped_bit_of_an_index_is_believed(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        write_shards(folder, {"train": 3})
    expected = [ShardIndex(folder, "train").find(i)[1].tobytes() for i in range(3)]
    cache = folder / ".train.index"
    data = bytearray(cache.read_bytes())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    cache.write_bytes(data)
    assert [ShardIndex(folder, "train").find(i)[1].tobytes() for i in range(3)] == expected


def test_where_nothing_may_be_written_the_index_is_in_the_user_s_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = index_file.save

    def read_only(index: Any, place: Path, *rest: Any) -> None:
        if place.parent == folder:
            raise PermissionError
        save(index, place, *rest)

    monkeypatch.setattr(index_file, "save", read_only)
    expected = ShardIndex(folder, "train").keys
    assert not list(folder.glob(".*"))
    assert len(list((tmp_path / "cache" / "hoi_lightning").iterdir())) == 1
    monkeypatch.setattr(index_file, "build", None)
    assert ShardIndex(folder, "train").keys == expected


@pytest.mark.parametrize("name", bad.hostile(Path()))
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_hostile_members_are_refused_by_name(folder: Path, tmp_path: Path, name: str, on_error: Any) -> None:
    change, complaint = bad.hostile(tmp_path / "canary")[name]
    bad.rewrite(folder, change)
    with pytest.raises(InputError, match=complaint) as caught:
        opened(folder, on_error=on_error, max_bad_fraction=1)
    assert bad.SHARD in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_a_name_of_300_characters_is_refused(folder: Path) -> None:
    long = bad.member("x" * 300 + ".json", b"{}")
    bad.rewrite(folder, lambda members: [*members, long], tarfile.PAX_FORMAT)
    with pytest.raises(InputError, match="extended header"):
        opened(folder)


def test_a_member_that_claims_to_be_huge_is_refused(folder: Path) -> None:
    path = folder / bad.SHARD
    data = bytearray(path.read_bytes())
    data[124:136] = b"%011o\0" % (1 << 32)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    path.write_bytes(data)
    with pytest.raises(InputError, match="4294967296 bytes"):
        opened(folder)


def test_a_key_in_two_shards_is_refused(folder: Path) -> None:
    first = bad.read_members(folder / "train-000000.tar")
    key = bad.keys(first)[0]
    bad.rewrite(folder, lambda members: [*members, *(one for one in first if one[0].name.startswith(key))])
    bad.agree(folder, count=11)
    with pytest.raises(InputError, match=rf"{key} is in train-000000\.tar and train-000001\.tar"):
        opened(folder)


@pytest.mark.parametrize("kind", ["gzip", "named pipe", "folder", "missing"])
def test_what_is_no_tar_is_refused(folder: Path, kind: str) -> None:
    path = folder / bad.SHARD
    path.unlink()
    if kind == "gzip":
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(bad.member("ZY.json")[0])
    elif kind == "named pipe":
        os.mkfifo(path)
        assert stat.S_ISFIFO(path.stat().st_mode)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=rf"{bad.SHARD}.*copy the shard again"):
        opened(folder)


def edit(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["shards"][0].update(values)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (edit(name="../s/train-000000.tar"), "no name of a shard"),
        (edit(name="/etc/passwd"), "no name of a shard"),
        (edit(name="pipe:touch x"), "no name of a shard"),
        (edit(name="http://x/train-000000.tar"), "no name of a shard"),
        (edit(name="train-000001.tar"), "train-000001.tar twice"),
        (edit(split="secret"), "of split 'secret'"),
        (edit(count=-1), "-1 samples"),
        (edit(count="10"), "'10' samples"),
        (edit(sha256=None), "not an HO3Pairs manifest"),
        (lambda manifest: manifest.pop("size"), "'size'"),
        (lambda manifest: manifest.update(size=1 << 20), "size 1048576"),
        (lambda manifest: manifest.update(shards={}), "no train shard"),
    ],
)
def test_a_manifest_from_a_stranger(folder: Path, change: Callable[[Any], object], complaint: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=complaint):
        opened(folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"shards": [[]], "size": 64}'])
def test_a_manifest_that_is_none(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(InputError, match="not an HO3Pairs manifest"):
        opened(folder)


def truncate(share: float) -> Callable[[Path], object]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def cut_between(path: Path) -> None:
    """End the file behind the fourth sample's last member, where plain webdataset notices nothing."""
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
    fifth = bad.keys([(info, b"") for info in infos])[4]
    os.truncate(path, next(info for info in infos if info.name.startswith(fifth)).offset)


def flip(place: int) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 16
        path.write_bytes(data)

    return change


def flip_in_jpeg(path: Path) -> None:
    with tarfile.open(path) as tar:
        info = next(info for info in tar if info.name.endswith("hoi.jpg"))
    flip(info.offset_data + 2)(path)


@pytest.mark.parametrize(
    ("damage", "complaint", "lost"),
    [
        (truncate(0.4), "is cut off", range(5, 9)),
        (cut_between, "is cut off", range(6, 8)),
        (truncate(0), "is cut off", range(10, 11)),
        (flip(20), "checksum is wrong at byte 0", range(10, 11)),
        (flip_in_jpeg, r"_f00010: .*hoi\.jpg cannot be decoded", range(1, 2)),
        (flip(-1), "sha256 is not the manifest's", range(0, 1)),
    ],
)
def test_damage_names_shard_and_remedy_or_is_left_out(
    folder: Path, damage: Callable[[Path], object], complaint: str, lost: range
) -> None:
    damage(folder / bad.SHARD)
    with pytest.raises(InputError, match=rf"{bad.SHARD}.*{complaint}.*copy the shard again"):
        opened(folder)
    data = opened(folder, on_error="skip", max_bad_fraction=0.5)
    found = read(data)
    assert len(found) == len(set(found))
    assert COUNT - len(found) in lost
    assert any(bad.SHARD in text for text in data.skipped)
    with pytest.raises(InputError, match=r"--data\.max_bad_fraction"):
        opened(folder, on_error="skip", max_bad_fraction=0.01)


def change_json(**values: Any) -> Callable[[bad.Members], bad.Members]:
    def change(members: bad.Members) -> bad.Members:
        key = bad.keys(members)[2]
        record = json.loads(dict((info.name, data) for info, data in members)[f"{key}.json"])
        return bad.replace_member("json", json.dumps(record | values).encode())(members)

    return change


def without(extension: str) -> Callable[[bad.Members], bad.Members]:
    return lambda members: [one for one in members if one[0].name != f"{bad.keys(members)[2]}.{extension}"]


LAYOUT = {"a": 0.5, "x": 0.0, "y": 0.0, "b1": 1.0, "b2": 0.0}
WRONG: dict[str, tuple[Callable[[bad.Members], bad.Members], str]] = {
    "schema": (change_json(schema=9), "schema 9"),
    "key": (change_json(key="../../x"), "its json is that of"),
    "layout": (change_json(layout=LAYOUT | {"x": float("nan")}), "category or layout"),
    "layout text": (change_json(layout=LAYOUT | {"x": "0"}), "json|layout|float|str"),
    "category": (change_json(category=["Mug"]), "category or layout"),
    "keypoints": (change_json(keypoints=[[0, 1]] * 20), "21 points"),
    "a list": (bad.replace_member("json", b"[]"), "no sample record"),
    "nested": (bad.replace_member("json", b"[" * 100_000), "no sample record"),
    "no json": (without("json"), "no json member"),
    "no picture": (without("obj.jpg"), r"obj\.jpg is missing"),
    "no mask": (without("hand.png"), r"hand\.png is missing"),
} | {
    f"{extension} {name}": (bad.replace_member(extension, data), extension.replace(".", r"\."))
    for extension, cases in (("obj.jpg", bad.bad_jpegs()), ("hand.png", bad.bad_pngs()))
    for name, data in cases.items()
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_sample_names_its_key_or_is_left_out(folder: Path, name: str) -> None:
    change, complaint = WRONG[name]
    key = bad.keys(bad.read_members(folder / bad.SHARD))[2]
    bad.rewrite(folder, change)
    with pytest.raises(InputError, match=rf"{bad.SHARD}.*{key}.*({complaint}).*copy the shard again") as caught:
        read(opened(folder))
    assert "\n" not in str(caught.value)
    data = opened(folder, on_error="skip", max_bad_fraction=0.05)
    found = read(data)
    assert len(found) == len(set(found)) == COUNT - 1
    assert key not in found
    assert [key in text for text in data.skipped] == [True]


def test_a_batch_of_damaged_samples_takes_the_next_sound_one(folder: Path) -> None:
    bad.rewrite(folder, bad.replace_member("hoi.jpg", b""))
    data = HoiDataModule(folder, batch_size=1, num_workers=2, on_error="skip", max_bad_fraction=0.05)
    data.setup("fit")
    found = read(data)
    assert len(found) == COUNT
    assert len(set(found)) == COUNT - 1


def test_more_than_max_bad_fraction_stops_the_run(folder: Path) -> None:
    for _ in range(3):
        bad.rewrite(folder, lambda members: [(info, b"" if "hoi" in info.name else data) for info, data in members])
    data = opened(folder, on_error="skip", max_bad_fraction=0.2)
    with pytest.raises(InputError, match=r"of 25 samples are damaged.*max_bad_fraction 0\.2"):
        read(data)


def test_grey_and_progressive_jpegs_are_pictures() -> None:
    out = np.zeros((bad.SIDE, bad.SIDE, 3), np.uint8)
    for data in (bad.picture("L", "JPEG"), bad.picture("RGB", "JPEG", progressive=True)):
        out[:] = 0
        jpeg_into(data, out)
        assert out.std() > 10


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 1 << 32))
def test_masks_survive_whatever_their_size(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


@pytest.mark.parametrize(("mode", "depth"), [("1", 1), ("L", 8), ("P", 8), ("RGBA", 8), ("I;16", 16)])
def test_other_pngs_are_cut_at_half(mode: str, depth: int) -> None:
    mask = decode_mask(bad.picture(mode, "PNG"))
    assert mask.shape == (bad.SIDE, bad.SIDE)
    assert mask.dtype == bool


@given(st.data())
def test_no_damage_to_a_picture_is_more_than_a_value_error(data: st.DataObject) -> None:
    jpeg = data.draw(st.booleans())
    good = (
        bad.picture("RGB", "JPEG")
        if jpeg
        else data.draw(st.sampled_from([bad.picture("1", "PNG"), bad.picture("L", "PNG")]))
    )
    spoiled = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8)):
        if spoiled:
            spoiled[place % len(spoiled)] = value
    out = np.zeros((bad.SIDE, bad.SIDE, 3) if jpeg else (bad.SIDE, bad.SIDE), np.uint8 if jpeg else bool)
    with contextlib.suppress(ValueError):
        (jpeg_into if jpeg else mask_into)(bytes(spoiled), out)


def test_a_crafted_index_reaches_no_file_beyond_the_shards(folder: Path) -> None:
    """An index is no more trusted than the tars it lies beside."""
    ShardIndex(folder, "train")
    cache = folder / ".train.index"
    line, _, body = cache.read_bytes().partition(b"\n")
    header = json.loads(line)
    records = bytearray(body)
    struct.pack_into("<I", records, 4, 1 << 30)  # the first member's offset
    header["crc32"] = index_file.zlib.crc32(records)
    cache.write_bytes(json.dumps(header).encode() + b"\n" + records)
    assert ShardIndex(folder, "train").find(0)[1]["block"][0] < 1 << 30
