"""FusionNet's network: a nine-channel Stable Diffusion inpainting U-Net, from a diffusers folder or built small."""

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor

from hoi_lightning.diffusion.schedule import NoiseSchedule, PredictionType, ScheduleKind
from hoi_lightning.errors import InputError
from hoi_lightning.networks.autoencoder import missing_pretrained, pretrained_file

MOST_TOKENS = 10_000
PROMPT_WIDTH = 32  # of a small U-Net without a text encoder
_CONDITIONS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


def load_unet(folder: str, revision: str | None = None, widen_conv_in: bool = False) -> Any:
    """Open `<folder>/unet`; a hub id works too.

    Args:
        folder: diffusers folder or hub id.
        revision: of the hub id.
        widen_conv_in: take a text-to-image U-Net, too: its filters stay, those of hole and context start at zero.

    Raises:
        InputError: no nine-channel inpainting U-Net there, or one that asks for more than a picture and a prompt.
    """
    from diffusers import UNet2DConditionModel

    try:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", revision=revision)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(missing_pretrained(folder, "unet", error)) from None
    if asks := [f"{name} {unet.config[name]}" for name in _CONDITIONS if unet.config.get(name) is not None]:
        raise InputError(
            f"--model.pretrained {folder}: its unet asks for more than a picture and a prompt ({asks[0]}), as SDXL's; "
            "pass a Stable Diffusion 1.x or 2.x inpainting checkpoint, or paint with this one by `generate --painter`"
        )
    wanted, found = 2 * unet.config.out_channels + 1, unet.config.in_channels
    if found == unet.config.out_channels and widen_conv_in:
        _widen(unet, wanted)
    elif found != wanted:
        way_out = " or --model.widen_conv_in true" if found == unet.config.out_channels else ""
        raise InputError(
            f"--model.pretrained {folder}: its unet has {found} input channels, an inpainting U-Net has {wanted}; "
            f"pass an inpainting checkpoint{way_out}"
        )
    return unet.train()


def _widen(unet: Any, channels: int) -> None:
    old = unet.conv_in
    unet.conv_in = torch.nn.Conv2d(channels, old.out_channels, old.kernel_size, padding=old.padding)
    with torch.no_grad():
        unet.conv_in.weight.zero_()
        unet.conv_in.weight[:, : old.in_channels] = old.weight
        unet.conv_in.bias.copy_(old.bias)
    unet.register_to_config(in_channels=channels)


def small_unet(channels: Sequence[int], latent_channels: int, sample_size: int, prompt_width: int) -> Any:
    """A `UNet2DConditionModel` of the same interface, randomly initialised, attention on its last level only."""
    from diffusers import UNet2DConditionModel

    if not channels or any(width < 8 or width % 8 for width in channels):
        raise InputError(f"--model.unet_channels {list(channels)}: give one or more multiples of 8, such as [48, 96]")
    plain = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=2 * latent_channels + 1,
        out_channels=latent_channels,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        cross_attention_dim=prompt_width,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def load_scheduler(folder: str, revision: str | None = None) -> Any:
    """Open `<folder>/scheduler` as a `DDIMScheduler`.

    Raises:
        InputError: no scheduler config there.
    """
    from diffusers import DDIMScheduler

    try:
        return DDIMScheduler.from_pretrained(folder, subfolder="scheduler", revision=revision)
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(missing_pretrained(folder, "scheduler", error)) from None


def load_schedule(folder: str, revision: str | None = None) -> tuple[NoiseSchedule, PredictionType]:
    """The noise schedule and the prediction type that the checkpoint was trained with.

    Raises:
        InputError: no scheduler config there, or one of a kind that is not implemented.
    """
    config = load_scheduler(folder, revision).config
    kind, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    zero_snr = config.get("rescale_betas_zero_snr", False)
    where = f"--model.pretrained {folder}: its scheduler_config.json asks for"
    for name, value, known in (("beta_schedule", kind, ScheduleKind), ("prediction_type", prediction, PredictionType)):
        if value not in get_args(known):
            raise InputError(f"{where} {name} {value!r}; pass a checkpoint of one of {', '.join(get_args(known))}")
    if config.get("trained_betas") is not None:
        raise InputError(f"{where} trained_betas, noise levels of its own; pass a checkpoint with a beta_schedule")
    if zero_snr and prediction == "epsilon":
        raise InputError(
            f"{where} rescale_betas_zero_snr with prediction_type epsilon, which says nothing where no signal is "
            "left; set the one to false, or pass a checkpoint of v_prediction"
        )
    schedule = NoiseSchedule(
        kind,
        config.get("num_train_timesteps", 1000),
        config.get("beta_start", 1e-4),
        config.get("beta_end", 0.02),
        zero_terminal_snr=zero_snr,
    )
    return schedule, prediction


def prompt_embedding(folder: str, prompt: str, width: int | None, revision: str | None = None) -> Tensor:
    """Embedding (1, tokens, width) of the one constant prompt; the text encoder is dropped again at once.

    Read from `prompt_embeds.safetensors` when it is there, else computed by the folder's or hub id's text encoder. A
    folder that declares neither (small ones trained from scratch) gets one zero token. A width of None is any.

    Raises:
        InputError: one of them is damaged, not to be had, or another U-Net's.
    """
    embedding = _find_embedding(folder, prompt, revision)
    if embedding is None:
        return torch.zeros(1, 1, width or PROMPT_WIDTH)
    if width is not None and embedding.shape[-1] != width:
        raise InputError(
            f"--model.pretrained {folder}: its prompt embedding is {embedding.shape[-1]} wide, its unet takes {width}; "
            "both must be of one checkpoint"
        )
    return embedding


def _find_embedding(folder: str, prompt: str, revision: str | None) -> Tensor | None:
    stored = pretrained_file(folder, "prompt_embeds.safetensors", revision)
    if stored is not None:
        from safetensors.torch import load_file

        try:
            return load_file(stored)["prompt_embeds"].float()
        except (OSError, KeyError, SafetensorError) as error:
            raise InputError(missing_pretrained(folder, stored.name, error)) from None
    if not _declares_text_encoder(folder, revision):
        return None
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", revision=revision)
        encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", revision=revision)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(missing_pretrained(folder, "text_encoder", error)) from None
    length = tokenizer.model_max_length
    if length > MOST_TOKENS:  # transformers' tokenizer of a folder without one is empty and endless
        raise InputError(missing_pretrained(folder, "tokenizer", FileNotFoundError("its files are not there")))
    tokens = tokenizer(prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids)[0].float()


def _declares_text_encoder(folder: str, revision: str | None) -> bool:
    """Whether a pipeline's folder is to have one, even if it was not downloaded."""
    if Path(folder, "text_encoder").is_dir():
        return True
    path = pretrained_file(folder, "model_index.json", revision)
    if path is None:
        return not Path(folder).is_dir()
    try:
        index = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return bool(isinstance(index, dict) and any(index.get("text_encoder") or ()))


class _OwnValue:
    """Attention in which every place attends to itself alone."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states)))


_OWN_VALUE = _OwnValue()  # one for all, or a compiled U-Net would be compiled at every switch


@contextlib.contextmanager
def perturbed_attention(unet: Any) -> Iterator[None]:
    """Self-attention replaced by the identity (Ahn et al. 2403.17377) in the coarsest blocks that have any.

    These are the middle block, the last of the down blocks with attention and the first such up block.
    """
    own = unet.attn_processors
    downs, ups = (
        [block for block in blocks if hasattr(block, "attentions")] for blocks in (unet.down_blocks, unet.up_blocks)
    )
    coarse = {id(module) for block in (*downs[-1:], unet.mid_block, *ups[:1]) for module in block.modules()}
    switched = {
        name: _OWN_VALUE
        if name.endswith("attn1.processor") and id(unet.get_submodule(name.removesuffix(".processor"))) in coarse
        else processor
        for name, processor in own.items()
    }
    unet.set_attn_processor(switched)
    try:
        yield
    finally:
        unet.set_attn_processor(own)


def add_lora(unet: Any, rank: int) -> None:
    """Freeze a U-Net and add trainable low-rank adapters to its attention layers."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=layers))


def save_inpaint_folder(
    folder: Path, unet: Any, vae: Any, scheduler: Any, prompt_embeds: Tensor, dtype: torch.dtype
) -> None:
    """Write a folder for diffusers' `StableDiffusionInpaintPipeline`.

    Args:
        folder: is made.
        unet: nine channels; adapters are merged into the written one, and lie by themselves in `lora/`.
        vae: the first stage.
        scheduler: its schedule is kept, its walk becomes ours: trailing times, no clipping, a clean end.
        prompt_embeds: (1, tokens, width), written in place of a text encoder.
        dtype: of the written weights.
    """
    import diffusers
    from safetensors.torch import save_file

    diffusers.DDIMScheduler.from_config(
        scheduler.config,
        timestep_spacing="trailing",
        steps_offset=1,  # diffusers warns of another; `trailing` does not read it
        clip_sample=False,
        set_alpha_to_one=True,
    ).save_pretrained(folder / "scheduler")
    parts = {"unet": copy.deepcopy(unet), "vae": copy.deepcopy(vae)}
    if getattr(unet, "peft_config", None):
        unet.save_lora_adapter(folder / "lora")
        parts["unet"].fuse_lora()
        parts["unet"].unload_lora()
    for name, part in parts.items():
        part.register_to_config(_name_or_path="")  # of this machine
        torch.nn.Module.to(part, dtype).save_pretrained(folder / name)
    # what is null is handed to `StableDiffusionInpaintPipeline.from_pretrained` as None
    absent = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
    index = {
        "_class_name": "StableDiffusionInpaintPipeline",
        "_diffusers_version": diffusers.__version__,
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        **{name: ["diffusers", type(part).__name__] for name, part in parts.items()},
        **{name: [None, None] for name in absent},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    save_file({"prompt_embeds": prompt_embeds.contiguous()}, folder / "prompt_embeds.safetensors")
