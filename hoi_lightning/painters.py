"""Painters other than FusionNet: MaskNet says where, a diffusers inpainting pipeline paints what a prompt says."""

import hashlib
import inspect
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor

from hoi_lightning.errors import InputError
from hoi_lightning.hand_proxy import HOLE_DILATION
from hoi_lightning.holes import check_holes, check_sides, feather

PROMPT = "a photo of a human hand holding the object"
STEPS = 30

_ASKED = {"prompt", "image", "mask_image", "height", "width", "num_inference_steps", "generator", "output_type"}
_REMEDY = "give the folder or hub id of a diffusers inpainting pipeline, e.g. of SDXL, FLUX-Fill or Qwen-Image"


class DiffusersPainter:
    """A diffusers inpainting pipeline as the painter of `HOIPipeline`, with FusionNet's contract.

    Pictures are painted one at a time with noise drawn on the CPU: a picture depends on its own seed only.

    Args:
        pipe: paints from a picture, a hole and a prompt, and lies where it is to run.
        prompt: what is painted.
        image_size: side of the pictures in pixels; None = the pipeline's own.
        hole_dilation: the hole is the proxy dilated by this many radii.
        num_inference_steps: of the pipeline's scheduler.
        guidance_scale: of the prompt; None = the pipeline's own.
        checkpoint_hash: what the weights are filed under.

    Raises:
        InputError: the pipeline does not inpaint by a prompt, or cannot paint that size.
    """

    def __init__(
        self,
        pipe: Any,
        prompt: str = PROMPT,
        image_size: int | None = None,
        hole_dilation: float = HOLE_DILATION,
        num_inference_steps: int = STEPS,
        guidance_scale: float | None = None,
        checkpoint_hash: str = "",
    ) -> None:
        self.name = type(pipe).__name__
        takes = inspect.signature(pipe.__call__).parameters
        if not takes.keys() >= _ASKED or "control_image" in takes or not hasattr(pipe, "image_processor"):
            raise InputError(f"--painter: a {self.name} does not paint holes by a prompt alone; {_REMEDY}")
        if num_inference_steps < 1:
            raise InputError(f"num_inference_steps {num_inference_steps}: give 1 or more")
        if image_size is not None and image_size < 1:
            raise InputError(f"image_size {image_size}: give 1 or more")
        self.pipe, self.prompt, self.hole_dilation = pipe, prompt, hole_dilation
        self.image_size = _own_size(pipe) if image_size is None else image_size
        self.checkpoint_hash = checkpoint_hash
        self._settings: dict[str, Any] = {"num_inference_steps": num_inference_steps}
        if "strength" in takes:
            # many start from what lies in the hole; SDXL must, by a trace, or all of its picture is dull (its 0.9999)
            own = takes["strength"].default
            self._settings["strength"] = own if own > 0.99 else 1.0
        if "true_cfg_scale" in takes:
            self._settings["negative_prompt"] = " "  # Qwen-Image has no guidance without one
        if guidance_scale is not None:
            # where `guidance_scale` has no default it is for distilled checkpoints only
            name = "guidance_scale" if takes["guidance_scale"].default is not None else "true_cfg_scale"
            self._settings[name] = guidance_scale
        check_sides(self.name, self.image_size, self.image_size, self._multiple)
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: Path | str,
        prompt: str = PROMPT,
        image_size: int | None = None,
        hole_dilation: float = HOLE_DILATION,
        num_inference_steps: int = STEPS,
        guidance_scale: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        revision: str | None = None,
    ) -> Self:
        """Open a folder that diffusers saved, or a hub id.

        Args:
            folder_or_id: of an inpainting pipeline, or of a text-to-image one that diffusers can inpaint with.
            prompt: see the class.
            image_size: see the class.
            hole_dilation: see the class.
            num_inference_steps: see the class.
            guidance_scale: see the class.
            dtype: of the weights; None = bfloat16 on a GPU, else float32.
            device: where it runs.
            revision: branch, tag or commit of a hub id.

        Raises:
            InputError: no such pipeline, part of it is missing or damaged, it does not inpaint, or the device's memory
                does not hold it.
        """
        device = torch.device(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        index = find_index(folder_or_id, revision)
        pipe = _open(folder_or_id, index, dtype)
        try:
            pipe.to(device)
        except torch.OutOfMemoryError:
            raise InputError(
                f"--painter {folder_or_id}: the memory of {device} does not hold it; give a smaller one or --device cpu"
            ) from None
        digest = folder_hash(index.parent) if Path(folder_or_id).is_dir() else f"{folder_or_id}@{index.parent.name}"
        return cls(pipe, prompt, image_size, hole_dilation, num_inference_steps, guidance_scale, digest)

    @torch.no_grad()
    def sample_holes(self, obj: Tensor, hole: Tensor, seeds: Sequence[int]) -> Tensor:
        """Paint one hole per picture.

        Args:
            obj: pictures (B, 3, H, W) in [-1, 1], at `image_size` or another size that the autoencoder takes.
            hole: (B, 1, H, W) of {0, 1}, 1 = to be painted.
            seeds: one per picture.

        Returns:
            (B, 3, H, W) in [-1, 1]; outside the hole equal to `obj`.

        Raises:
            InputError: pictures or holes have a size that cannot be painted, or holes other values.
        """
        check_holes(self.name, obj, hole, self._multiple)
        rows = zip(obj.split(1), hole.split(1), seeds, strict=True)
        painted = [self._paint(one, where, seed) if where.any() else one for one, where, seed in rows]
        return torch.lerp(obj, torch.cat(painted), feather(hole))

    def _paint(self, obj: Tensor, hole: Tensor, seed: int) -> Tensor:
        height, width = obj.shape[-2:]
        try:
            pictures = self.pipe(
                prompt=self.prompt,
                image=(obj + 1) / 2,
                mask_image=hole,
                height=height,
                width=width,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
                **self._settings,
            ).images
        except torch.OutOfMemoryError:
            raise InputError(
                f"--painter: {self.name} does not fit into the memory of {self.pipe.device} with a picture of "
                f"{width}x{height}; give a smaller one or --device cpu"
            ) from None
        return pictures.to(obj) * 2 - 1

    @property
    def _multiple(self) -> int:
        """What sides must be multiples of."""
        return int(self.pipe.image_processor.config.vae_scale_factor)


def find_index(folder_or_id: Path | str, revision: str | None = None) -> Path:
    """`model_index.json` of a folder or a hub id, whose commit its folder is named after.

    Raises:
        InputError: there is none.
    """
    if Path(folder_or_id).is_dir():
        index = Path(folder_or_id, "model_index.json")
        if index.is_file():
            return index
        raise InputError(f"--painter {folder_or_id}: has no model_index.json; {_REMEDY}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(folder_or_id), "model_index.json", revision=revision))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]  # a licence that must be accepted first, for one
        raise InputError(
            f"--painter {folder_or_id}: neither a folder nor a hub id that can be had ({reason}); {_REMEDY}"
        ) from None


def folder_hash(folder: Path) -> str:
    """SHA-256 over `model_index.json` and names and sizes of the weight files, which may be tens of gigabytes."""
    digest = hashlib.sha256((folder / "model_index.json").read_bytes())
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name in sorted(name for name, path in files.items() if path.suffix in (".safetensors", ".bin")):
        digest.update(f"{name} {files[name].stat().st_size}\n".encode())
    return digest.hexdigest()


def _open(painter: Path | str, index: Path, dtype: torch.dtype) -> Any:
    from diffusers import AutoPipelineForInpainting, DiffusionPipeline

    logging.getLogger("diffusers.models.modeling_utils").addFilter(_tells)
    is_folder = Path(painter).is_dir()
    revision = None if is_folder else index.parent.name
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
        lacking = [
            name
            for name, part in parts.items()
            if name.startswith(("text_encoder", "tokenizer"))
            and (part == [None, None] or (is_folder and not Path(painter, name).is_dir()))
        ]
        if lacking:
            raise ValueError(f"it has no {' and no '.join(sorted(lacking))}")
        opener = DiffusionPipeline if re.search("Inpaint|Fill", parts["_class_name"]) else AutoPipelineForInpainting
        # the safety checker blackens whole pictures, and skin alarms it
        checker = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in parts else {}
        return opener.from_pretrained(str(painter), revision=revision, dtype=dtype, **checker)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, SafetensorError) as error:
        again = f", or save it whole: `hf download OWNER/NAME --local-dir {painter}`" if is_folder else ""
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"--painter {painter}: no inpainting pipeline opens ({reason}); {_REMEDY}{again}") from None


def _own_size(pipe: Any) -> int:
    unet = getattr(pipe, "unet", None)
    cells = getattr(pipe, "default_sample_size", 128) if unet is None else unet.config.sample_size
    return int(cells * pipe.vae_scale_factor)


def _tells(record: logging.LogRecord) -> bool:
    """False for a warning without content that SDXL's autoencoder gives several times a picture."""
    return "should be kept in float32: []" not in record.getMessage()
