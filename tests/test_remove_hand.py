"""Hand removal by diffusion: only the hole changes, and the same crop gives the same bytes in any company."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_prep import diffusion_remover
from data_prep.diffusion_remover import DiffusionRemover, Inpainter, SDEditRemover, prompt_for
from data_prep.remove_hand import OpenCVRemover, RemovalRequest, Removed, hole_around, open_remover
from hoi_lightning.errors import InputError
from tests.tiny import save_sd_folder

SIDE = 96  # of the crops; the tiny pipeline's own is 64


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    steps, diffusion_remover.STEPS = diffusion_remover.STEPS, 3
    yield
    diffusion_remover.STEPS = steps


@pytest.fixture(scope="module")
def one_thread():
    """Networks this small only wait for a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread(_plain_process):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(one_thread, tmp_path_factory) -> Path:
    return save_inpainting_folder(tmp_path_factory.mktemp("inpaint") / "tiny")


def save_inpainting_folder(folder: Path) -> Path:
    """Make the tiny Stable Diffusion folder whole: with a text encoder and a tokenizer of single letters."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    save_sd_folder(folder)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), ",</w>"]
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
    )
    (folder / "text").mkdir()
    (folder / "text/vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "text/merges.txt").write_text("#version: 0.2\n")
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():  # a trained encoder is all but certain of its latents, whose scale is known
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -20
        latents = vae.encode(torch.rand(4, 3, 64, 64) * 2 - 1).latent_dist.mode()
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    files = str(folder / "text/vocab.json"), str(folder / "text/merges.txt")
    StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(*files, model_max_length=77),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    shutil.rmtree(folder / "text")
    return folder


def request(key: str, place: int = 40, category: str = "Mug") -> RemovalRequest:
    rng = np.random.default_rng(place)
    hoi = rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    hand = np.zeros((SIDE, SIDE), bool)
    hand[place:, 30:55] = True
    objects = np.zeros_like(hand)
    objects[10:50, 55:80] = True
    return RemovalRequest(key, hoi, hand, hole_around(hand, 4 * SIDE), objects, None, category)


def inpainter(folder: Path, batch_size: int = 2, seed: int = 0) -> Inpainter:
    return Inpainter(str(folder), size=SIDE, batch_size=batch_size, device="cpu", seed=seed)


REQUESTS = [request(f"clip_f{index:05d}", 30 + 5 * index) for index in range(5)]


@pytest.fixture(scope="module")
def removed(folder) -> list[Removed]:
    return list(DiffusionRemover(inpainter(folder))(iter(REQUESTS)))


def test_outside_the_hole_the_video_s_own_pixels_stay_and_the_order_is_kept(removed):
    assert len(removed) == len(REQUESTS)
    for one, asked in zip(removed, REQUESTS, strict=True):
        assert one.name == "diffusion:tiny"
        assert one.sdedit is None
        assert one.obj.dtype == np.uint8
        assert one.hole[asked.hole].all()
        assert not one.hole.all()
        np.testing.assert_array_equal(one.obj[~one.hole], asked.hoi[~one.hole])
        assert (one.obj[asked.hand] != asked.hoi[asked.hand]).any(-1).mean() > 0.9


def test_the_company_of_a_crop_does_not_matter(folder, removed):
    same_batch = list(DiffusionRemover(inpainter(folder))(REQUESTS[3:4]))
    np.testing.assert_array_equal(same_batch[0].obj, removed[3].obj)  # a batch of the same size, filled up
    for batch_size in (1, 4):
        others = DiffusionRemover(inpainter(folder, batch_size))(REQUESTS)
        for one, other in zip(removed, others, strict=True):
            assert np.abs(one.obj.astype(int) - other.obj).max() <= 2


def test_noise_belongs_to_key_and_seed(folder, removed):
    first = REQUESTS[0]
    renamed = request("clip_f99999", 30)
    np.testing.assert_array_equal(first.hoi, renamed.hoi)
    same, other_key = DiffusionRemover(inpainter(folder))([first, renamed])
    (other_seed,) = DiffusionRemover(inpainter(folder, seed=1))([first])
    assert same.obj.tobytes() == removed[0].obj.tobytes()
    assert other_key.obj.tobytes() != same.obj.tobytes()
    assert other_seed.obj.tobytes() != same.obj.tobytes()


def test_a_hand_s_colours_never_reach_the_painting(folder, removed):
    asked = REQUESTS[1]
    hoi = asked.hoi.copy()
    hoi[removed[1].hole] = (255, 0, 255)
    (other,) = DiffusionRemover(inpainter(folder))(
        [RemovalRequest(asked.key, hoi, asked.hand, asked.hole, asked.objects, None, asked.category)]
    )
    inner = asked.hand
    # The crop is shrunk before it is painted: what the resampling smears over the hole's edge may differ.
    assert np.abs(other.obj[inner].astype(int) - removed[1].obj[inner]).mean() < 8


@pytest.fixture(scope="module")
def round_trip(folder) -> tuple[torch.Tensor, np.ndarray]:
    """Latents of the requests' pictures as the pipeline scales them, and what the decoder makes of them."""
    model = inpainter(folder)
    vae, side = model.pipeline.vae, model.side
    pictures = np.stack([cv2.resize(asked.hoi, (side, side), interpolation=cv2.INTER_AREA) for asked in REQUESTS])
    with torch.no_grad():
        code = vae.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
        trip = vae.decode(code).sample.clamp(-1, 1)
    pixels = ((trip.permute(0, 2, 3, 1).numpy() / 2 + 0.5) * 255).round().astype(np.uint8)
    again = np.stack([cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for one in pixels])
    return code * vae.config.scaling_factor, again.astype(int)


def copies(model: Inpainter, level: float) -> np.ndarray:
    """SDEdit copies of the requests as they are."""

    class Keep:
        def __call__(self, requests):
            return (Removed(asked.hoi, asked.hole, "none") for asked in requests)

    found = list(SDEditRemover(Keep(), model, level)(REQUESTS))
    for one, asked in zip(found, REQUESTS, strict=True):
        assert one.obj is asked.hoi
        assert one.sdedit_level == level
    return np.stack([one.sdedit for one in found]).astype(int)


def test_an_sdedit_copy_is_nearer_to_its_picture_at_a_lower_level(folder, round_trip):
    model = inpainter(folder)
    far, low, lowest = (np.abs(copies(model, level) - round_trip[1]).mean() for level in (0.2, 0.05, 0.001))
    assert 0 < lowest < low < far
    assert lowest < round_trip[1].std() / 3


def test_a_network_that_knows_the_noise_leaves_the_autoencoder_s_round_trip(folder, round_trip, monkeypatch):
    model = inpainter(folder, batch_size=len(REQUESTS))
    levels = []

    def knows(x, t, **_):
        alpha_bar = model.pipeline.scheduler.alphas_cumprod[int(t)]
        levels.append(int(t))
        return ((x[:, :4] - alpha_bar.sqrt() * round_trip[0]) / (1 - alpha_bar).sqrt(),)

    monkeypatch.setattr(model.pipeline.unet, "forward", knows)
    assert np.abs(copies(model, 0.05) - round_trip[1]).max() <= 2
    assert levels == list(range(49, 0, -5))  # 5 % of 1000 levels


def test_plates_and_an_sdedit_copy_go_together(folder):
    remover = open_remover("opencv", size=SIDE, weights=str(folder), sdedit=0.05, batch_size=2, device="cpu", seed=0)
    for one, plain in zip(remover(REQUESTS[:3]), OpenCVRemover()(REQUESTS[:3]), strict=True):
        np.testing.assert_array_equal(one.obj, plain.obj)
        assert one.name == plain.name == "opencv:telea"
        assert one.sdedit_level == 0.05
        assert one.sdedit is not None
        assert (one.sdedit != one.obj).any()


def test_without_sdedit_the_cpu_remover_needs_no_weights():
    remover = open_remover("opencv", size=SIDE, weights=None, sdedit=None, batch_size=2, device="cpu", seed=0)
    assert isinstance(remover, OpenCVRemover)
    with pytest.raises(InputError, match="--remover-weights or --sdedit none"):
        open_remover("opencv", size=SIDE, weights=None, sdedit=0.05, batch_size=2, device="cpu", seed=0)


@pytest.mark.parametrize("level", [-0.1, 0.0, 1.5])
def test_a_level_outside_the_schedule_is_refused(level):
    with pytest.raises(InputError, match="--sdedit"):
        open_remover("opencv", size=SIDE, weights="x", sdedit=level, batch_size=2, device="cpu", seed=0)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_a_folder_without_text_names_what_is_missing(folder, tmp_path, part):
    copy = shutil.copytree(folder, tmp_path / "half")
    index = json.loads((copy / "model_index.json").read_text())
    index[part] = [None, None]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=part) as raised:
        inpainter(copy)
    assert "hf download" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_opened_is_one_line(tmp_path, sd_folder):
    for weights in (tmp_path, tmp_path / "nowhere", sd_folder, "nobody/no-such-model"):
        with pytest.raises(InputError, match="--remover-weights") as raised:
            inpainter(Path(weights))
        assert "hf download" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_device_that_is_not_there_and_a_full_one(folder, monkeypatch):
    with pytest.raises(InputError, match="--device cuda:77"):
        Inpainter(str(folder), size=SIDE, batch_size=1, device="cuda:77", seed=0)
    model = inpainter(folder)

    def fail(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(model.pipeline), "__call__", fail)
    with pytest.raises(InputError, match="--remover-batch-size 2"):
        list(DiffusionRemover(model)(REQUESTS))


def test_prompts_say_what_is_there():
    assert prompt_for("Mug") == "a mug on a table"
    assert prompt_for("ToyCar") == "a toy car on a table"
    assert prompt_for("object") == "an object on a table"
    assert prompt_for("Scissors") == "a pair of scissors on a table"
