"""`bench metrics` on a handful of pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep.mini.distortions import write_distortions
from hoi_lightning.__main__ import main

KINDS = ("noise", "hand_removal")


def write(folder, pictures):
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:03d}.png")


@pytest.fixture
def distorted(tmp_path):
    """Two kinds of growing noise at three levels, on smooth pictures."""
    rng = np.random.default_rng(0)

    def smooth(count):
        for _ in range(count):
            small = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
            yield np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC))

    root = tmp_path / "distortions"
    write(root / "reference", smooth(12))
    clean = list(smooth(12))
    write(root / "clean", clean)
    noise = rng.standard_normal((64, 64, 3))
    for kind in KINDS:
        for level in (1, 2, 3):
            pictures = [np.clip(picture + 25 * level * noise, 0, 255).astype(np.uint8) for picture in clean]
            write(root / f"{kind}-{level}", pictures)
    return root


def bench(pictures, out):
    return main(["bench", "metrics", "--pictures", str(pictures), "--out", str(out)])


def test_growing_noise_rises_and_everything_is_written(distorted, tmp_path):
    assert bench(distorted, tmp_path / "out") == 0
    result = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [(curve["kind"], curve["figure"]) for curve in result["curves"]] == [
        (kind, figure) for kind in sorted(KINDS) for figure in ("fd_mini", "lpips_mini")
    ]
    for curve in result["curves"]:
        assert curve["rises"] is True
        assert curve["levels"] == [0, 1, 2, 3]
        assert all(
            low <= value <= high
            for low, value, high in zip(*(curve[k] for k in ("low", "values", "high")), strict=True)
        )
    assert [curve["values"][0] for curve in result["curves"] if curve["figure"] == "lpips_mini"] == [0, 0]
    assert result["provenance"]["num_pictures"] == 12
    assert (tmp_path / "out/metrics.md").read_text().count("| yes |") == 4
    with Image.open(tmp_path / "out/metrics.png") as plot:
        assert plot.size > (400, 400)


def test_a_curve_that_falls_is_named_and_is_status_1(distorted, tmp_path, capsys):
    (distorted / "noise-1").rename(distorted / "noise-4")
    assert bench(distorted, tmp_path / "out") == 1
    assert "does not rise: fd_mini over noise" in capsys.readouterr().out
    assert "**no**" in (tmp_path / "out/metrics.md").read_text()


def test_what_is_missing_is_one_line(distorted, tmp_path, capsys):
    (distorted / "noise-2/003.png").unlink()
    assert bench(distorted, tmp_path / "out") == 2
    assert "noise-2" in capsys.readouterr().err
    assert bench(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "--distortions" in capsys.readouterr().err
    (distorted / "reference").rename(distorted / "other")
    assert bench(distorted, tmp_path / "out") == 2
    assert "reference" in capsys.readouterr().err


def read(folder):
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(folder.iterdir())])


def test_drawn_distortions_grow_with_their_level(tmp_path):
    write_distortions(tmp_path, seed=5, pictures=2, side=64)
    root = tmp_path / "distortions"
    kinds = {"blur", "noise", "hue_shift", "hand_removal", "hand_displacement", "finger_deletion"}
    assert {folder.name for folder in root.iterdir()} == {
        "reference", "clean", *(f"{kind}-{level}" for kind in kinds for level in range(1, 6)),
    }  # fmt: skip
    clean = read(root / "clean")
    assert clean.shape == (2, 64, 64, 3)
    assert (read(root / "reference") != clean).any(axis=(1, 2, 3)).all()
    for kind in kinds:
        errors = [np.abs(read(root / f"{kind}-{level}") - clean).mean() for level in range(1, 6)]
        assert errors == sorted(errors), kind
        assert errors[-1] > errors[0], kind
