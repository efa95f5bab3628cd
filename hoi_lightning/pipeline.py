"""From a picture of an object to pictures of a hand using it: MaskNet says where, FusionNet paints."""

import contextlib
import re
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from hoi_lightning.diffusion.ddpm import sample_seeds
from hoi_lightning.diffusion.samplers import Sampler
from hoi_lightning.errors import InputError
from hoi_lightning.guidance import Guidance
from hoi_lightning.hand_proxy import Layout, hole_mask
from hoi_lightning.weights import shipped
from hoi_lightning.window import Box, centred_square
from hoi_lightning.wishes import Wishes

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MIN_SIDE = 32  # pixels; smaller objects say nothing about where a hand goes
MAX_PIXELS = 50_000_000

# What Pillow raises on malformed files, EXIF blocks included.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error)


class LayoutSampler(Protocol):
    """What the pipeline needs of a MaskNet."""

    checkpoint_hash: str
    sampler: Sampler | None
    sample_steps: int
    guidance_scale: float

    def sample(self, obj: Tensor, seeds: list[int], *, guidance: Guidance | None = None) -> Tensor:
        """Layouts (B, 5) for object pictures (B, 3, H, W) in [-1, 1]."""
        ...


class Painter(Protocol):
    """What the pipeline needs of a FusionNet."""

    checkpoint_hash: str
    image_size: int
    hole_dilation: float

    def sample(self, obj: Tensor, layouts: Tensor, seeds: list[int]) -> Tensor:
        """HOI pictures (B, 3, S, S) in [-1, 1], equal to `obj` outside the hole, without a seam."""
        ...


@dataclass(frozen=True)
class HOIOutput:
    """Samples for one picture; all lists have one entry per sample.

    Attributes:
        images: RGB pictures of the input's size, equal to it to the byte outside the hole.
        layouts: in the NDC of `window`.
        hole_masks: bool (H, W) of the input's size, True = painted.
        seeds: each sample's own seed, made from (seed, index).
        window: the square of the input that the networks saw, x0, y0, x1, y1 in pixels.
    """

    images: list[Image.Image]
    layouts: list[Layout]
    hole_masks: list[np.ndarray]
    seeds: list[int]
    window: Box


class HOIPipeline:
    """Samples hand-object interaction pictures from a picture of an object.

    Args:
        masknet: samples layouts.
        fusionnet: paints hands.
        device: where both live.
    """

    def __init__(self, masknet: LayoutSampler, fusionnet: Painter, device: torch.device | str = "cpu") -> None:
        self.masknet, self.fusionnet, self.device = masknet, fusionnet, torch.device(device)

    @classmethod
    def from_checkpoints(cls, masknet: Path | str, fusionnet: Path | str, device: str = "auto") -> "HOIPipeline":
        """Load both networks.

        Args:
            masknet: checkpoint of a MaskNet run.
            fusionnet: checkpoint of a FusionNet run.
            device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`.

        Raises:
            InputError: a checkpoint is missing, damaged or of another task, or the device is not there.
        """
        check_checkpoints(masknet, fusionnet)
        place = find_device(device)
        from hoi_lightning.tasks.fusionnet import FusionNet
        from hoi_lightning.tasks.masknet import MaskNet

        return cls(MaskNet.load(Path(masknet), place), FusionNet.load(Path(fusionnet), place), place)

    @classmethod
    def from_pretrained(cls, folder: Path | str = "mini", device: str = "auto") -> "HOIPipeline":
        """Load a released folder, as `python -m hoi_lightning export` writes it.

        Args:
            folder: `mini`, the weights for the mini world that come with the package; a folder; or a hub id.
            device: see `from_checkpoints`.

        Raises:
            InputError: no such folder, part of it is missing or damaged, or the device is not there.
        """
        root = find_weights(folder)
        place = find_device(device)
        from hoi_lightning.tasks.fusionnet import FusionNet
        from hoi_lightning.tasks.masknet import MaskNet

        masknet = MaskNet.from_pretrained(root / "masknet", place)
        return cls(masknet, FusionNet.from_pretrained(root / "fusionnet", place), place)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image,
        num_images: int = 4,
        seed: int = 0,
        layouts: Sequence[Layout] | None = None,
        batch_size: int = 8,
        window: Box | None = None,
        wishes: Wishes | None = None,
        shared_noise: bool = False,
    ) -> HOIOutput:
        """Sample pictures of a hand using the object.

        The networks see a square of the picture; what lies beside it is returned as it came. Sample k depends on
        (seed, k) alone, not on `num_images` or `batch_size`.

        Args:
            image: any size and aspect; `load_picture` reads one from a file.
            num_images: samples to draw.
            seed: of the whole set.
            layouts: where the hands go, one for all samples or one each; None = ask MaskNet.
            batch_size: samples painted at once; more memory, more speed, the same pictures.
            window: square of the picture that the networks see, `window.choose_square` for one; None = the largest
                centred one.
            wishes: what MaskNet is asked for.
            shared_noise: all samples have the noise of the first, as between two layouts.

        Raises:
            InputError: a wish cannot be met in the window.
            ValueError: `layouts` has another length than 1 and `num_images`.
        """
        if layouts is not None and len(layouts) not in (1, num_images):
            raise ValueError(f"layouts must have 1 or num_images={num_images} entries, got {len(layouts)}")
        native = np.asarray(image.convert("RGB"))
        window = window or centred_square(*image.size)
        square = slice(window[1], window[3]), slice(window[0], window[2])
        guidance = None if wishes is None else wishes.guidance(image.size, window)
        seeds = sample_seeds(seed, [0] * num_images if shared_noise else range(num_images))
        images, used, holes = [], [], []
        for start in range(0, num_images, batch_size):
            chunk = list(range(start, min(start + batch_size, num_images)))
            given = None if layouts is None else [layouts[k % len(layouts)] for k in chunk]
            drawn, painted = self._sample(native[square], [seeds[k] for k in chunk], given, guidance)
            for layout, picture in zip(drawn, painted, strict=True):
                result, hole = self._paste(native, square, layout, picture)
                images.append(Image.fromarray(result))
                used.append(layout)
                holes.append(hole)
        return HOIOutput(images, used, holes, seeds, window)

    def _sample(
        self, square: np.ndarray, seeds: list[int], given: Sequence[Layout] | None, guidance: Guidance | None
    ) -> tuple[list[Layout], list[np.ndarray]]:
        """Layouts and painted uint8 (S, S, 3) pictures at the model's size, one per seed."""
        view = torch.from_numpy(_resize(square, self.fusionnet.image_size).copy()).to(self.device)
        obj = (view.permute(2, 0, 1).float() / 127.5 - 1).expand(len(seeds), -1, -1, -1)  # (B, 3, S, S)
        # two seeds per sample: layout noise must not repeat in the picture's noise
        streams = [sample_seeds(seed, [0, 1]) for seed in seeds]
        if given is None:
            rows = self.masknet.sample(obj, [pair[0] for pair in streams], guidance=guidance)
            drawn = [Layout.from_tensor(row) for row in rows.cpu()]
        else:
            drawn = list(given)
        layouts = torch.stack([layout.to_tensor() for layout in drawn]).to(self.device)
        painted = self.fusionnet.sample(obj, layouts, [pair[1] for pair in streams])
        pixels = ((painted.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu()
        return drawn, list(pixels.numpy())

    def _paste(
        self, native: np.ndarray, window: tuple[slice, slice], layout: Layout, painted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The picture with the painted hole at its own size, uint8 (H, W, 3), and the hole, bool (H, W)."""
        square = native[window]
        side, size = square.shape[0], painted.shape[0]
        inside = hole_mask(layout.to_tensor(), side, self.fusionnet.hole_dilation)[0].bool().numpy()
        # At the model's own size the painter has blended already; else the two holes differ by up to a model pixel.
        weight = inside if side == size else _feather(inside, max(1, round(side / size)))
        known, new = square[inside], _resize(painted, side)[inside].astype(np.float32)  # (pixels of the hole, 3)
        result, hole = native.copy(), np.zeros(native.shape[:2], dtype=bool)
        result[window][inside] = (known + weight[inside, None] * (new - known)).round().astype(np.uint8)
        hole[window] = inside
        return result, hole


def load_picture(path: Path | str) -> Image.Image:
    """Read a picture from a file as RGB, upright, on white where it is transparent; the first frame if animated.

    Args:
        path: JPEG, PNG, WebP, BMP, GIF or TIFF of 8 or 16 bits, in RGB, grey, palette or CMYK.

    Raises:
        InputError: not such a picture, damaged, smaller than 32 pixels a side or larger than 50 megapixels.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about metadata it cannot read and about large pictures
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, *image.size)
                return _to_rgb(ImageOps.exif_transpose(_to_8_bits(path, image)))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{path}: not a picture; give JPEG, PNG, WebP, BMP, GIF or TIFF") from None
    except _BROKEN as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); save or copy it again") from None


def find_weights(folder: Path | str) -> Path:
    """Where a released folder lies: `mini` in the package, a hub id in the hub's cache, downloaded if need be.

    Raises:
        InputError: it is none of them.
    """
    root = shipped(folder)
    if not root.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        with contextlib.suppress(HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
            root = Path(snapshot_download(str(folder)))
    if not (root / "model_index.json").is_file():
        raise InputError(
            f"--weights {folder}: neither `mini`, a folder that `python -m hoi_lightning export` wrote, nor a hub id "
            "that can be had"
        )
    return root


def check_checkpoints(masknet: Path | str, fusionnet: Path | str | None) -> None:
    """Say which checkpoint is missing, before anything slow starts; another painter has no `fusionnet`.

    Raises:
        InputError: one of the files does not exist.
    """
    for flag, path in (("--masknet", masknet), ("--fusionnet", fusionnet)):
        if path is not None and not Path(path).is_file():
            raise InputError(f"{flag} {path}: no such checkpoint; give the last.ckpt that `fit` left")


def find_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that is there.

    Raises:
        InputError: an unknown name, or no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch built without CUDA asserts
        raise InputError(f"--device {name}: no such device on this machine; use auto or cpu") from None
    return device


def _check_size(path: Path, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{path}: {width}x{height} is too small; give at least {MIN_SIDE} pixels a side")
    if width * height > MAX_PIXELS:
        raise _too_large(path)


def _too_large(path: Path) -> InputError:
    return InputError(f"{path}: larger than {MAX_PIXELS // 1_000_000} megapixels; scale it down")


def _to_8_bits(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{path}: floating-point picture of unknown range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow clips these at 255 instead of scaling
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        grey.getexif().update(image.getexif())
        return grey
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _resize(picture: np.ndarray, side: int) -> np.ndarray:
    if picture.shape[0] == side:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))  # antialiased


def _feather(inside: np.ndarray, radius: int) -> np.ndarray:
    """Weight of the painted picture: 0 outside the hole, rising to 1 over `radius` pixels inside it, float32."""
    # A blurred half-plane is 1/2 at its edge, so 2·blur - 1 starts at 0 there. Beyond the picture's border it goes on.
    padded = Image.fromarray(np.pad(inside, radius, mode="edge").astype(np.uint8) * 255)
    blurred = np.asarray(padded.filter(ImageFilter.BoxBlur(radius)), dtype=np.float32)[radius:-radius, radius:-radius]
    return inside * (2 * blurred / 255 - 1).clip(0, 1)
