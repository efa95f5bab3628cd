"""Laws of the figures of merit."""

import hashlib
import json
import logging
import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from hoi_lightning.callbacks.image_metrics import ImageMetricsCallback
from hoi_lightning.data.reader import ShardIndex
from hoi_lightning.errors import InputError
from hoi_lightning.metrics import image, layout, mini
from hoi_lightning.metrics.mini import MiniFeatures


@pytest.fixture(autouse=True)
def no_trained_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def pictures(n=12, size=32, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def blurred(batch, factor=4):
    small = nn.functional.avg_pool2d(batch.float(), factor)
    return nn.functional.interpolate(small, scale_factor=factor).round().byte()


def statistics(features, *splits):
    stream = image.FeatureStatistics()
    for part in torch.tensor_split(features, splits):
        if len(part):
            stream.update(part)
    return stream


def distance(one, other):
    return image.frechet_distance(one.mean, one.cov, other.mean, other.cov)


def test_the_distance_of_a_set_from_itself_is_zero_even_with_fewer_pictures_than_features():
    for n in (4, 100):
        same = statistics(torch.randn(n, 32))
        assert abs(distance(same, same)) < 1e-6


def test_two_gaussians_have_the_closed_form_distance():
    mean1, mean2 = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, -1.0]], dtype=torch.float64)
    var1, var2 = torch.tensor([[1.0, 4.0, 9.0], [4.0, 1.0, 0.0]], dtype=torch.float64)
    expected = 10 + (var1.sqrt() - var2.sqrt()).square().sum().item()  # commuting covariances
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    found = image.frechet_distance(turn @ mean1, turn @ var1.diag() @ turn.T, turn @ mean2, turn @ var2.diag() @ turn.T)
    assert found == pytest.approx(expected, rel=1e-6)


def test_statistics_depend_neither_on_batches_nor_on_order_nor_on_ranks():
    features = torch.randn(50, 8) + 1000  # far from 0, where naive sums cancel
    whole = statistics(features)
    torch.testing.assert_close(whole.cov, features.double().T.cov(), rtol=1e-9, atol=1e-9)
    merged = statistics(features[:20], 3)
    merged.merge(statistics(features[20:], 1, 2, 9))
    merged.merge(image.FeatureStatistics())
    for other in (statistics(features, 7, 8, 31), statistics(features.flip(0), 10), merged):
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.cov, whole.cov, rtol=1e-9, atol=1e-9)


def test_a_covariance_of_one_picture_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        statistics(torch.randn(1, 4)).cov  # noqa: B018


def test_the_distance_is_that_of_torchmetrics_on_the_same_features():
    features = MiniFeatures.from_folder()
    fake, real = pictures(96), blurred(pictures(96, seed=1))
    ours = image.image_metrics()
    ours.update(fake, real)
    oracle = FrechetInceptionDistance(feature=features)
    oracle.update(fake, real=False)
    oracle.update(real, real=True)
    assert ours.compute()["fd_mini"] == pytest.approx(oracle.compute().item(), rel=1e-4)


def test_equal_pictures_are_at_distance_zero_and_noise_moves_them_apart_monotonically():
    metrics = image.image_metrics()
    clean = blurred(pictures())
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    levels = [(clean + sigma * noise).round().clamp(0, 255).byte() for sigma in (0, 5, 20, 60)]
    distances = [metrics.perceptual(level, clean).mean().item() for level in levels]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[1] > 0
    frechet = []
    for level in levels:
        metrics.reset()
        metrics.update(level, clean)
        frechet.append(metrics.compute()["fd_mini"])
    assert frechet[0] < 1e-6
    assert frechet == sorted(frechet)


def test_a_stream_of_pairs_does_not_depend_on_how_it_is_cut():
    fake, real = pictures(10), pictures(10, seed=1)
    whole, parts, rank = image.image_metrics(), image.image_metrics(), image.image_metrics()
    whole.update(fake, real)
    parts.update(fake[:3], real[:3])
    rank.update(fake[3:], real[3:])
    parts.merge(rank.state())
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-5)
    assert whole.compute()["num_pictures"] == 10


def test_pictures_must_be_uint8():
    with pytest.raises(ValueError, match="uint8"):
        image.image_metrics().update(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))


def test_autocast_does_not_reach_the_feature_networks():
    fake, real = pictures(4), pictures(4, seed=1)
    plain = image.image_metrics().update(fake, real)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(image.image_metrics().update(fake, real), plain, rtol=0, atol=0)


def test_absent_networks_are_named_once_and_never_called_fid_or_lpips(caplog):
    image._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        names = {(made.fd_name, made.lpips_name) for made in (image.image_metrics(), image.image_metrics())}
    assert names == {("fd_mini", "lpips_mini")}
    assert [image.INCEPTION in caplog.text, image.ALEXNET in caplog.text] == [True, True]
    assert len(caplog.records) == 2


def test_a_weight_file_with_the_wrong_content_is_refused_before_it_is_opened(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / image.INCEPTION).write_bytes(b"not weights")
    with pytest.raises(InputError, match="replace the file"):
        image.image_metrics()


def test_building_the_metrics_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    image.image_metrics()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mini_network_takes_pictures_of_any_size_and_says_nearly_the_same_of_all():
    network = MiniFeatures.from_folder()
    small = nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 255, size=128, mode="bicubic").clamp(0, 255)
    features = network(small.round().byte())
    assert features.shape == (4, network.num_features)
    assert [stage.shape[-1] for stage in network.stages(pictures(2, 128))] == [64, 32, 16, 8, 4]
    for size in (96, 256):
        other = network(nn.functional.interpolate(small, size=size, mode="bilinear", antialias=True).round().byte())
        assert (other - features).norm() < 0.3 * features.norm()
    assert torch.equal(network(small.round().byte()), features)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_mini_distance_is_zero_for_equal_pictures_and_symmetric():
    network = MiniFeatures.from_folder()
    one, other = pictures(3, 64), pictures(3, 64, seed=1)
    assert network.distance(one, one).tolist() == [0, 0, 0]
    assert network.distance(one, other).tolist() == network.distance(other, one).tolist()
    assert 0 < network.distance(one, other).min() <= network.distance(one, other).max() < 2


def test_the_mini_weights_are_small_half_precision_and_those_of_their_card():
    from safetensors.torch import load_file

    path = mini.WEIGHTS / mini.MODEL_FILE
    card = json.loads((mini.WEIGHTS / "card.json").read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"] == mini.file_sha256(path)
    assert path.stat().st_size < 4 * 2**20
    assert 0.5e6 < card["parameters"] == sum(p.numel() for p in MiniFeatures().parameters()) < 1.5e6
    assert load_file(path)["trunk.0.0.0.weight"].dtype == torch.float16


def test_absent_or_foreign_mini_weights_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"mini/metrics\.yaml"):
        MiniFeatures.from_folder(tmp_path)
    (tmp_path / mini.MODEL_FILE).write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="not this version's"):
        MiniFeatures.from_folder(tmp_path)


def test_a_fit_leaves_a_network_that_opens_with_its_card(shards, tmp_path):
    from hoi_lightning.__main__ import main

    status = main([
        "fit", "-c", str(Path(__file__).parent.parent / "configs/mini/metrics.yaml"), "--data.shards", str(shards),
        "--run", "run", "--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps=2", "--data.batch_size=4",
        "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1",
    ])  # fmt: skip
    assert status == 0
    assert (tmp_path / "run/samples/step-0000002.png").is_file()
    folder = tmp_path / "run/mini-metrics"
    card = json.loads((folder / "card.json").read_text())
    assert card["steps"] == 2
    assert card["sha256"] == mini.file_sha256(folder / mini.MODEL_FILE)
    assert card["final_losses"]["loss"] > 0
    index = ShardIndex(shards, "train")
    assert card["manifest_sha256"] == index.manifest_hash
    assert card["config_sha256"] == mini.file_sha256(tmp_path / "run/config.yaml")
    trained = MiniFeatures.from_folder(folder)(pictures(2, 64))
    assert trained.isfinite().all()


def test_psnr_looks_at_the_hole_alone_and_falls_with_the_error():
    real = pictures(1)[0].permute(1, 2, 0).numpy()
    hole = np.zeros((32, 32), dtype=bool)
    hole[4:20, 8:12] = True
    outside = real.copy()
    outside[~hole] = 255 - outside[~hole]
    assert image.psnr(outside, real, hole) == image.psnr(real, real, hole)
    shifted = np.where(real > 127, real - 10, real + 10).astype(np.uint8)
    assert image.psnr(shifted, real, hole) == pytest.approx(20 * math.log10(255 / 10))
    assert math.isnan(image.psnr(real, real, np.zeros_like(hole)))


def test_what_changes_outside_the_hole_is_found():
    obj = pictures(1)[0].permute(1, 2, 0).numpy() // 2
    hole = np.zeros((32, 32), dtype=bool)
    hole[:8] = True
    fake = obj.copy()
    fake[:8] = 255
    assert image.outside_max_diff(fake, obj, hole) == 0
    fake[20, 3, 1] += 7
    assert image.outside_max_diff(fake, obj, hole) == 7
    assert image.outside_max_diff(fake, obj, np.ones_like(hole)) == 0


@pytest.mark.parametrize("spot", [(0, 3, 0, 3), (28, 32, 10, 31), (0, 32, 5, 6), (31, 32, 31, 32)])
def test_the_hole_s_square_holds_the_hole_and_fits_the_picture(spot):
    top, bottom, left, right = spot
    hole = np.zeros((32, 40), dtype=bool)
    hole[top:bottom, left:right] = True
    x0, y0, x1, y1 = image.hole_box(hole)
    assert x1 - x0 == y1 - y0 == max(bottom - top, right - left)
    assert 0 <= x0 <= left < right <= x1 <= 40
    assert 0 <= y0 <= top < bottom <= y1 <= 32
    assert image.hole_crop(np.zeros((32, 40, 3), dtype=np.uint8), hole).shape == (64, 64, 3)


def layouts(n, seed=0):
    noise = torch.rand(n, 5, generator=torch.Generator().manual_seed(seed))
    direction = nn.functional.normalize(noise[:, 3:] - 0.5)
    return torch.cat([0.4 + 0.4 * noise[:, :1], noise[:, 1:3] - 0.5, direction], dim=1)


def test_a_layout_has_no_error_against_itself():
    same = layouts(5)
    for error in (layout.centre_error, layout.size_error, layout.angle_error):
        assert error(same, same).abs().max() < 1e-3
    assert layout.size_ratio(same, same).tolist() == pytest.approx([1] * 5)
    assert layout.splat_iou(same, same).tolist() == [1] * 5


def test_layout_errors_are_measured_in_sides_radii_and_degrees():
    true = torch.tensor([0.5, 0.0, 0.0, 1.0, 0.0])
    assert layout.centre_error(torch.tensor([0.5, 1.0, 0.0, 1.0, 0.0]), true).item() == pytest.approx(0.5)
    assert layout.size_ratio(true * torch.tensor([2.0, 1, 1, 1, 1]), true).item() == pytest.approx(4)
    assert layout.size_error(true * torch.tensor([1.5, 1, 1, 1, 1]), true).item() == pytest.approx(0.5)
    for degrees in (-179.0, -90.0, 0.0, 30.0, 180.0):
        turned = torch.tensor([0.5, 0, 0, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
        assert layout.angle_error(3 * turned, true).item() == pytest.approx(abs(degrees), abs=1e-3)


def test_the_best_draw_is_no_worse_than_any_and_diversity_is_zero_for_equal_draws():
    draws, true = layouts(6), layouts(1, seed=9)[0]
    errors = layout.centre_error(draws, true)
    assert (layout.best_of(errors) <= errors).all()
    equal = draws[:1].expand(6, 5)
    assert layout.resultant_length(equal).item() == pytest.approx(1)
    assert layout.centre_spread(equal).item() == pytest.approx(0, abs=1e-6)
    opposed = torch.stack([draws[0], draws[0] * torch.tensor([1, 1, 1, -1, -1])])
    assert layout.resultant_length(opposed).item() == pytest.approx(0, abs=1e-6)
    assert layout.centre_spread(draws) > 0


def test_contact_rate_counts_the_touching_palms():
    objects = torch.zeros(1, 64, 64, dtype=torch.bool)
    objects[:, 28:36, 28:36] = True
    touching, away = torch.tensor([0.5, 0, 0, 0, 1.0]), torch.tensor([0.3, 0.9, 0.9, 0, 1.0])
    assert layout.contact_rate(touching, objects) == 1
    assert layout.contact_rate(torch.stack([touching, away, away, away]), objects) == 0.25


def test_hole_recall_is_the_covered_share_of_the_hand():
    hand, hole = np.zeros((8, 8), dtype=bool), np.zeros((8, 8), dtype=bool)
    assert math.isnan(layout.hole_recall(hole, hand))
    hand[:4] = True
    hole[:3] = True
    assert layout.hole_recall(hole, hand) == 0.75


class Blurs(pl.LightningModule):
    """A task that "samples" noise of its seeds around the truth."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.scale.square()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def sample_images(self, batch, seeds):
        noise = [torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        changed = (batch["hoi"] + 0.1 * torch.stack(noise)).clamp(-1, 1)
        return torch.where(self.hole_mask(batch["layout"]) > 0, changed, batch["obj"])

    def hole_mask(self, layouts):
        hole = torch.zeros(len(layouts), 1, 16, 16)
        hole[..., 4:14, 4:14] = 1
        return hole


class Leaks(Blurs):
    """One that changes pixels outside the hole, too."""

    def sample_images(self, batch, seeds):
        return super().sample_images(batch, seeds) + 10 / 127.5


class Computes(Blurs):
    """One whose network answers in the precision that it is called in."""

    autocasts: list[bool]

    def sample_images(self, batch, seeds):
        self.autocasts.append(torch.is_autocast_enabled("cpu"))
        return F.conv2d(batch["hoi"], torch.eye(3)[..., None, None])


def fit(callback, tmp_path, batch_size, epochs=1, task=Blurs, precision="32-true"):
    hand = torch.zeros(1, 16, 16)
    hand[:, 5:13, 6:12] = 1
    data = [
        {"key": f"key{i}", "hoi": picture, "obj": picture * 0.9, "hand": hand, "layout": torch.zeros(5)}
        for i, picture in enumerate(pictures(12, 16).float() / 127.5 - 1)
    ]
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[callback], default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, precision=precision,
    )  # fmt: skip
    trainer.fit(task(), loader, loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def test_the_callback_logs_the_same_figures_for_every_batch_size_and_keeps_its_networks_to_itself(tmp_path):
    figures = fit(ImageMetricsCallback(num_samples=10), tmp_path, batch_size=4)
    names = ("fd_mini", "lpips_mini", "num_pictures", "fd_mini_hand", "lpips_mini_hand", "num_pictures_hand")
    assert set(figures) == {f"val/{name}" for name in names} | {"val/outside_max_diff"}
    assert figures["val/num_pictures"] == figures["val/num_pictures_hand"] == 10
    assert figures["val/outside_max_diff"] == 0
    assert figures["val/lpips_mini_hand"] > figures["val/lpips_mini"]
    assert figures["val/fd_mini"] > 0
    assert fit(ImageMetricsCallback(num_samples=10), tmp_path, batch_size=3) == pytest.approx(figures, rel=1e-4)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["scale"]


def test_the_callback_can_skip_validations_and_remembers_its_count(tmp_path):
    callback = ImageMetricsCallback(num_samples=4, every_n_validations=2)
    fit(callback, tmp_path, batch_size=4, epochs=3)
    assert callback.state_dict() == {"validations": 3}
    resumed = ImageMetricsCallback(num_samples=4, every_n_validations=2)
    resumed.load_state_dict({"validations": 1})
    assert fit(resumed, tmp_path, batch_size=4) == {}  # the second validation is not measured
    one = fit(ImageMetricsCallback(num_samples=1), tmp_path, batch_size=4)
    assert set(one) == {"val/outside_max_diff"}  # one picture has no covariance


def test_the_callback_sees_what_changes_outside_the_hole(tmp_path):
    figures = fit(ImageMetricsCallback(num_samples=4), tmp_path, batch_size=4, task=Leaks)
    assert figures["val/outside_max_diff"] == pytest.approx(10, abs=1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_callback_samples_in_the_run_s_precision_and_measures_in_full(tmp_path, precision):
    Computes.autocasts = []
    figures = fit(ImageMetricsCallback(num_samples=4), tmp_path, batch_size=4, task=Computes, precision=precision)
    assert set(Computes.autocasts) == {precision == "bf16-mixed"}
    assert figures["val/lpips_mini"] < 0.01
