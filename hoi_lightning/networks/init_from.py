"""Start from a diffusers U-Net or a MaskNet: what fits by name and shape is taken, and every key is accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hoi_lightning.errors import InputError

# arguments of a MaskNet that change what its weights mean and none of their shapes
MEANING = ("prediction_type", "noise_schedule", "num_train_timesteps", "image_features", "image_size", "heads_dim")


@dataclass(frozen=True)
class InitReport:
    """What became of each parameter of the network that was initialised.

    Attributes:
        source: hub id or folder.
        taken: name → shape, copied as it was.
        resized: name → (shape there, shape here).
        left: name → shape, at its random start: the source has no such parameter, or one that fits in no way.
        unused: names of the source that the network has no place for, its decoder for one.
        differs: what neither names nor shapes tell: module → the source's setting and ours.
    """

    source: str
    taken: dict[str, tuple[int, ...]]
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    left: dict[str, tuple[int, ...]]
    unused: list[str]
    differs: dict[str, str]

    def __str__(self) -> str:
        """One line per key, and a count."""
        lines = [f"taken    {name} {list(shape)}" for name, shape in self.taken.items()]
        lines += [f"resized  {name} {list(there)} -> {list(here)}" for name, (there, here) in self.resized.items()]
        lines += [f"left     {name} {list(shape)}" for name, shape in self.left.items()]
        lines += [f"differs  {name}: {setting}" for name, setting in self.differs.items()]
        lines.append(
            f"init_from {self.source}: {len(self.taken)} parameters taken, {len(self.resized)} resized, "
            f"{len(self.left)} left as they were, {len(self.unused)} of the source not used"
        )
        return "\n".join(lines)


@torch.no_grad()
def init_from(network: nn.Module, source: str) -> InitReport:
    """Copy what fits from a diffusers U-Net.

    A first convolution of fewer input channels fills ours from the left, the further ones become zero; a linear layer
    and a 1x1 convolution are the same thing. Buffers have no part in this.

    Args:
        network: names its parameters as diffusers does.
        source: hub id, or folder with `config.json`, or with `unet/config.json`.

    Raises:
        InputError: no U-Net there, or one of which nothing fits.
    """
    unet = load_unet(source)
    return _copy(network, dict(unet.named_parameters()), source, _differences(unet, network))


@torch.no_grad()
def init_from_masknet(
    network: nn.Module, folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> InitReport:
    """Copy what fits from a MaskNet that `export` wrote, its encoder and its head.

    The statistics that layouts are standardised with stay those of the shards trained on.

    Args:
        network: of a MaskNet.
        folder: with `model.safetensors`.
        theirs: the exported MaskNet's arguments.
        ours: the new one's.

    Raises:
        InputError: the file is damaged, or nothing in it fits.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"--model.init_from {folder}: model.safetensors does not open ({error}); export it again"
        ) from None
    values = {name.removeprefix("net."): value.float() for name, value in weights.items() if name.startswith("net.")}
    differs = {
        name: f"{theirs[name]} there, {ours[name]} here"
        for name in MEANING
        if name in theirs and theirs[name] != ours[name]
    }
    return _copy(network, values, str(folder), differs)


def _copy(network: nn.Module, theirs: Mapping[str, Tensor], source: str, differs: dict[str, str]) -> InitReport:
    taken, resized, left = {}, {}, {}
    for name, here in network.named_parameters():
        there = theirs.get(name)
        fitted = None if there is None else _fit(name, there, here)
        if fitted is None or there is None:
            left[name] = tuple(here.shape)
            continue
        here.copy_(fitted)
        if there.shape == here.shape:
            taken[name] = tuple(here.shape)
        else:
            resized[name] = tuple(there.shape), tuple(here.shape)
    if not taken:
        raise InputError(
            f"--model.init_from {source}: no parameter fits by name and shape; set --model.channels to its"
        )
    unused = [name for name in theirs if name not in taken and name not in resized]
    return InitReport(source, taken, resized, left, unused, differs)


def load_unet(source: str) -> Any:
    """Open a diffusers U-Net of any class.

    Raises:
        InputError: there is none.
    """
    from diffusers import AutoModel

    inside = Path(source).is_dir() and not Path(source, "config.json").is_file()
    subfolders = ["unet"] if inside else [None, "unet"]
    for subfolder in subfolders:
        try:
            unet = AutoModel.from_pretrained(source, subfolder=subfolder, torch_dtype=torch.float32)
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            reason = str(error).split("\n")[0]
            continue
        if hasattr(unet, "down_blocks"):
            return unet
        reason = f"it is a {type(unet).__name__}"
    raise InputError(
        f"--model.init_from {source}: no diffusers U-Net there ({reason}); give a folder or a hub id that is in the "
        f"cache: hf download {source}"
    )


def _fit(name: str, there: Tensor, here: Tensor) -> Tensor | None:
    if there.shape == here.shape:
        return there
    if there.numel() == here.numel() and there.shape[:2] == here.shape[:2]:
        return there.reshape(here.shape)
    if name == "conv_in.weight" and there.shape[0] == here.shape[0] and there.shape[2:] == here.shape[2:]:
        wider = torch.zeros_like(here)
        shared = min(there.shape[1], here.shape[1])
        wider[:, :shared] = there[:, :shared]
        return wider
    return None


def _differences(unet: nn.Module, network: nn.Module) -> dict[str, str]:
    theirs = dict(unet.named_modules())
    found = {}
    for name, module in network.named_modules():
        if not name or name not in theirs:  # the root answers with its config
            continue
        for setting in ("num_groups", "heads", "stride", "flip_sin_to_cos", "downscale_freq_shift"):
            here, there = getattr(module, setting, None), getattr(theirs[name], setting, None)
            if there is not None and here is not None and there != here:
                found[name] = f"{setting} {there} there, {here} here"
    return found
