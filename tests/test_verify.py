"""`verify`: silent about a sound folder, and every fault is named with its shard and key."""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from data_prep.__main__ import main
from tests import hoi4d_tree
from tests.whole_folder import Record, read_tar, spoil, spoil_json, write_folder, write_tar

SHARD = "train-000001.tar"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("verify") / "ho3pairs")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "ho3pairs")


def verify(folder: Path, capsys: pytest.CaptureFixture, workers: int = 1) -> tuple[int, list[str]]:
    status = main(["verify", str(folder), "--workers", str(workers)])
    return status, capsys.readouterr().out.splitlines()


def edit(records: list[Record], index: int = 0, **values: object) -> None:
    """Change fields of a sample's JSON; `layout_b1` is a field of the layout."""
    info = json.loads(records[index]["json"])
    for name, value in values.items():
        outer, _, inner = name.partition("layout_")
        if inner and not outer and inner != "iou":
            info["layout"][inner] = value
        else:
            info[name] = value
    records[index]["json"] = json.dumps(info).encode()


def png(size: tuple[int, int], mode: str = "1", colour: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims ten gigapixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


class Boom:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("a pickle was opened",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Boom()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_a_sound_folder_has_no_fault(sound: Path, capsys: pytest.CaptureFixture) -> None:
    status, lines = verify(sound, capsys)
    assert (status, lines) == (0, [f"{sound}: 15 samples in 4 shards, 6 tars: no fault"])


SAMPLE_FAULTS: dict[str, tuple[Callable[[Record], object], str]] = {
    "truncated": (lambda r: r.update({"obj.jpg": r["obj.jpg"][:300]}), "obj.jpg cannot be decoded"),
    "no picture": (lambda r: r.update({"hoi.jpg": b"GIF89a"}), "hoi.jpg cannot be decoded"),
    "size": (lambda r: r.update({"hand.png": png((32, 32))}), "hand.png is 32x32, not 48x48"),
    "mode": (lambda r: r.update({"object.png": png((48, 48), "L")}), "object.png has mode L, not 1"),
    "empty": (lambda r: r.update({"hand.png": png((48, 48), colour=0)}), "hand.png is empty"),
    "bomb": (lambda r: r.update({"hand.png": bomb()}), "hand.png"),
    "incomplete": (lambda r: r.pop("object.png"), "object.png missing"),
    "no record": (lambda r: r.pop("json"), "json missing"),
    "broken record": (lambda r: r.update({"json": b"{"}), "json"),
    "a list": (lambda r: r.update({"json": b"[]"}), "no sample record"),
    "nested": (lambda r: r.update({"json": b"[" * 100_000}), "no sample record"),
    "schema": (lambda r: edit([r], schema=9), "schema 9"),
    "key": (lambda r: edit([r], key="other"), "json says key 'other'"),
    "a": (lambda r: edit([r], layout_a=0), "0 < a"),
    "b": (lambda r: edit([r], layout_b1=0.7), "no unit vector"),
    "nan": (lambda r: edit([r], layout_x=float("nan")), "not five finite numbers"),
    "text": (lambda r: edit([r], layout_x="0"), "not five finite numbers"),
    "iou": (lambda r: edit([r], layout_iou=1.5), "layout_iou 1.5"),
    "box": (lambda r: edit([r], object_box=[10, 10, 5, 60]), "object_box"),
    "crop": (lambda r: edit([r], crop=[0, 0, 10, 20]), "no square window"),
    "keypoints": (lambda r: edit([r], keypoints=[[1, 2]]), "21 pairs"),
    "side": (lambda r: edit([r], hand_side="both"), "neither right nor left"),
    "sdedit": (lambda r: r.update({"sdedit.jpg": r["obj.jpg"]}), "sdedit_level is None"),
}


@pytest.mark.parametrize("name", SAMPLE_FAULTS)
def test_a_bad_sample_is_named(folder: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    change, words = SAMPLE_FAULTS[name]
    spoil(folder, SHARD, lambda records: change(records[2]))
    key = read_tar(folder / SHARD)[2]["__key__"]
    status, lines = verify(folder, capsys)
    assert status == 1
    assert any(line.startswith(f"{SHARD} {key}: ") and words in line for line in lines), lines


def test_all_faults_are_found_up_to_fifty_lines(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("train-000000.tar", SHARD):
        spoil(folder, name, lambda records: [edit(records, i, layout_iou=2, blur=-1) for i in range(5)])
    _, lines = verify(folder, capsys)
    assert sum("layout_iou" in line for line in lines) == sum("blur" in line for line in lines) == 10
    (folder / "dropped.jsonl").write_text("nothing\n" * 100)
    _, lines = verify(folder, capsys)
    assert len(lines) == 52
    assert lines[-2].startswith("… and ")
    assert int(lines[-1].split(": ")[-1].split()[0]) > 100


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def double(records: list[Record]) -> None:
    records[0] = records[1]


def swap(records: list[Record]) -> None:
    records[0], records[1] = records[1], records[0]


def other_layouts(records: list[Record], array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    records[0]["layouts.npy"] = buffer.getvalue()


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda f: flip(f / SHARD, -11_000), f"{SHARD}: sha256"),
    "shorter": (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-15_000]), f"{SHARD}: "),
    "missing": (lambda f: (f / SHARD).unlink(), f"{SHARD}: the file is missing"),
    "unlisted": (lambda f: shutil.copy(f / SHARD, f / "train-000009.tar"), "train-000009.tar: the manifest does not"),
    "a sample less": (lambda f: spoil(f, SHARD, lambda r: r.pop()), f"{SHARD}: 4 samples, the manifest says 5"),
    "a key twice": (lambda f: spoil(f, SHARD, double), "comes twice"),
    "a foreign member": (lambda f: spoil(f, SHARD, lambda r: r[0].update({"exe": b""})), "not part of a sample"),
    "a key of another shard": (
        lambda f: spoil(f, SHARD, lambda r: r.__setitem__(0, read_tar(f / "val-000000.tar")[0])),
        "the key is in train-000001.tar too",
    ),
    "an instance in two splits": (
        lambda f: spoil(f, SHARD, lambda r: edit(r, 0, category="Mug", instance="N10")),
        "Mug/N10 is in train and val",
    ),
    "other splits": (lambda f: spoil_json(f, "splits.json", lambda s: s.update({"Mug/N00": "test"})), "Mug/N00"),
    "an instance of nothing": (
        lambda f: spoil_json(f, "splits.json", lambda s: s.update({"Mug/N99": "val"})),
        "splits.json: Mug/N99 has no sample",
    ),
    "no splits": (lambda f: (f / "splits.json").unlink(), "splits.json: the file is missing"),
    "schema": (lambda f: spoil_json(f, "manifest.json", lambda m: m.update({"schema": 0})), "manifest.json: schema 0"),
    "a way out": (
        lambda f: spoil_json(f, "manifest.json", lambda m: m["shards"][0].update({"name": "../train-000000.tar"})),
        "manifest.json: name",
    ),
    "counts": (
        lambda f: spoil_json(f, "manifest.json", lambda m: m["counts"]["train"].update({"Mug": 1})),
        "manifest.json: counts 1 of Mug in train, the shards hold 6",
    ),
    "keypoints": (
        lambda f: spoil_json(f, "manifest.json", lambda m: m["keypoints"].update({"valid": 9})),
        "manifest.json: keypoints.valid is 9",
    ),
    "ledger": (
        lambda f: spoil_json(f, "manifest.json", lambda m: m["dropped"].update({"no-touch": 1})),
        "dropped.jsonl: 3 drops of no-touch, the manifest says 1",
    ),
    "no ledger": (lambda f: (f / "dropped.jsonl").unlink(), "dropped.jsonl: the file is missing"),
    "a lost frame": (
        lambda f: spoil_json(f, "manifest.json", lambda m: m["frames"].update({"seen": 99})),
        "but 99 frames were seen",
    ),
    "truth of other samples": (
        lambda f: spoil(f, "truth-val-000000.tar", swap),
        "truth-val-000000.tar: its keys are not those of val-000000.tar",
    ),
    "truth missing": (
        lambda f: spoil_json(f, "manifest.json", lambda m: m["truth"].pop()),
        "manifest.json: test-000000.tar has no truth",
    ),
    "truth of four numbers": (
        lambda f: spoil(f, "truth-val-000000.tar", lambda r: other_layouts(r, np.zeros((8, 4), np.float32))),
        "layouts.npy: float32 (8, 4), not float32 (N, 5)",
    ),
    "truth out of range": (
        lambda f: spoil(f, "truth-val-000000.tar", lambda r: other_layouts(r, np.zeros((8, 5), np.float32))),
        "layouts.npy: layout",
    ),
    "truth of fewer rules": (
        lambda f: spoil(
            f, "truth-val-000000.tar", lambda r: other_layouts(r, np.tile(np.float32([1, 0, 0, 0, 1]), (7, 1)))
        ),
        "rules.json: 8 draws of rules, 7 layouts",
    ),
    "a pickle": (
        lambda f: spoil(f, "truth-val-000000.tar", lambda r: r[0].update({"layouts.npy": pickled()})),
        "layouts.npy: object (1,), not float32 (N, 5)",
    ),
}


@pytest.mark.parametrize("name", FOLDER_FAULTS)
def test_a_bad_folder_is_described(folder: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    change, words = FOLDER_FAULTS[name]
    change(folder)
    status, lines = verify(folder, capsys)
    assert status == 1
    assert any(words in line for line in lines[:-1]), lines


def test_a_frame_is_kept_or_dropped_once(folder: Path, capsys: pytest.CaptureFixture) -> None:
    path = folder / "dropped.jsonl"
    kept = json.loads(read_tar(folder / SHARD)[0]["json"])
    drop = {"sequence": kept["sequence"], "frame": kept["frame"], "reason": "no-touch", "path": "", "detail": ""}
    path.write_text(path.read_text() + json.dumps(drop) + "\n" + path.read_text().splitlines()[0] + "\n")
    status, lines = verify(folder, capsys)
    assert status == 1
    assert any("is in a shard all the same" in line for line in lines)
    assert any("is listed twice" in line for line in lines)


def latents_of(folder: Path, array: np.ndarray) -> None:
    """Give the first shard latents."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = manifest["shards"][0]
    data = save({"hoi": array, "obj": array})
    records = [{"__key__": r["__key__"], "latents.safetensors": data} for r in read_tar(folder / shard["name"])]
    entry = write_tar(folder / f"latents-{shard['name']}", "train", records) | {"of": shard["sha256"]}
    manifest["latents"] = {"vae": {"id": "v", "sha256": "0"}, "shards": [entry]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_latents_are_checked_too(folder: Path, capsys: pytest.CaptureFixture) -> None:
    latents_of(folder, np.zeros((4, 6, 6), np.float16))
    assert verify(folder, capsys)[0] == 0
    spoil(folder, "latents-train-000000.tar", swap)
    assert any("its keys are not those of" in line for line in verify(folder, capsys)[1])
    for array, words in (
        (np.zeros((4, 6, 6), np.float32), "not float16"),
        (np.full((4, 6, 6), np.inf, np.float16), "is not finite"),
    ):
        latents_of(folder, array)
        assert any(words in line for line in verify(folder, capsys)[1])
    spoil(folder, "train-000000.tar", double)
    assert any("was made from another train-000000.tar" in line for line in verify(folder, capsys)[1])


def test_what_is_no_folder_of_shards_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    (folder / "manifest.json").write_text("{")
    assert main(["verify", str(folder)]) == 2
    (folder / "manifest.json").unlink()
    assert main(["verify", str(folder)]) == 2
    assert "no manifest.json there" in capsys.readouterr().err


def test_any_number_of_workers_says_the_same(folder: Path, capsys: pytest.CaptureFixture) -> None:
    flip(folder / SHARD, -11_000)
    (folder / "val-000000.tar").unlink()
    assert verify(folder, capsys, workers=2) == verify(folder, capsys, workers=1)


def test_what_build_writes_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, out = hoi4d_tree.draw_tree(tmp_path / "tree"), tmp_path / "out"
    small = ["--size", "64", "--workers", "1", "--samples-per-shard", "4"]
    assert main(["build", "--hoi4d", str(root), "--out", str(out), *small]) == 0
    capsys.readouterr()
    status, lines = verify(out, capsys)
    assert status == 0, lines
