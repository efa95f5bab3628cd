"""Contact sheets of a mini world: pairs as a network sees them, and the truth about where hands go."""

import copy
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_prep.mini.objects import CATEGORIES
from data_prep.mini.traps import TRAPS
from data_prep.mini.truth import Truth, clip_crop, draw_truth
from data_prep.mini.world import Clip

_COLOURS = ((66, 165, 245), (255, 152, 0), (120, 220, 80), (236, 64, 122), (255, 238, 88))  # one per rule
_SHOWN = 60  # layouts a picture
_SHADE = 255 // 3  # opacity of a layout's outline


def write_sheet(path: Path, clips: list[Clip], side: int = 256, pairs: int = 24, columns: int = 4) -> None:
    """Write pairs, object beside hand: each clip in turn, taken from every category and both scenes alike.

    Args:
        path: PNG to write.
        clips: a world's clips.
        side: of one crop in pixels.
        pairs: number of pairs.
        columns: pairs a row.
    """
    chosen = _spread(clips)
    tiles = []
    for number in range(pairs):
        clip, turn = copy.deepcopy(chosen[number % len(chosen)]), number // len(chosen)  # its pictures go when it goes
        frame = clip.frame(clip.contact_frames[turn % len(clip.contact_frames)])
        x0, y0, x1, y1 = clip_crop(clip)
        crops = [picture[y0:y1, x0:x1] for picture in (clip.background, frame.rgb)]
        tiles.append(np.hstack([cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA) for crop in crops]))
    _save(path, [_framed(tile) for tile in tiles], columns)


def write_truth_sheet(path: Path, clips: list[Clip], side: int = 384, columns: int = 4) -> None:
    """Write the first clip of each category without its hand, under true layouts coloured by their rule.

    Args:
        path: PNG to write.
        clips: a world's clips.
        side: of one picture in pixels.
        columns: pictures a row.
    """
    firsts = {clip.category: clip for clip in reversed(clips)}
    tiles = [
        _framed(draw_rules(draw_truth(copy.deepcopy(clip)), f"{CATEGORIES[category]} N{clip.instance:02d}", side))
        for category, clip in sorted(firsts.items())
    ]
    _save(path, tiles, min(columns, len(tiles)))


def draw_rules(truth: Truth, title: str, side: int) -> np.ndarray:
    """Draw a truth's clean picture, some of its layouts over it and a legend below.

    Args:
        truth: what to draw.
        title: of the legend.
        side: of the picture in pixels.

    Returns:
        uint8 (H, side, 3), H > side.
    """
    colour = dict(zip(truth.shares, _COLOURS, strict=False))
    clean = cv2.resize(truth.clean, (side, side), interpolation=cv2.INTER_AREA)
    picture = Image.fromarray(clean).convert("RGBA")
    for layout, rule in zip(truth.layouts[:_SHOWN], truth.rules, strict=False):
        overlay = Image.new("RGBA", picture.size)
        _draw_layout(ImageDraw.Draw(overlay), layout, side, (*colour[rule], _SHADE))
        picture.alpha_composite(overlay)
    font = ImageFont.load_default(side / 22)
    line = round(side / 15)
    legend = Image.new("RGB", (side, line * (1 + len(truth.shares)) + line // 2), (24, 24, 24))
    pen = ImageDraw.Draw(legend)
    pen.text((line // 2, line // 4), title, "white", font)
    for row, (rule, share) in enumerate(truth.shares.items(), start=1):
        top = row * line + line // 4
        pen.ellipse((line // 2, top + line // 5, line, top + line // 5 + line // 2), fill=colour[rule])
        pen.text((line * 3 // 2, top), f"{rule}  {share:.0%}", "white", font)
    return np.vstack([np.array(picture.convert("RGB")), np.array(legend)])


def _draw_layout(pen: ImageDraw.ImageDraw, layout: np.ndarray, side: int, colour: tuple[int, int, int, int]) -> None:
    """A disc's outline and a short piece of the forearm's direction from its rim."""
    a, x, y, b1, b2 = layout.tolist()
    radius, cx, cy = a * a / 4 * side, (x + 1) / 2 * side, (y + 1) / 2 * side
    pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), outline=colour, width=2)
    ends = [(cx + length * radius * b1, cy + length * radius * b2) for length in (1.0, 1.4)]
    pen.line(ends, (*colour[:3], 255), width=3)


def _spread(clips: list[Clip]) -> list[Clip]:
    """Clips in an order that takes every category and scene in turn; those that a trap costs stay out."""
    groups: dict[tuple[str, int], list[Clip]] = {}
    for clip in clips:
        if not any(TRAPS[name].whole for name in clip.traps):
            groups.setdefault((clip.scene, clip.category), []).append(clip)
    rounds = zip_longest(*(groups[name] for name in sorted(groups)))
    return [clip for turn in rounds for clip in turn if clip is not None]


def _framed(tile: np.ndarray, margin: int = 3) -> np.ndarray:
    return cv2.copyMakeBorder(tile, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def _save(path: Path, tiles: list[np.ndarray], columns: int) -> None:
    """Write tiles of one width in rows; short ones are filled up with white."""
    height = max(tile.shape[0] for tile in tiles)
    tiles = [
        cv2.copyMakeBorder(tile, 0, height - tile.shape[0], 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for tile in tiles
    ]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    cv2.imwrite(str(path), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
