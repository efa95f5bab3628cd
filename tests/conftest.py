"""Shared fixtures; nothing here touches a network."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import hypothesis
import pytest
import torch

from tests.tiny import save_sd_folder, write_shards

hypothesis.settings.register_profile("here", database=None, deadline=None)  # no folder left behind, nothing timed
hypothesis.settings.load_profile("here")


@pytest.fixture(autouse=True)
def _plain_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hoi_lightning"])  # LightningCLI warns about args beside a command line
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HO3Pairs of 64 px: 37 train, 8 val, 8 test samples in uneven shards."""
    return write_shards(tmp_path_factory.mktemp("data") / "ho3pairs", {"train": 37, "val": 8, "test": 8})


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion inpainting folder."""
    return save_sd_folder(tmp_path_factory.mktemp("sd"))
