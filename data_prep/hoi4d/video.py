"""RGB videos, from disk or from inside a zip."""

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from data_prep.hoi4d.classes import FPS, HEIGHT, WIDTH
from data_prep.resize import pixels_of, resize, shrink
from data_prep.sources import Box, Fault, File, Picture

_STEP = 32  # columns that the conversion to RGB takes at a time; what is left over it rounds in another way
_TO_RGB = VideoReformatter()


def count_frames(path: File) -> int:
    """Read the number of frames from a video's header, without decoding it.

    Raises:
        Fault: it cannot be opened, or is not 1920x1080 at 15 frames per second.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        size, rate = (stream.width, stream.height), float(stream.average_rate or 0)
        frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    if size != (WIDTH, HEIGHT) or abs(rate - FPS) > 0.1:
        raise Fault("undecodable-video", path, f"{size[0]}x{size[1]} at {rate:.2f} fps, expected 1920x1080 at 15 fps")
    return int(frames)


def decode_video(path: File) -> Iterator[av.VideoFrame]:
    """Decode a video from its first frame on, in one forward pass on one thread.

    Raises:
        Fault: damaged from here on; the frames before were good.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise Fault("undecodable-video", path, "a frame is damaged")
            yield frame


def read_frames(path: File, frames: Collection[int]) -> Iterator[tuple[int, Picture | Fault]]:
    """Read the wanted frames of a video; later ones are not decoded.

    Raises:
        Fault: damaged, or over, from here on.
    """
    index, last = -1, max(frames)
    for index, frame in enumerate(decode_video(path)):
        if index in frames:
            yield index, partial(read_window, frame)
        if index == last:
            return
    raise Fault("short-video", path, f"ends after {index + 1} frames")


def read_window(frame: av.VideoFrame, box: Box, size: int) -> np.ndarray:
    """Bring a square window of a frame to size x size, uint8 RGB; the rest is not converted."""
    red, green, blue = _to_rgb(frame, box)
    if red.shape[0] > size:
        return shrink((red, green, blue), size)
    return resize(cv2.merge((red, green, blue)), size)


def _to_rgb(frame: av.VideoFrame, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Red, green and blue of a window of a frame, uint8 (h, w), the values that it has in the whole frame converted."""
    x0, y0, x1, y1 = box
    left, top, right, bottom = 0, 0, frame.width, frame.height
    if frame.format.name in ("yuv420p", "yuvj420p"):
        left, top = x0 // _STEP * _STEP, y0 // 2 * 2
        right, bottom = min(-(-x1 // _STEP) * _STEP, right), min(-(-y1 // 2) * 2, bottom)
        part = av.VideoFrame(right - left, bottom - top, frame.format.name)
        part.colorspace, part.color_range = frame.colorspace, frame.color_range
        for plane, copy, shrunk in zip(frame.planes, part.planes, (1, 2, 2), strict=True):
            rows, columns = slice(top // shrunk, bottom // shrunk), slice(left // shrunk, right // shrunk)
            pixels_of(copy)[:] = pixels_of(plane)[rows, columns]
        frame = part
    green, blue, red = (pixels_of(plane) for plane in _TO_RGB.reformat(frame, format="gbrp", threads=1).planes)
    window = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    return red[window], green[window], blue[window]


@contextmanager
def _opened(path: File) -> Iterator[av.container.InputContainer]:
    try:
        # A zipped video is small enough for memory, and a deflated one could not be sought in.
        with av.open(str(path) if isinstance(path, Path) else io.BytesIO(path.read_bytes())) as container:
            yield container
    except (av.FFmpegError, OSError, IndexError) as error:
        raise Fault("undecodable-video", path, getattr(error, "strerror", None) or repr(error)) from None
