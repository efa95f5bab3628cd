"""Runs in real processes: over ranks (gloo) every sample once and nothing hangs; a killed one goes on exactly."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hoi_lightning.__main__ import main
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.tasks import FusionNet
from tests import rank_worker
from tests.test_cli import CONFIGS, QUIET, TINY

SECONDS = 300  # a hang is a failure
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.rank_worker"])


def run(
    world_size: int, shards: Path, out: Path, resume: Path | None = None
) -> tuple[list[list[list[str]]], list[str]]:
    """Batches of each rank and what all of them scored."""
    out.mkdir()
    together(rank_worker.run, world_size, str(shards), str(out), str(resume) if resume else None)
    found = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(world_size)]
    return [batches for batches, _ in found], [key for _, scored in found for key in scored]


def together(work: Callable[..., None], world_size: int, *arguments: object) -> None:
    """Do it as every rank, each in a process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [CONTEXT.Process(target=work, args=(rank, world_size, port, *arguments)) for rank in range(world_size)]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(SECONDS)
        assert [process.exitcode for process in ranks] == [0] * world_size
    finally:
        for process in ranks:
            process.kill()


def flat(ranks: list[list[list[str]]]) -> list[str]:
    return [key for batches in ranks for batch in batches for key in batch]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_over_ranks_is_every_sample_once(shards: Path, tmp_path: Path, world_size: int) -> None:
    """Four shards of 10, 10, 10 and 7 samples, six decoding threads a rank."""
    ranks, scored = run(world_size, shards, tmp_path / "a")
    assert Counter(flat(ranks)) == Counter(ShardIndex(shards, "train").keys)
    assert len({len(batches) for batches in ranks}) == 1
    assert min(len(batch) for batches in ranks for batch in batches) > 0
    assert Counter(scored) == Counter(ShardIndex(shards, "val").keys)


def test_a_run_of_two_goes_on_as_three(shards: Path, tmp_path: Path) -> None:
    ranks, _ = run(2, shards, tmp_path / "a")
    rest, _ = run(3, shards, tmp_path / "b", tmp_path / "a" / "step=2.ckpt")
    done = flat([batches[:2] for batches in ranks])
    assert Counter(done + flat(rest)) == Counter(ShardIndex(shards, "train").keys)
    assert len({len(batches) for batches in rest}) == 1


def test_a_killed_fit_reads_on_what_it_would_have_read(shards: Path, tmp_path: Path) -> None:
    """10 batches an epoch, a checkpoint every 3 steps, SIGKILL in the 15th."""

    def command(out: str, steps_file: str, kill_at: int | None = None) -> list[str]:
        init_args = {"path": str(tmp_path / f"{steps_file}.jsonl"), "kill_at": kill_at}
        recorder = {"class_path": "tests.rank_worker.Recorder", "init_args": init_args}
        (tmp_path / f"{steps_file}.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [recorder]}}))
        return [
            "fit", "-c", str(CONFIGS / "masknet.yaml"), "-c", str(CONFIGS / "overlays/cpu.yaml"),
            "-c", str(tmp_path / f"{steps_file}.yaml"), "--data.shards", str(shards), *TINY, *QUIET,
            "--data.batch_size=4", "--data.num_workers=2", "--trainer.max_steps=23", "--trainer.limit_val_batches=0",
            "--last_checkpoint.every_n_steps=3", "--run=run", "--trainer.default_root_dir", str(tmp_path / out),
            "--ckpt_path=last",
        ]  # fmt: skip

    def steps(steps_file: str) -> list[list[str]]:
        return [json.loads(line) for line in (tmp_path / f"{steps_file}.jsonl").read_text().splitlines()]

    assert rank_worker.fit(command("straight", "straight")) == 0
    killed = CONTEXT.Process(target=rank_worker.fit, args=(command("stopped", "killed", 15),))
    killed.start()
    killed.join(SECONDS)
    assert killed.exitcode == -signal.SIGKILL
    assert rank_worker.fit(command("stopped", "resumed")) == 0
    assert len(steps("straight")) == 23
    assert steps("killed") == steps("straight")[:15]
    assert steps("resumed") == steps("straight")[12:]


def test_shared_out_weights_learn_what_whole_ones_do(shards: Path, sd_folder: Path, tmp_path: Path) -> None:
    """FSDP against DDP, through validation with pictures; then on from the checkpoint, and with one process."""

    def fit(run: str, steps: int, *more: str) -> dict[str, Any]:
        args = [
            "fit", "-c", str(CONFIGS / "fusionnet.yaml"), "-c", str(CONFIGS / "overlays/cpu.yaml"),
            "-c", str(CONFIGS / "overlays/fsdp.yaml"), "--trainer.devices=2", "--data.shards", str(shards),
            "--model.pretrained", str(sd_folder), "--data.image_size=64", "--model.image_size=64",
            "--data.batch_size=2", "--model.sampler=fast", "--model.learning_rate=1e-3", "--model.warmup_steps=0",
            "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1", f"--trainer.max_steps={steps}", *QUIET,
            "--trainer.default_root_dir", str(tmp_path), "--run", run, "--ckpt_path=last", *more,
        ]  # fmt: skip
        together(rank_worker.fit_rank, 1 if "--trainer.devices=1" in more else 2, args)
        return torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)

    whole, shared = fit("ddp", 3, "--trainer.strategy=ddp"), fit("fsdp", 3)
    start = FusionNet(str(sd_folder), image_size=64).state_dict()
    for kind in ("state_dict", "ema_state_dict"):
        assert shared[kind].keys() == whole[kind].keys()
        # of all weights together: where a gradient is all but 0, rounding decides Adam's sign
        moved = sum(float((value - start[name]).square().sum()) for name, value in whole[kind].items())
        apart = sum(float((shared[kind][name] - value).square().sum()) for name, value in whole[kind].items())
        assert moved > 0
        assert apart < 0.05**2 * moved
    assert (tmp_path / "fsdp/samples/step-0000002.png").is_file()
    assert fit("fsdp", 4)["ema_step"] == 4
    alone = fit("fsdp", 5, "--trainer.devices=1", "--trainer.strategy=auto")
    assert alone["global_step"] == 5
    assert alone["optimizer_states"][0]["state"][0]["step"] == 5


def test_processes_that_lightning_starts_share_a_run(shards: Path, tmp_path: Path) -> None:
    """Two processes without --run, the second of them begun seconds after the first."""
    args = [
        "fit", "-c", str(CONFIGS / "masknet.yaml"), "-c", str(CONFIGS / "overlays/ddp.yaml"),
        "-c", str(CONFIGS / "overlays/cpu.yaml"), "--trainer.devices=2", "--data.shards", str(shards), *TINY,
        "--data.batch_size=2", "--trainer.limit_val_batches=0", "--trainer.max_steps=2",
        "--trainer.default_root_dir", str(tmp_path),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([sys.executable, "-m", "hoi_lightning", *args], env=environment, check=True, timeout=SECONDS)
    (run,) = tmp_path.iterdir()
    assert (run / "checkpoints/last.ckpt").is_file()


def test_processes_that_others_start_need_a_name(shards: Path, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    args = ["fit", "-c", str(CONFIGS / "masknet.yaml"), "--data.shards", str(shards), *TINY, "--trainer.max_steps=1"]
    assert main([*args, "--trainer.default_root_dir", str(tmp_path)]) == 2
    assert "--run: torchrun and srun start every process by itself" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
