"""Hands removed, and objects re-synthesised, by a diffusers inpainting pipeline.

Batches always have the same size, the last one being filled up, and a sample's noise is drawn on the CPU from its key:
on one device the same crop gives the same bytes, whatever is painted beside it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data_prep.remove_hand import HandRemover, RemovalRequest, Removed, paste, seed_of, shadow_hole
from hoi_lightning.errors import InputError

STEPS = 30  # of DDIM for a removal
GUIDANCE = 5.0  # scale of classifier-free guidance; Affordance Diffusion's
NEGATIVE_PROMPT = "hand, fingers, arm, sleeve, person"  # else a hole with a hand's outline is filled with a hand
SDEDIT_GRID = 200  # DDIM steps over the whole schedule; a level of 0.05 takes 10 of them

_PROMPTS = {  # where the category's name is no countable noun, or the thing stands on the floor
    "Chair": "a chair",
    "Pliers": "a pair of pliers on a table",
    "Scissors": "a pair of scissors on a table",
    "StorageFurniture": "a cabinet",
    "TrashCan": "a trash can",
}


class Inpainter:
    """A diffusers inpainting pipeline of the Stable Diffusion family at its own size: bf16 on CUDA, else fp32.

    Args:
        weights: hub id or local folder.
        size: side of the pictures that are handed in, in pixels.
        batch_size: pictures painted together.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        seed: of all noise, together with each picture's name.

    Attributes:
        name: of the checkpoint, without owner or folder.

    Raises:
        InputError: there is no such checkpoint or device, or the checkpoint is of another family or has no text
            encoder.
    """

    def __init__(self, weights: str, *, size: int, batch_size: int, device: str, seed: int) -> None:
        self.name = Path(weights).name
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.device = _device(device)
        self.pipeline = _open(weights, torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        try:
            self.pipeline.to(self.device)
        except torch.OutOfMemoryError:
            raise InputError(f"--device {self.device}: its memory does not hold {weights}; choose another") from None
        self.side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    def paint(
        self,
        names: Sequence[str],
        prompts: Sequence[str],
        pictures: np.ndarray,
        holes: np.ndarray,
        *,
        steps: int,
        strength: float = 1.0,
        guidance: float = 1.0,
    ) -> np.ndarray:
        """Paint one batch.

        Args:
            names: what each picture's noise belongs to.
            prompts: one for each picture.
            pictures: uint8 (B, S, S, 3), B at most `batch_size`.
            holes: bool (B, S, S), what is to be painted.
            steps: of DDIM over the whole schedule.
            strength: share of the schedule that is gone through, in [1 / steps, 1].
            guidance: scale of classifier-free guidance; 1 = none.

        Returns:
            uint8 (B, S, S, 3); the autoencoder touches pixels outside the holes, too.

        Raises:
            InputError: the device's memory does not hold the batch.
        """
        chosen = [min(row, len(names) - 1) for row in range(self.batch_size)]
        image = torch.from_numpy(np.stack([_resize(pictures[row], self.side) for row in chosen]))
        hole = torch.from_numpy(np.stack([_resize_hole(holes[row], self.side) for row in chosen]))
        generators = [torch.Generator().manual_seed(seed_of(f"{self.seed}/{names[row]}")) for row in chosen]
        try:
            with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
                painted = self.pipeline(
                    prompt=[prompts[row] for row in chosen],
                    negative_prompt=[NEGATIVE_PROMPT] * len(chosen),
                    image=image.permute(0, 3, 1, 2).float() / 255,
                    mask_image=hole[:, None].float(),
                    height=self.side,
                    width=self.side,
                    num_inference_steps=steps,
                    # the pipeline cuts the product off, and 29 / 200 * 200 is below 29
                    strength=min((round(strength * steps) + 0.5) / steps, 1.0),
                    guidance_scale=guidance,
                    generator=generators,
                    output_type="np",
                ).images
        except torch.OutOfMemoryError:
            raise InputError(
                f"--remover-batch-size {self.batch_size}: does not fit into the memory of {self.device}; halve it"
            ) from None
        pixels = (painted[: len(names)] * 255).round().astype(np.uint8)
        return np.stack([_resize(picture, self.size) for picture in pixels])


class DiffusionRemover:
    """Paints what the hands hide, plate or no plate; pixels outside the hole stay the video's own.

    The hole reaches a little beyond the hands off the objects, as their shadow would bring them back.

    Args:
        inpainter: what paints.
    """

    def __init__(self, inpainter: Inpainter) -> None:
        self.inpainter = inpainter

    def __call__(self, requests: Iterable[RemovalRequest]) -> Iterator[Removed]:
        """Remove the hands from each crop; reads ahead by one batch."""
        for batch in _batches(requests, self.inpainter.batch_size):
            holes = [shadow_hole(request) for request in batch]
            pictures = self.inpainter.paint(
                [request.key for request in batch],
                [prompt_for(request.category) for request in batch],
                np.stack([request.hoi for request in batch]),
                np.stack(holes),
                steps=STEPS,
                guidance=GUIDANCE,
            )
            for request, hole, painted in zip(batch, holes, pictures, strict=True):
                yield Removed(paste(request, hole, painted), hole, f"diffusion:{self.inpainter.name}")


class SDEditRemover:
    """Adds the SDEdit copy to what another remover makes: noise and denoising hide the traces of inpainting.

    The whole object picture is encoded, noised to `level` of the schedule and denoised with a hole that is everywhere,
    so that nothing but picture and prompt decides.

    Args:
        remover: what removes the hands.
        inpainter: what denoises.
        level: share of the schedule, in (0, 1]; taken to the nearest of `SDEDIT_GRID` steps, the first at least.
    """

    def __init__(self, remover: HandRemover, inpainter: Inpainter, level: float) -> None:
        self.remover, self.inpainter, self.level = remover, inpainter, level

    def __call__(self, requests: Iterable[RemovalRequest]) -> Iterator[Removed]:
        """Remove the hands from each crop and copy the results; reads ahead by one batch."""
        for batch in _batches(requests, self.inpainter.batch_size):
            removed = list(self.remover(batch))
            pictures = np.stack([one.obj for one in removed])
            copies = self.inpainter.paint(
                [f"{request.key}/sdedit" for request in batch],
                [prompt_for(request.category) for request in batch],
                pictures,
                np.ones(pictures.shape[:3], bool),
                steps=SDEDIT_GRID,
                strength=max(self.level, 1 / SDEDIT_GRID),
            )
            for one, copy in zip(removed, copies, strict=True):
                yield replace(one, sdedit=copy, sdedit_level=self.level)


def prompt_for(category: str) -> str:
    """What the picture shows, in words.

    Args:
        category: clean name as in a sample's record, e.g. `ToyCar`.
    """
    if category in _PROMPTS:
        return _PROMPTS[category]
    noun = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", category).lower()
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun} on a table"


def _open(weights: str, dtype: torch.dtype) -> Any:
    from diffusers import AutoPipelineForInpainting, DDIMScheduler, DiffusionPipeline

    remedy = f"`hf download {weights}` fetches a hub id, a local folder is taken as it is"
    if Path(weights).is_dir():
        remedy = f"save the whole inpainting pipeline there, e.g. `hf download OWNER/NAME --local-dir {weights}`"
    try:
        parts = DiffusionPipeline.load_config(weights).items()
        lacking = [name for name, part in parts if name.startswith(("text_encoder", "tokenizer")) and part[0] is None]
        if lacking:
            raise InputError(f"--remover-weights {weights}: has no {' and no '.join(sorted(lacking))}; {remedy}")
        # The safety checker blackens whole pictures, and a false alarm would pass for a removal.
        pipeline = AutoPipelineForInpainting.from_pretrained(weights, dtype=dtype, safety_checker=None)
        if "unet" not in pipeline.components or "beta_schedule" not in pipeline.scheduler.config:
            raise ValueError(f"{type(pipeline).__name__} is not of the Stable Diffusion family")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0][:160]
        raise InputError(f"--remover-weights {weights}: no inpainting pipeline opens ({reason}); {remedy}") from None
    # Eta is 0, so the first noise decides all; spaced from the end, the steps begin at the very level asked for and
    # end without noise.
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    return pipeline


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"--device {name}: there is no such device here; give auto, cpu or cuda") from None
    return device


def _batches(requests: Iterable[RemovalRequest], size: int) -> Iterator[list[RemovalRequest]]:
    stream = iter(requests)
    while batch := list(islice(stream, size)):
        yield batch


def _resize(picture: np.ndarray, side: int) -> np.ndarray:
    shrinks = picture.shape[0] > side
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _resize_hole(hole: np.ndarray, side: int) -> np.ndarray:
    """The hole at another size; a pixel that holds any of it belongs to it."""
    return cv2.resize(hole.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) > 0
