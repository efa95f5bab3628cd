"""Shared fixtures; nothing here touches a network."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import hypothesis
import pytest
import torch

from tests.tiny import save_sd_folder, write_shards

hypothesis.settings.register_profile("here", database=None, deadline=None)  # no folder left behind, nothing timed
hypothesis.settings.load_profile("here")


@pytest.fixture(autouse=True)
def _plain_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "argv", ["hoi_lightning"])  # LightningCLI warns about args beside a command line
    torch.set_num_threads(2)
    with mock.patch.dict(os.environ):  # a fit leaves LOCAL_RANK and more, which processes inherit
        yield


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HO3Pairs of 64 px: 37 train, 8 val, 8 test samples in uneven shards."""
    return write_shards(tmp_path_factory.mktemp("data") / "ho3pairs", {"train": 37, "val": 8, "test": 8})


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion inpainting folder."""
    return save_sd_folder(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def training_run(tmp_path: Path) -> Path:
    """A run's folder after it was stopped and went on, with a name and a config that HTML must not believe."""
    folder = tmp_path / "masknet <i>"
    for number, rows in {
        2: "0,10,,0.9\n0,20,0.5,\n0,30,nan,0.4\n",
        10: "0,20,0.25,\n0,30,0.125,\n",
    }.items():
        version = folder / "csv" / f"version_{number}"
        version.mkdir(parents=True)
        (version / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n" + rows)
    (folder / "config.yaml").write_text("note: </pre><script>alert(1)</script>\n")
    return folder
