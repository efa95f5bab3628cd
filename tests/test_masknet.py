"""MaskNet beyond loss and sample: initialisation, guidance, figures in validation, and what a checkpoint decides."""

import csv
import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml
from diffusers import UNet2DModel
from lightning.pytorch import Trainer

from hoi_lightning.__main__ import main
from hoi_lightning.diffusion.ddpm import SampleNoise
from hoi_lightning.errors import InputError
from hoi_lightning.guidance import Guidance, fix, follow_heat_map, keep_out
from hoi_lightning.metrics.loss_buckets import LossBuckets
from hoi_lightning.tasks import MaskNet
from hoi_lightning.tasks.masknet import OF_THE_COMMAND, X0_LIMIT
from tests.test_cli import CONFIGS, QUIET, TINY, weights
from tests.test_tasks import SMALL
from tests.tiny import batch_of_hands


@pytest.fixture(scope="module")
def masknet() -> MaskNet:
    torch.manual_seed(0)
    task = MaskNet(**SMALL, image_size=32, sample_steps=4, image_dropout=0.1).eval()
    task.layout_std.copy_(torch.tensor([0.1, 0.3, 0.3, 0.5, 0.5]))
    task.layout_mean.copy_(torch.tensor([0.7, 0.0, 0.0, 0.0, 0.5]))
    return task


@pytest.mark.parametrize("image_features", ["every_step", "once"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver++", "unipc", "repaint"])
def test_several_layouts_per_picture_are_those_of_one_at_a_time(image_features: str, sampler: Any) -> None:
    torch.manual_seed(0)
    task = MaskNet(**SMALL, image_size=16, sample_steps=3, image_features=image_features).eval()
    obj = batch_of_hands(2)["obj"]
    together = task.sample(obj, [3, 4, 5, 6], sampler=sampler)
    alone = torch.cat([task.sample(obj[k // 2 : k // 2 + 1], [3 + k], sampler=sampler) for k in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)
    other = task.sample(obj.flip(0), [3, 4, 5, 6], sampler=sampler)
    assert not torch.equal(together, other), "the picture matters"


def test_noise_is_bitwise_the_same_in_batches_of_one_and_four() -> None:
    together = SampleNoise([7, 8, 9, 10])(torch.empty(4, 5))
    assert all(torch.equal(SampleNoise([7 + k])(torch.empty(1, 5))[0], together[k]) for k in range(4))


@pytest.mark.parametrize("sampler", [None, "dpm-solver++"])
@pytest.mark.parametrize(
    "wish",
    [{"position": (0.3, -0.9)}, {"size": 0.41}, {"direction": 2.5}, {"position": (1.0, 0.1), "size": 1.2},
     {"size": 0.5, "direction": -3.0}, {"position": (0.0, 0.0), "size": 0.7, "direction": 0.1}],
)  # fmt: skip
def test_fixed_numbers_are_met_to_the_bit_and_the_others_vary(masknet: MaskNet, sampler: Any, wish: dict) -> None:
    fixed = fix(**wish)
    known = ~fixed.isnan()
    assert known.sum() == 2 * ("position" in wish) + ("size" in wish) + 2 * ("direction" in wish)
    drawn = masknet.sample(batch_of_hands(1)["obj"], [1, 2, 3], sampler=sampler, guidance=Guidance(fixed=fixed))
    assert torch.equal(drawn[:, known], fixed[known].expand(3, -1))
    if not known.all():
        assert (drawn[0, ~known] != drawn[1, ~known]).all()
    rows = torch.stack([fix(position=(0.1 * k, 0.2)) for k in range(3)])
    drawn = masknet.sample(batch_of_hands(1)["obj"], [1, 2, 3], sampler=sampler, guidance=Guidance(fixed=rows))
    assert torch.equal(drawn[:, 1:3], rows[:, 1:3])


def test_wishes_of_single_rows_pull_their_rows(masknet: MaskNet) -> None:
    corners = torch.zeros(2, 1, 16, 16)
    corners[0, 0, :6, :6] = corners[1, 0, 10:, 10:] = 1
    wish = Guidance(energies=(follow_heat_map(corners),))
    drawn = masknet.sample(batch_of_hands(1)["obj"], [1, 1], guidance=wish)
    assert drawn[0, 1] < 0 < drawn[1, 1]
    assert drawn[0, 2] < 0 < drawn[1, 2]
    both = Guidance(fix(direction=1.0), (keep_out(corners[:1]),))
    drawn = masknet.sample(batch_of_hands(1)["obj"], [1, 2], guidance=both)
    torch.testing.assert_close(drawn[:, 3:], torch.tensor([[math.cos(1), math.sin(1)]] * 2))


def test_classifier_free_guidance_needs_training_for_it(masknet: MaskNet) -> None:
    obj, plain = batch_of_hands(1)["obj"], MaskNet(**SMALL, image_size=32, sample_steps=3).eval()
    with pytest.raises(InputError, match=r"guidance_scale 2: .*image_dropout 0"):
        plain.sample(obj, [0], guidance_scale=2.0)
    assert not torch.allclose(masknet.sample(obj, [0], guidance_scale=3.0), masknet.sample(obj, [0]))
    torch.testing.assert_close(
        masknet.sample(obj, [0], guidance_scale=1 + 1e-6), masknet.sample(obj, [0]), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("fixed", "reason"),
    [
        ([-1, math.nan, math.nan, math.nan, math.nan], "a above 0"),
        ([math.inf, math.nan, math.nan, math.nan, math.nan], "must be finite"),
        ([math.nan, math.nan, math.nan, 0.5, math.nan], "b1 and b2 are one direction"),
        ([math.nan, math.nan, math.nan, 3.0, 4.0], "must have length 1"),
    ],
)
def test_numbers_that_no_layout_has_cannot_be_fixed(fixed: list[float], reason: str) -> None:
    with pytest.raises(InputError, match=f"^fixed: .*{reason}"):
        Guidance(torch.tensor(fixed))
    with pytest.raises(InputError, match="strength nan"):
        Guidance(strength=math.nan)


def test_pictures_and_seeds_that_do_not_fit_are_one_line(masknet: MaskNet) -> None:
    obj = batch_of_hands(2)["obj"]
    for seeds in ([], [1], [1, 2, 3]):
        with pytest.raises(InputError, match=rf"seeds: {len(seeds)} for 2 pictures; give as many for each"):
            masknet.sample(obj, seeds)
    with pytest.raises(InputError, match="MaskNet sees squares"):
        masknet.sample(obj[..., :20], [1, 2])
    with pytest.raises(InputError, match="sampler 'plms': give one of ddpm, "):
        masknet.sample(obj, [1, 2], sampler="plms")  # type: ignore[arg-type]


@pytest.fixture
def checkpoint(masknet: MaskNet, tmp_path: Path) -> Path:
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.strategy.connect(masknet)
    masknet.trainer = trainer
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda c: c.pop("hyper_parameters"), "not a checkpoint of this project, or a damaged one"),
        (lambda c: c.pop("state_dict"), "not a checkpoint of this project, or a damaged one"),
        (lambda c: c.update(hyper_parameters=[1]), "not a checkpoint of this project, or a damaged one"),
        (lambda c: c["state_dict"]["layout_mean"].fill_(math.nan), "layout_mean is not finite"),
        (lambda c: c["hyper_parameters"].update(noise_draws=0), r"other arguments .*\(--model.noise_draws 0: give"),
        (lambda c: c["hyper_parameters"].update(channels=(8, 24)), "size mismatch for "),
    ],
)
def test_a_checkpoint_of_another_schema_is_named(
    checkpoint: Path, harm: Callable[[dict[str, Any]], object], reason: str
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    harm(content)
    torch.save(content, checkpoint)
    with pytest.raises(InputError, match=rf"^{checkpoint}: .*{reason}"):
        MaskNet.load(checkpoint)


def test_a_released_folder_is_named_with_the_reason(masknet: MaskNet, tmp_path: Path) -> None:
    masknet.save_pretrained(tmp_path / "m", torch.float32)
    config = json.loads((tmp_path / "m/config.json").read_text())
    for change, reason in (
        ({"image_size": 31}, "--model.image_size 31"),
        ({"channels": [8, 24]}, "size mismatch for "),
    ):
        (tmp_path / "m/config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=rf"{tmp_path / 'm'}: holds no MaskNet \({reason}.*; export it again$"):
            MaskNet.from_pretrained(tmp_path / "m")


def test_a_resumed_run_keeps_what_its_weights_mean(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    common = [
        "fit", "-c", str(CONFIGS / "masknet.yaml"), "-c", str(CONFIGS / "overlays/cpu.yaml"), "--data.shards",
        str(shards), "--run", "run", "--trainer.default_root_dir", str(tmp_path), *TINY, *QUIET,
    ]  # fmt: skip
    assert main([*common, "--trainer.max_steps=1"]) == 0
    going_on = [*common, "--trainer.max_steps=2", "--ckpt_path=last"]
    assert main([*going_on, "--model.prediction_type=v_prediction", "--model.max_snr_weight=1"]) == 2
    assert "--model.prediction_type v_prediction: the checkpoint was fitted with sample" in capsys.readouterr().err
    assert main([*going_on, "--model.sample_steps=2000"]) == 2
    assert "sample_steps 2000 (--model.sample_steps, " in capsys.readouterr().err
    assert main(going_on) == 0


def test_dropout_hides_pictures_in_training_only() -> None:
    task = MaskNet(**SMALL, image_size=32, image_dropout=1.0)
    batch, other = batch_of_hands(4), batch_of_hands(4)
    other["obj"] = -other["obj"]

    def loss(data: dict) -> float:
        return task.loss(data, torch.Generator().manual_seed(0))["loss"].item()

    assert loss(batch) == loss(other)
    task.eval()
    assert loss(batch) != loss(other)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_the_estimate_of_x0_is_finite_and_bounded_at_the_end_of_the_chain(prediction_type: Any) -> None:
    task = MaskNet(**SMALL, image_size=32, prediction_type=prediction_type)
    t = torch.full((4,), len(task.schedule.alpha_bar) - 1)
    found = task._to_x0(100 * torch.randn(4, 5), torch.randn(4, 5), t)
    assert found.isfinite().all()
    assert found.abs().max() <= X0_LIMIT
    task.layout_std.fill_(0.3)
    terms = task.loss(batch_of_hands(), torch.Generator().manual_seed(0))
    terms["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())
    assert task.eval().sample(batch_of_hands(1)["obj"], [0], num_steps=5).isfinite().all()


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_the_logged_ratio_is_that_of_the_gradients_of_the_estimate(
    prediction_type: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    task = MaskNet(**SMALL, image_size=32, prediction_type=prediction_type, lambda_para=3.0)
    outputs: list[torch.Tensor] = []
    predict, batch = task._predict, batch_of_hands(1)
    monkeypatch.setattr(task, "_predict", lambda *args: outputs.append(predict(*args)) or outputs[-1])
    seen: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(task.slopes, "update", lambda t, one, other: seen.update(one=one, other=other))
    terms = task.loss(batch, torch.Generator().manual_seed(5))
    for name, slope, factor in (("loss_mask", "one", 1.0), ("loss_para", "other", 3.0)):
        (gradient,) = torch.autograd.grad(terms[name], outputs[-1], retain_graph=True)
        torch.testing.assert_close(seen[slope][0], factor * gradient.norm())


@pytest.mark.parametrize("image_features", ["every_step", "once"])
def test_several_noises_per_picture_are_the_loss_of_pictures_repeated(image_features: Any) -> None:
    torch.manual_seed(0)
    several = MaskNet(**SMALL, image_size=32, image_features=image_features, noise_draws=3)
    one = MaskNet(**SMALL, image_size=32, image_features=image_features)
    one.load_state_dict(several.state_dict())
    batch = batch_of_hands()
    repeated = {name: batch[name].repeat_interleave(3, dim=0) for name in ("obj", "layout")}
    found = several.loss(batch, torch.Generator().manual_seed(2))
    expected = one.loss(repeated, torch.Generator().manual_seed(2))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_low_noise_weighs_by_its_snr_between_one_and_the_limit() -> None:
    torch.manual_seed(0)
    task = MaskNet(**SMALL, image_size=32, max_snr_weight=8.0)
    batch = {name: batch_of_hands()[name][:1] for name in ("obj", "layout")}
    weights = []
    for seed in range(12):
        terms = {name: float(value) for name, value in task.loss(batch, torch.Generator().manual_seed(seed)).items()}
        t = torch.randint(1000, (1,), generator=torch.Generator().manual_seed(seed))
        weights.append((terms["loss"] - terms["loss_mask"]) / (task.lambda_para * terms["loss_para"]))
        assert weights[-1] == pytest.approx(min(max(float(task.schedule.snr(t)), 1), 8), rel=1e-3)
    assert min(weights) == pytest.approx(1, rel=1e-3)
    assert max(weights) == pytest.approx(8, rel=1e-3)
    with pytest.raises(InputError, match=r"--model\.max_snr_weight 8: epsilon weighs low noise"):
        MaskNet(**SMALL, image_size=32, max_snr_weight=8.0, prediction_type="epsilon")


@pytest.mark.slow  # a C++ compiler runs
def test_compiled_splats_are_the_splats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a training step; outside training nothing is compiled."""
    torch.manual_seed(0)
    compiled = MaskNet(**SMALL, image_size=16, noise_draws=2, compile_splat=True)
    plain = MaskNet(**SMALL, image_size=16, noise_draws=2)
    plain.load_state_dict(compiled.state_dict())
    losses = [task.loss(batch_of_hands(), torch.Generator().manual_seed(2))["loss"] for task in (compiled, plain)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(compiled, "_compiled_splat", never)
    compiled.eval().loss(batch_of_hands(), torch.Generator().manual_seed(2))


def test_buckets_split_the_timesteps_evenly() -> None:
    buckets = LossBuckets(1000, ("loss_mask", "loss_para"))
    t = torch.tensor([0, 249, 250, 999])
    buckets.update(t, torch.tensor([1.0, 3.0, 5.0, 7.0]), t * 1.0)
    figures = buckets.compute()
    assert figures["loss_mask/t000-249"] == 2
    assert figures["loss_mask/t750-999"] == 7
    assert figures["loss_para/t250-499"] == 250
    assert not any("t500-749" in name for name in figures), "an empty bucket has no mean"


def test_a_new_run_starts_from_a_unet_and_a_resumed_one_does_not_need_it(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = UNet2DModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    source.save_pretrained(tmp_path / "unet")
    common = [
        "fit", "-c", str(CONFIGS / "masknet.yaml"), "-c", str(CONFIGS / "overlays/cpu.yaml"), "--data.shards",
        str(shards), "--run", "run", "--trainer.default_root_dir", str(tmp_path), *TINY, *QUIET,
        "--model.init_from", str(tmp_path / "unet"), "--model.learning_rate=0", "--model.weight_decay=0",
    ]  # fmt: skip
    assert main([*common, "--trainer.max_steps=1"]) == 0
    assert "taken    mid_block.resnets.0.conv1.weight [16, 16, 3, 3]" in capsys.readouterr().out
    state = weights(tmp_path)["state_dict"]
    name = "down_blocks.0.resnets.0.conv1.weight"
    assert torch.equal(state[f"net.encoder.{name}"], dict(source.named_parameters())[name])
    (tmp_path / "unet").rename(tmp_path / "gone")
    assert main([*common, "--trainer.max_steps=2", "--ckpt_path=last"]) == 0
    assert MaskNet.load(tmp_path / "run/checkpoints/last.ckpt").hparams["init_from"] == str(tmp_path / "unet")
    assert not set(OF_THE_COMMAND) & set(weights(tmp_path)["hyper_parameters"])
    assert main([*common, "--trainer.max_steps=1", "--run", "other"]) == 2
    assert "no diffusers U-Net there" in capsys.readouterr().err


def test_training_logs_both_terms_by_timestep_and_testing_its_own_names(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    common = ["-c", str(CONFIGS / "masknet.yaml"), "-c", str(CONFIGS / "overlays/cpu.yaml"), *TINY,
              "--data.shards", str(shards), "--trainer.default_root_dir", str(tmp_path), "--model.metric_draws=3",
              "--trainer.logger", json.dumps([logger])]  # fmt: skip
    steps = ["--trainer.max_steps=4", "--trainer.log_every_n_steps=2", "--trainer.val_check_interval=4"]
    assert main(["fit", *common, "--run", "run", *steps]) == 0
    header = next(csv.reader((tmp_path / "run/csv/version_0/metrics.csv").open()))
    for kind in ("loss_mask", "loss_para", "gradient_ratio"):
        assert any(name.startswith(f"train/{kind}/t") for name in header), kind
    assert any(name.startswith("val/loss_mask/t") for name in header)
    figures = {"contact", "centre_error_best", "size_error_best", "angle_error_best", "proxy_iou_best", "centre_spread"}
    assert {f"val/{name}" for name in figures} <= set(header)
    assert "val/energy_distance" not in header, "these shards have no truth"
    assert (tmp_path / "run/samples/layout_density-0000004.png").is_file()
    checkpoint = str(tmp_path / "run/checkpoints/last.ckpt")
    assert main(["test", *common, "--run", "tested", "--ckpt_path", checkpoint, "--model.sampler=unipc"]) == 0
    header = next(csv.reader((tmp_path / "tested/csv/version_0/metrics.csv").open()))
    assert {f"test/{name}" for name in figures} <= set(header)
    assert "test/loss" in header
    assert list((tmp_path / "tested/samples").glob("test-layout_density-*.png"))
    # the command line's sampler counts, not one of the checkpoint's
    words = ["--run", "other", "--ckpt_path", checkpoint, "--model.sampler=ddim", "--model.sample_steps=2000"]
    assert main(["predict", *common, *words]) == 2
    assert "sample_steps 2000 (--model.sample_steps" in capsys.readouterr().err


def test_an_image_size_that_cells_do_not_fill_is_named() -> None:
    with pytest.raises(InputError, match=r"--model\.image_size 31: must be a multiple of 2"):
        MaskNet(**SMALL, image_size=31)


def test_every_point_of_the_sweep_is_a_run(shards: Path, tmp_path: Path) -> None:
    sweep = yaml.safe_load((CONFIGS / "sweeps/masknet.yaml").read_text())
    assert sweep["command"][1:4] == ["-m", "hoi_lightning", "fit"]
    words = ["fit", "-c", str(CONFIGS / "mini/masknet.yaml"), "--data.shards", str(shards), *TINY, *QUIET]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    last = [f"--{name}={setting['values'][-1]}" for name, setting in sweep["parameters"].items()]
    assert main([*words, "--run", "last", *last]) == 0
    for name, setting in sweep["parameters"].items():
        kind = type(setting["values"][0])
        default = inspect.signature(MaskNet).parameters[name.removeprefix("model.")].default
        assert isinstance(default, kind)
        if kind is str:
            literal = get_type_hints(MaskNet.__init__)[name.removeprefix("model.")]
            assert set(setting["values"]) <= set(get_args(literal))
