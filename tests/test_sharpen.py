"""An autoencoder that there is, sharpened: its latents keep their meaning."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hoi_lightning.__main__ import main
from hoi_lightning.errors import InputError
from hoi_lightning.networks.autoencoder import deepen_decoder, load_vae
from hoi_lightning.tasks import Autoencoder
from tests.tiny import batch_of_hands, write_shards

CONFIG = Path(__file__).parent.parent / "configs/mini/sharpen.yaml"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    Autoencoder(channels=8).export(folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards") / "s", {"train": 13, "val": 4}, per_shard=5)


def fit(shards: Path, base: Path, out: Path, *args: str) -> int:
    words = ["-c", str(CONFIG), "--data.shards", str(shards), "--model.pretrained", str(base)]
    words += ["--trainer.logger=false", "--trainer.default_root_dir", str(out)]
    words += ["--run=run", "--data.batch_size=4", "--model.crop=16", "--trainer.limit_val_batches=0"]
    return main(["fit", *words, *args])


def checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "run/checkpoints/last.ckpt", weights_only=True)


def test_more_blocks_begin_as_the_same_function(base: Path) -> None:
    vae = load_vae(str(base)).vae
    deeper = deepen_decoder(vae, (4, 2, 3))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert len(deeper.decoder.layers) == len(vae.decoder.layers) + 4
    torch.testing.assert_close(deeper.decode(z).sample, vae.decode(z).sample)
    torch.testing.assert_close(deeper.encode(vae.decode(z).sample).latents, vae.encode(vae.decode(z).sample).latents)


@pytest.mark.parametrize(("blocks", "text"), [((1, 2, 1), r"\[2, 2, 1\]"), ((3, 3), r"\[2, 2, 1\]")])
def test_no_fewer_blocks(base: Path, blocks: tuple[int, ...], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Autoencoder(pretrained=str(base), decoder_blocks=blocks)


def test_blocks_of_a_decoder_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"--model\.pretrained, too"):
        Autoencoder(decoder_blocks=(3, 3, 2))


def test_an_autoencoder_of_another_kind_is_trained_but_not_deepened(sd_folder: Path) -> None:
    with pytest.raises(InputError, match="is a AutoencoderKL's"):
        Autoencoder(pretrained=str(sd_folder), decoder_blocks=(3, 3, 2))
    task, batch = Autoencoder(pretrained=str(sd_folder), crop=32), batch_of_hands()
    torch.testing.assert_close(task.latents.code(batch["obj"]), load_vae(str(sd_folder)).encode(batch["obj"]))
    task.loss(batch, torch.Generator().manual_seed(0))["loss"].backward()
    assert all(p.grad is not None for p in task.vae.parameters())


def test_the_fit_resumes_bitwise_and_holds_no_copy_of_what_it_began_from(
    shards: Path, base: Path, tmp_path: Path
) -> None:
    assert fit(shards, base, tmp_path / "straight", "--trainer.max_steps=5") == 0
    assert fit(shards, base, tmp_path / "stopped", "--trainer.max_steps=2") == 0
    assert fit(shards, base, tmp_path / "stopped", "--trainer.max_steps=5", "--ckpt_path=last") == 0
    straight, resumed = checkpoint(tmp_path / "straight"), checkpoint(tmp_path / "stopped")
    assert {name.partition(".")[0] for name in straight["state_dict"]} == {"vae", "critic"}
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    after = load_vae(str(tmp_path / "straight/run/base")).vae.state_dict()
    assert all(torch.equal(value, straight["state_dict"][f"vae.{name}"]) for name, value in after.items())
    folders = (base, tmp_path / "straight/run/base")
    schedulers = [(folder / "scheduler/scheduler_config.json").read_text() for folder in folders]
    assert schedulers[0] == schedulers[1]


def test_the_pull_keeps_the_latents_where_they_were(shards: Path, base: Path, tmp_path: Path) -> None:
    pictures, moved = batch_of_hands()["hoi"], []
    for pull in (0, 1000):
        out = tmp_path / str(pull)
        assert fit(shards, base, out, "--trainer.max_steps=20", f"--model.latent_pull={pull}") == 0
        after = load_vae(str(out / "run/base"))
        moved.append((after.encode(pictures) - load_vae(str(base)).encode(pictures)).norm())
    assert 0 < moved[1] < moved[0] / 2


def test_another_autoencoder_does_not_go_on(
    shards: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    torch.manual_seed(1)
    Autoencoder(channels=8).export(other)
    assert fit(shards, base, tmp_path, "--trainer.max_steps=1") == 0
    assert fit(shards, other, tmp_path, "--trainer.max_steps=2", "--ckpt_path=last") == 2
    assert "its vae is not the one" in capsys.readouterr().err


def test_the_adversary_learns_the_same_however_much_it_counts(base: Path) -> None:
    """Its weight scales what the decoder is told; what it learns itself of real and made pictures has none."""

    def gradients(weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        task = Autoencoder(pretrained=str(base), adversarial_weight=weight, crop=16).train()
        task.loss(batch_of_hands(), torch.Generator().manual_seed(0))["loss"].backward()
        assert task.critic is not None
        critic, decoder = (
            torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (task.critic, task.vae.decoder)
        )
        return critic, decoder

    (critic1, decoder1), (critic2, decoder2), (critic4, decoder4) = map(gradients, (1.0, 2.0, 4.0))
    torch.testing.assert_close(critic1, critic2)
    torch.testing.assert_close(critic1, critic4)
    assert critic1.norm() > 0
    assert (decoder2 - decoder1).norm() > 0
    torch.testing.assert_close(decoder4 - decoder2, 2 * (decoder2 - decoder1), rtol=1e-3, atol=1e-5)
