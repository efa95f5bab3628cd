"""`check`: what is missing is said before any work, and nothing usable is a failure."""

import json
import re
import shutil
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.hoi4d import Sequence
from tests import hoi4d_tree
from tests.hoi4d_tree import CLIPS


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The three clips; the second without events, the third without hand poses and a mask."""
    root = hoi4d_tree.draw_tree(tmp_path_factory.mktemp("tree") / "<b>")
    Sequence(root, CLIPS[1].name).actions.write_text("")
    Sequence(root, CLIPS[2].name).mask(5).unlink()
    with (root / "release.txt").open("a") as file:
        file.write("ZY20210800004/H4/C1/N01/S1/s01/T1\r\n")
    return root


def check(root: Path, out: Path, *options: str) -> tuple[int, dict, str]:
    status = main(["check", str(root), "--out", str(out), *options])
    return status, json.loads((out / "check.json").read_text()), (out / "check.html").read_text()


def test_what_is_there_and_what_is_missing(tree, tmp_path, capsys):
    status, report, page = check(tree, tmp_path)
    assert status == 0
    rows = {(row["category"], row["group"]): row for row in report["coverage"]}
    assert set(rows) == {("Mug", "ZY20210800001"), ("Bucket", "ZY20210800003"), ("Mug", "ZY20210800002")}
    assert [row["usable"] for _, row in sorted(rows.items())] == [0, 1, 1]
    assert rows["Mug", "ZY20210800001"]["contact"] == 5
    assert rows["Mug", "ZY20210800001"]["poses"] == 7
    assert rows["Mug", "ZY20210800002"]["masks"] == 11
    missing = {entry["clip"]: set(entry["missing"]) for entry in report["missing"]}
    assert missing == {CLIPS[1].name: {"no-actions", "no-hand-pose"}, CLIPS[2].name: {"no-mask", "no-hand-pose"}}
    assert report["left_out"] == {"no-video": 1}
    assert [trial["pairs"] for trial in report["sample"]] == [5, 4]
    estimate = report["estimate"]
    assert estimate["pairs"] == 9
    assert 0 < estimate["gigabytes"]["256"] < estimate["gigabytes"]["512"]
    shown = capsys.readouterr().out
    assert "about 9 pairs" in shown
    assert "no-actions 1" in shown
    for word in ("no-actions", "Bucket", "ZY20210800003", "Hand_pose"):
        assert word in page
    assert "<b>/" not in page  # the folder's name is text
    assert not re.search(r"(src|href)\s*=|@import|url\(", page)


def test_zips_are_checked_as_folders_are(tree, tmp_path):
    zipped = hoi4d_tree.zip_tree(tree, tmp_path / "zipped")
    _, expected, _ = check(tree, tmp_path / "a", "--sample", "0")
    status, report, _ = check(zipped, tmp_path / "b", "--sample", "0")
    assert status == 0
    for field in ("clips", "usable", "left_out", "coverage", "missing", "estimate"):
        assert report[field] == expected[field]
    assert "HOI4D_annotations.zip" in report["formats"]["annotations"]
    assert "new generation" in report["formats"]["hand poses"]


def test_nothing_usable_is_exit_status_1(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    status, report, page = check(tmp_path / "empty", tmp_path / "out")
    assert status == 1
    assert "HOI4D_release" in report["problem"]
    assert "Nothing to build" in page
    shutil.copytree(tree / "HOI4D_release", tmp_path / "videos" / "HOI4D_release")
    status, report, _ = check(tmp_path / "videos", tmp_path / "out")
    assert status == 1
    assert report["usable"] == 0
    assert report["coverage"][0]["missing"]["no-mask-folder"] > 0


def test_bad_places_are_exit_status_2(tree, tmp_path, capsys):
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["check", str(tree), "--sample", "0", "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err
