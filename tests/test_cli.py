"""The command line: configs as they are, run folders, resumption, and bad input in one line."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml

from hoi_lightning.__main__ import main
from hoi_lightning.diffusion.repaint import PRESETS, RePaintSampler
from hoi_lightning.metrics.loss_buckets import LossBuckets
from hoi_lightning.tasks import FusionNet, MaskNet

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
TINY = [
    "--model.channels=[8,16]",
    "--model.layers_per_block=1",
    "--model.down_block_types=[DownBlock2D,AttnDownBlock2D]",
    "--model.norm_groups=8",
    "--model.heads_dim=8",
    "--model.head_layers=1",
    "--model.image_size=32",
    "--model.sample_steps=2",
]
QUIET = ["--trainer.logger=false", "--trainer.enable_model_summary=false"]


def fit(shards: Path, out: Path, *args: str, config: str = "masknet", tiny: bool = True) -> int:
    tiny_args = TINY if tiny and config.endswith("masknet") else []
    common = [
        "-c",
        str(CONFIGS / f"{config}.yaml"),
        "-c",
        str(CONFIGS / "overlays/cpu.yaml"),
        "--data.shards",
        str(shards),
    ]
    return main(["fit", *common, "--trainer.default_root_dir", str(out), "--run", "run", *tiny_args, *args])


def weights(out: Path) -> dict[str, Any]:
    return torch.load(out / "run/checkpoints/last.ckpt", weights_only=True)


def test_every_config_is_a_test_case() -> None:
    assert {p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml")} == {
        "masknet.yaml", "fusionnet.yaml", "mini/vae.yaml", "mini/sharpen.yaml", "mini/masknet.yaml",
        "mini/fusionnet.yaml", "mini/metrics.yaml", "mini/base.yaml", "overlays/cpu.yaml", "overlays/debug.yaml",
        "overlays/rtx4090.yaml", "overlays/ddp.yaml", "overlays/fsdp.yaml", "overlays/lora.yaml", "parts/trainer.yaml",
        "parts/trainer_mini.yaml", "sweeps/masknet.yaml",
    }  # fmt: skip


def test_overlays_never_change_a_class() -> None:
    for path in (CONFIGS / "overlays").glob("*.yaml"):
        assert "class_path" not in str(yaml.safe_load(path.read_text()).get("model", {}))


UNCHANGED = [("fusionnet", None), ("masknet", None)]
UNCHANGED += [("fusionnet", path.stem) for path in sorted((CONFIGS / "overlays").glob("*.yaml"))]


@pytest.mark.parametrize(("config", "overlay"), UNCHANGED)
def test_config_unchanged(shards: Path, sd_folder: Path, tmp_path: Path, config: str, overlay: str | None) -> None:
    """Only shards, weights and device are other than in the file, and it ends after two steps; then it predicts."""
    overlays = ["-c", str(CONFIGS / f"overlays/{overlay}.yaml")] if overlay else []
    pretrained = ["--model.pretrained", str(sd_folder)] if config == "fusionnet" else []
    words = [
        "-c", str(CONFIGS / f"{config}.yaml"), *overlays, "--data.shards", str(shards), *pretrained,
        "--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator=cpu", "--trainer.devices=1",
    ]  # fmt: skip
    assert main(["fit", *words, "--run", "run", "--trainer.max_steps=2"]) == 0
    checkpoint = weights(tmp_path)
    assert checkpoint["global_step"] == 2
    assert not any("vae" in name or "text" in name for name in checkpoint["state_dict"])
    task = FusionNet if config == "fusionnet" else MaskNet
    if overlay == "lora":
        assert all("lora" in name for name in checkpoint["state_dict"])
    loaded = task.load(tmp_path / "run/checkpoints/last.ckpt").state_dict()
    for name, value in checkpoint["ema_state_dict"].items():
        torch.testing.assert_close(loaded[name], value)


def test_only_fusionnet_is_shared_out(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(shards, tmp_path, *QUIET, "-c", str(CONFIGS / "overlays/fsdp.yaml"), "--trainer.devices=1") == 2
    assert "MaskNet is too small to be shared out; give ddp" in capsys.readouterr().err


def test_a_run_leaves_curves_samples_and_its_config(shards: Path, tmp_path: Path) -> None:
    assert fit(shards, tmp_path, "-c", str(CONFIGS / "overlays/debug.yaml"), "--trainer.max_steps=4") == 0
    run = tmp_path / "run"
    rows = list(csv.DictReader((run / "csv/version_0/metrics.csv").open()))
    assert sum(bool(row["train/loss_mask"]) for row in rows) == 4
    assert any(row["val/contact"] for row in rows)
    assert (run / "samples/step-0000004.png").is_file()
    assert (run / "samples/layout_scatter-0000004.png").is_file()
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["channels"] == [8, 16]


def test_a_run_that_goes_on_stays_one_w_and_b_run(shards: Path, tmp_path: Path) -> None:
    words = ["--data.batch_size=4", "--trainer.limit_val_batches=0", "--ckpt_path=last"]
    wandb.finish()  # an earlier test's
    for out, steps in ((tmp_path, 1), (tmp_path, 2), (tmp_path, 3), (tmp_path / "other", 1)):
        assert fit(shards, out, *words, f"--trainer.max_steps={steps}") == 0
        wandb.finish()
    ids = [file.stem for file in tmp_path.glob("**/wandb/offline-run-*/run-*.wandb")]
    assert len(ids) == 4
    assert len(set(ids)) == 2


def test_the_run_s_seed_is_also_that_of_order_and_noise(shards: Path, sd_folder: Path, tmp_path: Path) -> None:
    """From the same pretrained weights; a seed that is given by itself counts more."""
    words = [*QUIET, "--model.pretrained", str(sd_folder), "--data.image_size=64", "--model.image_size=64"]
    words += ["--data.batch_size=2", "--trainer.limit_val_batches=0", "--trainer.max_steps=1", "--model.warmup_steps=0"]
    learnt = {}
    for name, seeds in {
        "zero": ["--seed_everything=0"],
        "one": ["--seed_everything=1"],
        "own": ["--seed_everything=1", "--model.seed=0", "--data.seed=0"],
    }.items():
        assert fit(shards, tmp_path / name, *words, *seeds, config="fusionnet") == 0
        learnt[name] = weights(tmp_path / name)["state_dict"]
    assert all(torch.equal(learnt["own"][key], value) for key, value in learnt["zero"].items())
    assert not all(torch.equal(learnt["one"][key], value) for key, value in learnt["zero"].items())


@pytest.mark.parametrize("task", [FusionNet, MaskNet])
def test_validation_samples_in_mixed_precision(
    shards: Path, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    seen, sample = [], task.sample

    def spy(*args: Any, **options: Any) -> torch.Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), sample(*args, **options)))
        return seen[-1][1]

    monkeypatch.setattr(task, "sample", spy)
    words = [*QUIET, "--trainer.precision=bf16-mixed", "--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    words += ["--trainer.limit_val_batches=1", "--data.batch_size=2"]
    words += ["--model.pretrained", str(sd_folder)] if task is FusionNet else []
    assert fit(shards, tmp_path, *words, config=task.__name__.lower()) == 0
    assert len(seen) >= 3
    assert all(autocast and samples.dtype == torch.float32 for autocast, samples in seen)
    assert len(list((tmp_path / "run/samples").glob("*.png"))) >= 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_is_bitwise_and_obeys_the_command_line(shards: Path, tmp_path: Path, optimizer: str) -> None:
    # 37 samples are 10 batches of 4: the stop at 13 lies inside the second epoch
    common = [*QUIET, "--data.batch_size=4", "--trainer.val_check_interval=5", "--trainer.limit_val_batches=1"]
    common += [f"--model.optimizer={optimizer}"]
    assert fit(shards, tmp_path / "straight", *common, "--trainer.max_steps=23") == 0
    assert fit(shards, tmp_path / "stopped", *common, "--trainer.max_steps=13") == 0
    resume = ["--ckpt_path=last", "--trainer.max_steps=23"]
    assert fit(shards, tmp_path / "stopped", *common, *resume) == 0
    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert straight["global_step"] == resumed["global_step"] == 23
    assert straight["ema_step"] == resumed["ema_step"]
    for part in ("state_dict", "ema_state_dict"):
        for name, value in straight[part].items():
            assert torch.equal(value, resumed[part][name]), name
    moments = [list(c["optimizer_states"][0]["state"].values()) for c in (straight, resumed)]
    for a, b in zip(*moments, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert MaskNet.load(tmp_path / "stopped/run/checkpoints/last.ckpt").layout_std.min() > 0


def test_another_optimizer_does_not_go_on(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [*QUIET, "--data.batch_size=4", "--trainer.limit_val_batches=0"]
    assert fit(shards, tmp_path, *common, "--trainer.max_steps=1") == 0
    changed = ["--model.optimizer=muon", "--ckpt_path=last", "--trainer.max_steps=2"]
    assert fit(shards, tmp_path, *common, *changed) == 2
    assert "--model.optimizer muon: the checkpoint holds the state of adamw" in capsys.readouterr().err


def test_losses_by_timestep_are_of_all_batches_of_a_step(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an epoch of 10 batches, 37 samples, has steps after 4, 8 and 10 of them
    counts, compute = [], LossBuckets.compute

    def spy(buckets: LossBuckets) -> dict[str, torch.Tensor]:
        if "loss_mask" in buckets.names:
            counts.append(int(buckets.counts.sum()))
        return compute(buckets)

    monkeypatch.setattr(LossBuckets, "compute", spy)
    words = [*QUIET, "--data.batch_size=4", "--trainer.accumulate_grad_batches=4", "--trainer.limit_val_batches=0"]
    words += ["--model.noise_draws=2", "--trainer.log_every_n_steps=1", "--trainer.max_steps=3"]
    assert fit(shards, tmp_path, *words) == 0
    assert counts == [2 * 16, 2 * 16, 2 * 5]


@pytest.mark.parametrize("stop", [8, 9, 10, 12, 14])
def test_resuming_amid_accumulated_gradients_is_bitwise(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    # an epoch of 10 batches has steps after 4, 8 and 10 of them
    common = [*QUIET, "--data.batch_size=4", "--trainer.accumulate_grad_batches=4"]
    assert fit(shards, tmp_path / "straight", *common, "--trainer.max_steps=6") == 0
    batches = []

    def loss(task: MaskNet, batch: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
        batches.append(batch["key"])
        if len(batches) > stop:
            raise RuntimeError("pulled the plug")
        return of_masknet(task, batch, generator)

    of_masknet = MaskNet.loss
    monkeypatch.setattr(MaskNet, "loss", loss)
    with pytest.raises(RuntimeError, match="plug"):
        fit(shards, tmp_path / "stopped", *common, "--trainer.max_steps=6")
    monkeypatch.undo()
    assert weights(tmp_path / "stopped")["global_step"] == {8: 2, 9: 2, 10: 3, 12: 3, 14: 4}[stop]
    assert fit(shards, tmp_path / "stopped", *common, "--ckpt_path=last", "--trainer.max_steps=6") == 0
    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


@pytest.mark.parametrize("stop", [9, 18])
def test_resuming_at_the_end_of_an_epoch(shards: Path, tmp_path: Path, stop: int) -> None:
    common = [*QUIET, "--data.batch_size=4"]
    assert fit(shards, tmp_path / "straight", *common, "--trainer.max_steps=20") == 0
    assert fit(shards, tmp_path / "stopped", *common, f"--trainer.max_steps={stop}") == 0
    assert fit(shards, tmp_path / "stopped", *common, "--ckpt_path=last", "--trainer.max_steps=20") == 0
    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_a_finished_run_is_not_run_over(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert fit(shards, tmp_path, *QUIET, "--trainer.max_steps=1") == 0
    assert fit(shards, tmp_path, *QUIET, "--trainer.max_steps=2") == 2
    assert "--ckpt_path last" in capsys.readouterr().err
    assert weights(tmp_path)["global_step"] == 1


@pytest.mark.parametrize("kind", ["damaged", "foreign", "another task"])
def test_a_wrong_checkpoint_is_one_line(
    shards: Path, sd_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    path = tmp_path / "x.ckpt"
    if kind == "damaged":
        path.write_bytes(b"PK\x03\x04 not a checkpoint")
    else:
        torch.save({"state_dict": {}} | ({"task": "FusionNet"} if kind == "another task" else {}), path)
    assert fit(shards, tmp_path, *QUIET, "--ckpt_path", str(path)) == 2
    complaint = "this is a FusionNet checkpoint, a MaskNet" if kind == "another task" else "not a checkpoint of this"
    assert complaint in capsys.readouterr().err


def test_a_damaged_last_checkpoint_is_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(shards, tmp_path, *QUIET, "--trainer.max_steps=1") == 0
    last = tmp_path / "run/checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    assert fit(shards, tmp_path, *QUIET, "--trainer.max_steps=2", "--ckpt_path=last") == 2
    assert f"{last}: not a checkpoint of this project, or a damaged one" in capsys.readouterr().err


def test_resuming_with_another_network_is_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(shards, tmp_path, *QUIET, "--trainer.max_steps=1") == 0
    more = [*QUIET, "--trainer.max_steps=2", "--ckpt_path=last"]
    assert fit(shards, tmp_path, *more, "--model.channels=[8,24]") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert "network with other settings (" in error[0]
    assert "size mismatch" in error[0]
    assert weights(tmp_path)["global_step"] == 1
    assert fit(shards, tmp_path, *more) == 0


def test_last_of_no_run_is_not_a_new_network(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-c", str(CONFIGS / "masknet.yaml"), "-c", str(CONFIGS / "overlays/cpu.yaml"), *TINY, *QUIET]
    words += ["--data.shards", str(shards), "--trainer.default_root_dir", str(tmp_path), "--ckpt_path=last"]
    for run in (["--run=absent"], []):
        assert main(["test", *words, *run]) == 2
        assert "no such checkpoint" in capsys.readouterr().err
    assert fit(shards, tmp_path, *QUIET, "--trainer.max_steps=1") == 0
    assert main(["test", *words, "--run=run"]) == 0


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_network_without_weights_is_not_judged(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    words = ["-c", str(CONFIGS / "masknet.yaml"), "-c", str(CONFIGS / "overlays/cpu.yaml"), *TINY, *QUIET]
    words += ["--data.shards", str(shards), "--trainer.default_root_dir", str(tmp_path / "runs"), "--run=new"]
    assert main([verb, *words]) == 2
    assert "--ckpt_path: which weights?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_fusionnet_is_tested_with_the_command_line_s_sampler(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "paper", RePaintSampler(2000))
    logger = '[{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "x"}}]'
    words = ["-c", str(CONFIGS / "mini/fusionnet.yaml"), "--data.shards", str(shards), "--model.image_size=64"]
    words += ["--data.image_size=64", "--data.latents=false", "--data.fields=[hoi,obj]", "--data.batch_size=4"]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", logger]
    again = ["--trainer.callbacks+", "hoi_lightning.callbacks.image_metrics.ImageMetricsCallback"]
    assert main(["fit", *words, *again, "--run=twice", "--trainer.max_steps=1"]) == 2
    assert "more than one stateful callback of type `ImageMetricsCallback`" in capsys.readouterr().err
    assert main(["fit", *words, "--run=run", "--trainer.max_steps=1"]) == 0
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    stored = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert stored["pretrained"] == "mini-base"  # no folder of this machine
    assert main(["test", *words, "--run=tested", "--ckpt_path", str(checkpoint)]) == 0
    (row,) = csv.DictReader((tmp_path / "tested/csv/version_0/metrics.csv").open())
    assert {"test/loss", "test/hole_recall", "test/fd_mini", "test/lpips_mini_hand"} <= {k for k, v in row.items() if v}
    assert any(name.startswith("test/loss_hole/t") for name in row)
    assert float(row["test/outside_max_diff"]) == 0
    assert main(["predict", *words, "--run=p", "--ckpt_path", str(checkpoint), "--trainer.precision=bf16-mixed"]) == 0
    assert len(list((tmp_path / "p/predictions").glob("*.png"))) == 8
    other = ["--run=o", "--ckpt_path", str(checkpoint), "--model.sampler=paper"]
    assert main(["predict", *words, *other]) == 2
    assert "num_steps 2000 (--painter-steps)" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_the_other_verbs_take_the_checkpoint_s_arguments(shards: Path, tmp_path: Path, verb: str) -> None:
    assert fit(shards, tmp_path, *QUIET, "--trainer.max_steps=2") == 0
    status = main([
        verb, "--run", "v", "-c", str(CONFIGS / "masknet.yaml"), "-c", str(CONFIGS / "overlays/cpu.yaml"),
        "--data.shards", str(shards), "--trainer.default_root_dir", str(tmp_path), *QUIET,
        "--ckpt_path", str(tmp_path / "run/checkpoints/last.ckpt"),
    ])  # fmt: skip
    assert status == 0
    if verb == "predict":
        assert len(list((tmp_path / "v/predictions").glob("*.json"))) == 8


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--data.shard=x"], "did you mean data.shards?"),
        (["--trainer.max_step=3"], "did you mean trainer.max_steps?"),
        (["--model.learning_rat=3"], "did you mean model.learning_rate?"),
        (["--model.learning_rate=abc"], "model.learning_rate: 'abc' is not float"),
        (["--model.prediction_type=x"], "is not one of 'epsilon', 'sample', 'v_prediction'"),
        (["--data.batch_size=abc"], "data.batch_size: 'abc' is not int"),
        (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["-c", "nowhere.yaml"], "no such config file"),
        (["--data.shards=nowhere"], "nowhere: no HO3Pairs shards there"),
        (["--trainer.default_root_dir=/proc/x"], "/proc/x"),
        (["--trainer.accelerator=tpu"], "--trainer.accelerator auto takes what this machine has"),
        (["--data.batch_size=0"], "--data.batch_size 0: give at least 1"),
        (["--data.num_workers=-1"], "--data.num_workers -1: give 0"),
        (["--data.crop_area=0"], "--data.crop_area 0: give a share"),
        (["--data.blur=2"], "--data.blur 2: is a probability"),
        (["--trainer.strategy=x"], "invalid strategy name"),
        (["--trainer.max_steps=-5"], "`max_steps` must be a non-negative integer"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture, args: list[str], complaint: str
) -> None:
    assert fit(shards, tmp_path, *QUIET, *args) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert complaint in error[0]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--model.image_size=32"], "--model.image_size 32: the data's pictures are of 64x64"),
        (["--data.image_size=32"], "--model.image_size 64: the data's pictures are of 32x32"),
        (["--data.fields=[obj]"], "FusionNet trains on hoi, too"),
        (["--data.fields=[hoi,obj]", "--model.hand_hole=0.1"], "FusionNet trains on hand, too"),
    ],
)
def test_data_that_do_not_fit_the_task_are_one_line(
    shards: Path, sd_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, args: list[str], complaint: str
) -> None:
    sizes = ["--model.image_size=64", "--data.image_size=64", "--model.hand_hole=0"]
    words = [*QUIET, "--model.pretrained", str(sd_folder), "--trainer.max_steps=1", *sizes, *args]
    assert fit(shards, tmp_path, *words, config="fusionnet") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert complaint in error[0]


def test_fields_that_no_hole_needs_may_be_left_out(shards: Path, sd_folder: Path, tmp_path: Path) -> None:
    words = [*QUIET, "--model.pretrained", str(sd_folder), "--model.image_size=64", "--data.image_size=64"]
    words += ["--model.hand_hole=0", "--data.fields=[hoi,obj]", "--trainer.max_steps=1"]
    assert fit(shards, tmp_path, *words, config="fusionnet") == 0


def test_missing_weights_are_one_line(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert fit(shards, tmp_path, *QUIET, "--model.pretrained", nowhere, config="fusionnet") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert f"--model.pretrained {nowhere}" in error[0]
    assert "hf download" in error[0]


def test_help_needs_no_torch() -> None:
    code = "import sys; from hoi_lightning.__main__ import main\n"
    code += "try: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    for package in ("hoi_lightning", "data_prep"):
        result = subprocess.run(
            [sys.executable, "-c", code.replace("hoi_lightning", package)], capture_output=True, text=True, cwd=ROOT
        )
        assert result.returncode == 0, result.stderr
        assert "build" in result.stdout or "generate" in result.stdout
