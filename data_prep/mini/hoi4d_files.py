"""Writing a clip as HOI4D does: video, colour masks, action file, hand pickles."""

import json
import os
import pickle
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np

from data_prep.mini.affordance import Grasp
from data_prep.mini.table import SIZE
from data_prep.mini.world import Clip, Frame

Trap = Literal["truncated_mp4", "no_2dseg", "empty_action", "no_pickles", "broken_pickles"]

FPS = 15
FOCAL_PX = 1060.0  # HOI4D's camera, whose principal point is about the picture's centre
OBJECT_BGR, HAND_BGR = (0, 0, 128), (0, 128, 0)  # labels 1 and 2 of the VOC colours, in OpenCV's order
_X264 = {"crf": "18", "preset": "ultrafast", "threads": "1"}  # one thread: the same bytes on every machine
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB]  # fastest by measure


def video_path(out: Path, sequence: str) -> Path:
    """Where a clip's video lies; it is written last, so a clip that has one is finished."""
    return out / "HOI4D_release" / sequence / "align_rgb" / "image.mp4"


def write_clip(out: Path, clip: Clip, trap: Trap | None = None) -> None:
    """Write all files of a clip, the video last.

    Args:
        out: root of the tree.
        clip: what to draw.
        trap: what is wrong with this clip, if anything.
    """
    annotations = out / "HOI4D_annotations" / clip.sequence
    masks = annotations / "2Dseg" / ("mask" if clip.camera == 1 else "shift_mask")
    hands = out / "handpose" / "refinehandpose_right" / clip.sequence
    action = annotations / "action" / "color.json"
    for folder in (masks if trap != "no_2dseg" else None, hands if trap != "no_pickles" else None, action.parent):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    action.write_text("" if trap == "empty_action" else json.dumps(action_record(clip)), encoding="utf-8")

    still = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    still[clip.object_mask] = OBJECT_BGR

    def frames() -> Iterator[np.ndarray]:
        for number in range(clip.frames):
            frame = clip.frame(number)
            if trap != "no_2dseg":
                _write_mask(masks / f"{number:05d}.png", still, frame)
            if frame.grasp is not None and trap != "no_pickles":
                record = hand_record(frame.grasp)
                if trap == "broken_pickles" and number % 6 == 4:
                    record = _broken(record, number)
                (hands / f"{number}.pickle").write_bytes(pickle.dumps(record, protocol=2))
            yield frame.rgb

    video = video_path(out, clip.sequence)
    video.parent.mkdir(parents=True, exist_ok=True)
    part = video.with_name("image.part.mp4")
    _write_video(part, frames())
    if trap == "truncated_mp4":
        os.truncate(part, part.stat().st_size * 7 // 10)
    part.replace(video)


def action_record(clip: Clip) -> dict[str, Any]:
    """The content of `action/color.json`: schema A or, in about one clip in 8, B; about one in 10 on half the clock."""
    rng = np.random.default_rng(np.random.SeedSequence([clip.seed, clip.index, 2_000_000]))
    clock = (0.5 if rng.random() < 0.1 else 1.0) / FPS
    duration = clip.frames * clock
    marks = []
    for name, begin, end in clip.events:
        # a millisecond late, so that floor(t * frames / duration) is the first frame whatever the rounding
        start_time = round(begin * clock + 0.001, 4) if begin else 0.0
        end_time = round(end * clock + 0.001, 4) if end < clip.frames else duration
        marks.append((name, start_time, end_time))
    path = f"{clip.sequence}/align_rgb/image.mp4"
    if rng.random() < 1 / 8:
        events = [{"event": e, "hdTimeStart": a, "hdTimeEnd": b} for e, a, b in marks]
        return {"markResult": {"marks": events}, "info": {"Duration": duration}, "workload": {}}
    events = [{"id": i, "event": e, "startTime": a, "endTime": b} for i, (e, a, b) in enumerate(marks)]
    return {"filePath": path, "info": {"duration": duration}, "events": events}


def hand_record(grasp: Grasp) -> dict[str, np.ndarray]:
    """A hand pickle: MANO-style coefficients that fit the drawn angles roughly, keypoints that fit it exactly."""
    pose = np.zeros(48, np.float32)
    pose[:3] = (0.0, 0.0, grasp.forearm + np.pi + grasp.grip.bend)
    bends = np.diff(grasp.grip.flexion, axis=1, prepend=0.0)
    for finger, slot in enumerate((0, 1, 3, 2)):  # MANO orders index, middle, little, ring, thumb
        pose[3 + 9 * slot + 2 : 3 + 9 * slot + 9 : 3] = bends[finger]
    pose[3 + 36 + 2 : 48 : 3] = grasp.grip.thumb[:, 1]
    depth = FOCAL_PX / grasp.scale / 1000  # metres at which a millimetre is `scale` pixels
    wrist = (grasp.joints[0, :2] - np.array(SIZE) / 2) / FOCAL_PX * depth
    return {
        "poseCoeff": pose,
        "beta": np.zeros(10, np.float32),
        "trans": np.array([*wrist, depth], np.float32),
        "kps2D": grasp.joints[:, :2].astype(np.float32),
    }


def _broken(record: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    if number % 12 == 4:
        return record | {"poseCoeff": np.zeros(1, np.float32)}
    return record | {"kps2D": np.full((21, 2), np.nan, np.float32)}


def _write_mask(path: Path, still: np.ndarray, frame: Frame) -> None:
    colours = still
    if frame.window is not None:
        x0, y0, x1, y1 = frame.window
        colours = still.copy()
        colours[y0:y1, x0:x1][frame.hand] = HAND_BGR
    if not cv2.imwrite(str(path), colours, _PNG):
        raise OSError(f"cannot write {path}")


def _write_video(path: Path, frames: Iterator[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=_X264)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, FPS)
        for rgb in frames:
            planes = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
