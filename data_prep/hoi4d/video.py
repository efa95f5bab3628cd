"""RGB videos, from disk or from inside a zip."""

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

from data_prep.hoi4d.classes import FPS, HEIGHT, WIDTH
from data_prep.sources import Fault, File


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


def read_frames(path: File, frames: Collection[int]) -> Iterator[tuple[int, np.ndarray | Fault]]:
    """Read the wanted frames of a video, uint8 (1080, 1920, 3); others are not converted, later ones not decoded.

    Raises:
        Fault: damaged, or over, from here on.
    """
    index, last = -1, max(frames)
    for index, frame in enumerate(decode_video(path)):
        if index in frames:
            yield index, frame.to_ndarray(format="rgb24")
        if index == last:
            return
    raise Fault("short-video", path, f"ends after {index + 1} frames")


@contextmanager
def _opened(path: File) -> Iterator[av.container.InputContainer]:
    try:
        # A zipped video is small enough for memory, and a deflated one could not be sought in.
        with av.open(str(path) if isinstance(path, Path) else io.BytesIO(path.read_bytes())) as container:
            yield container
    except (av.FFmpegError, OSError, IndexError) as error:
        raise Fault("undecodable-video", path, getattr(error, "strerror", None) or repr(error)) from None
