"""The `evaluate` verb and its report, on drawn pairs and networks that need no weights."""

import argparse
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_lightning import evaluate as verb
from hoi_lightning import report
from hoi_lightning.data import reader
from hoi_lightning.data.sample import HOISample, SampleInfo
from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import Layout, hole_mask
from hoi_lightning.pipeline import HOIPipeline

SIDE = 64


def layout_of(i):
    angle = np.pi / 2 + 0.5 * np.sin(i)
    return Layout(0.6, 0.3 * np.cos(2 * i), 0.2 * np.sin(3 * i), float(np.cos(angle)), float(np.sin(angle)))


def pair(i, category="Mug", instance="N01", sequence="s"):
    rng = np.random.default_rng(i)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    thing = (rows - 32) ** 2 + (columns - 32) ** 2 < 12**2
    obj = np.broadcast_to(200 - rows[..., None], (SIDE, SIDE, 3)).astype(np.uint8).copy()
    obj[thing] = rng.integers(60, 220, 3)
    hand = hole_mask(layout_of(i).to_tensor(), SIDE, dilation=0)[0].bool().numpy()
    hoi = obj.copy()
    hoi[hand] = (224, 172, 138)
    info = SampleInfo(
        key=f"key{i}", sequence=sequence, frame=i, category=category, instance=instance, task="T1", event="",
        contact=True, layout=layout_of(i), layout_iou=1.0, hand_side="right", object_box=(20, 20, 44, 44),
        crop=(0, 0, SIDE, SIDE), keypoints=None, blur=1.0, remover="none", sdedit_level=None,
    )  # fmt: skip
    return HOISample(info, hoi=hoi, obj=obj, hand=hand, object=thing & ~hand)


class FakeIndex:
    manifest_hash = "c" * 64

    def __init__(self, *_):
        self.pairs = [pair(i, f"Mug{i % 3}<b>", f"N{i % 2}") for i in range(12)]

    def __len__(self):
        return len(self.pairs)

    def info(self, i):
        return self.pairs[i].info

    def sample(self, i, fields):
        assert set(fields) == {"hoi", "obj", "hand", "object"}
        return self.pairs[i]


class FakeMaskNet:
    checkpoint_hash = "a" * 64

    def check_sampler(self):
        pass

    def sample(self, obj, seeds, *, guidance=None):
        noise = torch.stack([torch.randn(5, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        middle = torch.tensor([0.6, 0.0, 0.0, 0.0, 1.0])
        drawn = middle + noise * torch.tensor([0.03, 0.2, 0.15, 0.4, 0.1])
        return torch.cat([drawn[:, :3], torch.nn.functional.normalize(drawn[:, 3:])], dim=1)


class FakeFusionNet:
    checkpoint_hash = "b" * 64
    image_size = SIDE
    hole_dilation = 0.0  # the hole is the recorded hand

    def sample_holes(self, obj, hole, seeds):
        skin = torch.tensor([224, 172, 138]).view(3, 1, 1) / 127.5 - 1
        return torch.lerp(obj, skin.expand_as(obj), hole)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the verb on the drawn pairs; returns its result folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(reader, "ShardIndex", FakeIndex)
    monkeypatch.setattr(HOIPipeline, "from_checkpoints", lambda *_: HOIPipeline(FakeMaskNet(), FakeFusionNet()))
    for name in ("mask.ckpt", "fusion.ckpt"):
        (tmp_path / name).touch()

    def evaluate(*more, out="out"):
        parser = argparse.ArgumentParser()
        verb.add_arguments(parser)
        paths = {"shards": ".", "masknet": "mask.ckpt", "fusionnet": "fusion.ckpt", "out": out}
        words = [word for flag, name in paths.items() for word in (f"--{flag}", str(tmp_path / name))]
        verb.run(parser.parse_args([*words, *more]))
        return tmp_path / out

    return evaluate


def figures(out):
    return {figure["name"]: figure for figure in json.loads((out / "metrics.json").read_text())["figures"]}


def test_every_figure_comes_with_n_and_everything_that_made_it(run):
    out = run("--max-samples", "9", "--num-images", "3", "--seed", "4")
    result = json.loads((out / "metrics.json").read_text())
    about = result["provenance"]
    assert (about["num_samples"], about["num_images"], about["seed"], about["split"]) == (9, 3, 4, "test")
    hashes = (about["masknet_sha256"], about["fusionnet_sha256"], about["manifest_sha256"])
    assert hashes == ("a" * 64, "b" * 64, "c" * 64)
    assert "git_commit" in about
    found = figures(out)
    assert not any(re.search(r"\bfid\b|lpips(?!_mini)", name) for name in found)  # no trained network here
    assert found["fd_mini"]["n"] == 27
    for name, figure in found.items():
        assert figure["meaning"]
        if name not in ("fd_mini", "outside_max_diff"):
            assert figure["n"] == 9
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert found["outside_max_diff"]["value"] == 0
    assert found["hole_recall"]["value"] == 1
    assert found["paint_psnr_hole"]["value"] > 50  # this painter knows the truth
    assert found["centre_error_best"]["value"] <= found["centre_error"]["value"]
    assert 0 < found["contact_rate"]["chance"] <= 1
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 7 * report.CELL
        assert grid.height > 9 * report.CELL


def test_figures_do_not_depend_on_which_other_pictures_are_measured(run):
    few, many = (run("--max-samples", n, out=n) for n in ("4", "8"))
    by_key = {sample["key"]: sample for sample in json.loads((many / "metrics.json").read_text())["samples"]}
    for sample in json.loads((few / "metrics.json").read_text())["samples"]:
        assert sample["figures"] == by_key[sample["key"]]["figures"]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_file_that_asks_for_nothing_and_runs_nothing(run, training_run):
    text = (run("--runs", str(training_run)) / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "i"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    for part in ("fd_mini", "paper (N, split not stated)", "64.7", "not comparable", "a" * 64, "alert(1)"):
        assert part in text


def test_mistakes_are_named_before_anything_is_sampled(run, tmp_path):
    with pytest.raises(InputError, match="--runs"):
        run("--runs", str(tmp_path / "absent"))
    with pytest.raises(InputError, match="--masknet"):
        run("--masknet", str(tmp_path / "absent.ckpt"))
    with pytest.raises(InputError, match="at least 2"):
        run("--max-samples", "1")


def test_samples_are_spread_over_objects_then_sequences():
    plan = [("Mug", "N1", "a")] * 5 + [("Mug", "N1", "b")] * 5 + [("Bowl", "N1", "c")] * 2 + [("Mug", "N2", "d")]
    infos = [pair(i, *names).info for i, names in enumerate(plan)]
    chosen = verb.spread(infos, 5)
    assert chosen == [0, 10, 12, 5, 11]  # each object once, then Mug N1's other sequence and the bowl again
    assert verb.spread(infos, 3) == chosen[:3]
    assert sorted(verb.spread(infos, 100)) == list(range(len(plan)))


def test_the_interval_shrinks_with_more_objects_and_does_not_with_more_pictures_of_them():
    rng = np.random.default_rng(0)

    def width(objects, repeats):
        values = np.repeat(rng.normal(size=objects), repeats)
        low, high = verb.bootstrap_interval(values, np.repeat(np.arange(objects), repeats), seed=1)
        assert low <= values.mean() <= high
        return high - low

    assert width(200, 1) < width(20, 1) / 2
    assert width(20, 50) > width(200, 1) * 2
    assert verb.bootstrap_interval(np.ones(5), np.zeros(5), seed=0) == (None, None)


@pytest.mark.parametrize("coverage", [0.95, 0.6])
def test_the_interval_covers_the_mean_as_often_as_it_says(coverage: float):
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        values, groups = rng.normal(size=60), np.repeat(np.arange(30), 2)
        values += np.repeat(rng.normal(size=30), 2)
        low, high = verb.bootstrap_interval(values, groups, trial, draws=300, coverage=coverage)
        hits += low <= 0 <= high
    assert hits / 200 == pytest.approx(coverage, abs=0.1)


def test_a_commit_is_forty_hex_digits_or_nothing():
    commit = verb.git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
