"""From a picture of an object to pictures of a hand using it: MaskNet says where, FusionNet paints."""

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from hoi_lightning.diffusion.ddpm import sample_seeds
from hoi_lightning.diffusion.samplers import Sampler
from hoi_lightning.errors import InputError
from hoi_lightning.guidance import Guidance
from hoi_lightning.hand_proxy import Layout, hole_mask
from hoi_lightning.holes import check_hole, paste, resize, square_of, to_side, zoom_square
from hoi_lightning.weights import check_checkpoints, find_weights
from hoi_lightning.window import Box, centred_square
from hoi_lightning.wishes import Wishes, rewindowed

if TYPE_CHECKING:
    from hoi_lightning.tasks import FusionNet, MaskNet

    Task = TypeVar("Task", FusionNet, MaskNet)

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

    def check_sampler(self) -> None:
        """Refuse settings that it cannot be sampled with, by an `InputError`."""
        ...

    def sample(self, obj: Tensor, seeds: list[int], *, guidance: Guidance | None = None) -> Tensor:
        """Layouts (B, 5) for object pictures (B, 3, H, W) in [-1, 1]."""
        ...


class Painter(Protocol):
    """What the pipeline needs of a FusionNet, or of what paints instead of it."""

    checkpoint_hash: str
    image_size: int
    hole_dilation: float

    def sample_holes(self, obj: Tensor, hole: Tensor, seeds: list[int]) -> Tensor:
        """HOI pictures (B, 3, S, S) in [-1, 1], equal to `obj` outside the hole (B, 1, S, S), without a seam."""
        ...


@dataclass(frozen=True)
class HOIOutput:
    """Samples for one picture; all lists have one entry per sample.

    Attributes:
        images: RGB pictures of the input's size, equal to it to the byte outside the hole.
        layouts: in the NDC of `window`; none at all where a hole was given.
        hole_masks: bool (H, W) of the input's size, True = painted.
        seeds: each sample's own seed, made from (seed, index).
        window: the square of the input that MaskNet saw, x0, y0, x1, y1 in pixels.
        views: the squares that the painter saw: `window`, or with zoom a part of it.
    """

    images: list[Image.Image]
    layouts: list[Layout]
    hole_masks: list[np.ndarray]
    seeds: list[int]
    window: Box
    views: list[Box]


@dataclass(frozen=True)
class _Place:
    """Where a sample is painted: its hole in the picture (H, W), the view and the hole in it (1, S, S)."""

    hole: np.ndarray
    view: Box
    small_hole: Tensor


class HOIPipeline:
    """Samples hand-object interaction pictures from a picture of an object.

    Args:
        masknet: samples layouts.
        fusionnet: paints hands.
        device: where both live; on a CUDA GPU the painter runs in bfloat16.
    """

    def __init__(self, masknet: LayoutSampler, fusionnet: Painter, device: torch.device | str = "cpu") -> None:
        self.masknet, self.fusionnet, self.device = masknet, fusionnet, torch.device(device)

    @classmethod
    def from_checkpoints(
        cls,
        masknet: Path | str | None = None,
        fusionnet: Path | str | None = None,
        device: str = "auto",
        weights: Path | str = "mini",
    ) -> "HOIPipeline":
        """Load both networks, of which one may be of released weights.

        Args:
            masknet: checkpoint of a MaskNet run, or what `export` wrote of one; None = that of `weights`.
            fusionnet: checkpoint of a FusionNet run, or what `export` wrote of one; None = that of `weights`.
            device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`.
            weights: see `from_pretrained`.

        Raises:
            InputError: a checkpoint is missing, damaged or of another task, or the device is not there.
        """
        check_checkpoints(masknet, fusionnet)
        place = find_device(device)
        from hoi_lightning.tasks.fusionnet import FusionNet
        from hoi_lightning.tasks.masknet import MaskNet

        sampler = released_or_checkpoint(MaskNet, Path(masknet or find_weights(weights)), place)
        painter = released_or_checkpoint(FusionNet, Path(fusionnet or find_weights(weights)), place)
        return cls(sampler, painter, place)

    @classmethod
    def from_pretrained(cls, folder: Path | str = "mini", device: str = "auto") -> "HOIPipeline":
        """Load a released folder, as `python -m hoi_lightning export` writes it.

        Args:
            folder: `mini`, the weights for the mini world that come with the package; a folder; or a hub id.
            device: see `from_checkpoints`.

        Raises:
            InputError: no such folder, part of it is missing or damaged, or the device is not there.
        """
        return cls.from_checkpoints(device=device, weights=folder)

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
        hole: np.ndarray | None = None,
        zoom: bool = False,
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
                centred one, or with `hole` the largest that holds it.
            wishes: what MaskNet is asked for.
            shared_noise: all samples have the noise of the first, as between two layouts.
            hole: bool (H, W) of the picture's size, True = to be painted; MaskNet is not asked.
            zoom: the painter sees only the square about each hole, so that a small hand has more of its pixels.

        Raises:
            InputError: a wish cannot be met in the window, or `hole` or a layout's hand is none in it.
            ValueError: `layouts` has another length than 1 and `num_images`, or stands beside `hole`.
        """
        if layouts is not None and len(layouts) not in (1, num_images):
            raise ValueError(f"layouts must have 1 or num_images={num_images} entries, got {len(layouts)}")
        if hole is not None:
            if layouts is not None:
                raise ValueError("hole says where to paint; leave out layouts")
            check_hole("hole", hole, "the picture", *image.size)
            window = square_of("hole", hole, window)
        window = window or centred_square(*image.size)
        native = np.asarray(image.convert("RGB"))
        guidance = None if wishes is None else wishes.guidance(image.size, window)
        seeds = sample_seeds(seed, [0] * num_images if shared_noise else range(num_images))
        # two seeds per sample: layout noise must not repeat in the picture's noise
        streams = [sample_seeds(own, [0, 1]) for own in seeds]
        output = HOIOutput([], [], [], seeds, window, [])
        for start in range(0, num_images, batch_size):
            chunk = range(start, min(start + batch_size, num_images))
            wanted: Sequence[Layout | np.ndarray]
            if hole is not None:
                wanted = [hole] * len(chunk)
            elif layouts is not None:
                wanted = [layouts[k % len(layouts)] for k in chunk]
            else:
                wanted = self._draw(self._see(native, window), [streams[k][0] for k in chunk], guidance)
            places = [self._place(one, native.shape[:2], window, zoom) for one in wanted]
            if layouts is not None and not all(place.hole.any() for place in places):
                raise InputError(
                    f"layout (--layout, --interpolate): its hand lies outside the square {list(window)} that the "
                    "networks see, or is smaller than a pixel; give another, or the object's --box so that the square "
                    "holds the place"
                )
            painted = self._paint(native, places, [streams[k][1] for k in chunk])
            for one, place, picture in zip(wanted, places, painted, strict=True):
                output.images.append(Image.fromarray(paste(native, place.hole, place.view, picture)))
                output.layouts.extend([one] if isinstance(one, Layout) else [])
                output.hole_masks.append(place.hole)
                output.views.append(place.view)
        return output

    def _draw(self, obj: Tensor, seeds: list[int], guidance: Guidance | None) -> list[Layout]:
        rows = self.masknet.sample(obj.expand(len(seeds), -1, -1, -1), seeds, guidance=guidance)
        return [Layout.from_tensor(row) for row in rows.cpu()]

    def _place(self, wanted: Layout | np.ndarray, shape: tuple[int, int], window: Box, zoom: bool) -> _Place:
        """Where a layout in NDC of the window, or a hole, is painted in a picture of (H, W)."""
        size, dilation = self.fusionnet.image_size, self.fusionnet.hole_dilation
        if isinstance(wanted, Layout):
            layout, hole = wanted.to_tensor(), np.zeros(shape, dtype=bool)
            part = hole_mask(layout, window[2] - window[0], dilation)[0].bool().numpy()
            hole[window[1] : window[3], window[0] : window[2]] = part
            view = zoom_square(hole, window, size) if zoom else window
            return _Place(hole, view, hole_mask(rewindowed(layout, window, view), size, dilation))
        view = zoom_square(wanted, window, size) if zoom else window
        return _Place(wanted, view, to_side(wanted[view[1] : view[3], view[0] : view[2]], size))

    def _paint(self, native: np.ndarray, places: list[_Place], seeds: list[int]) -> list[np.ndarray]:
        """The places' views with painted holes, uint8 (S, S, 3) each at the painter's size."""
        seen = {view: self._see(native, view) for view in {place.view for place in places}}
        obj = torch.stack([seen[place.view] for place in places])  # (B, 3, S, S)
        holes = torch.stack([place.small_hole for place in places]).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            painted = self.fusionnet.sample_holes(obj, holes, seeds)
        return list(((painted.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())

    def _see(self, native: np.ndarray, square: Box) -> Tensor:
        """A square of a picture at the painter's size, (3, S, S) in [-1, 1]."""
        part = native[square[1] : square[3], square[0] : square[2]]
        pixels = torch.from_numpy(resize(part, self.fusionnet.image_size).copy()).to(self.device)
        return pixels.permute(2, 0, 1).float() / 127.5 - 1


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


def released_or_checkpoint(task: "type[Task]", path: Path, device: torch.device) -> "Task":
    """One network, from a checkpoint of its run, its released folder, or the folder that holds that.

    Raises:
        InputError: it cannot be opened.
    """
    if not path.is_dir():
        return task.load(path, device)
    inner = path / task.__name__.lower()
    return task.from_pretrained(inner if inner.is_dir() else path, device)


def find_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:1` into a device that is there.

    Raises:
        InputError: an unknown name, or no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):  # mps has no float64, in which the noise schedule is kept
            raise RuntimeError
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
