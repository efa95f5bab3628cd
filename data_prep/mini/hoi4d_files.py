"""Writing a clip as HOI4D does: video, colour masks, action file, object poses, hand pickles; and its traps."""

import json
import os
import pickle
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from data_prep.hoi4d import FPS, LEFT_HAND, PALETTE, RIGHT_HAND
from data_prep.mini.affordance import Grasp
from data_prep.mini.png import Bands, blank_rows, encode_png
from data_prep.mini.traps import frames_of, renamed_event
from data_prep.mini.view import SIZE
from data_prep.mini.world import BUCKET, SCALE, Clip, Frame

FOCAL_PX = 1060.0  # HOI4D's camera, whose principal point is about the picture's centre
OBJECT, BUCKET_HANDLE = 1, 3  # labels; other things' handles are no parts of their own
UNKNOWN_EVENT = "Smash"
# HOI4D's own names of its object poses
OBJPOSE_LABELS = {1: "Toycar", 2: "Watercup", 5: "bottleddrinks", 7: "bowl", 8: "bucket", 12: "kettle", 13: "knife"}
# A constant quantiser: nearly twice as fast as a constant quality. One thread: the same bytes on every machine. A short
# search for motion: hands of two frames have none between them.
_X264 = {"qp": "22", "preset": "ultrafast", "tune": "zerolatency", "threads": "1", "me_range": "4"}
_COLOURS = np.array(PALETTE, np.uint8)


def video_path(out: Path, sequence: str) -> Path:
    """Where a clip's video lies; it is written last, so a clip that has one is finished."""
    return out / "HOI4D_release" / sequence / "align_rgb" / "image.mp4"


def write_clip(out: Path, clip: Clip) -> None:
    """Write all files of a clip, the video last."""
    frames: Iterator[Frame] = (clip.frame(number) for number in range(clip.frames))
    if "unlisted_video" not in clip.traps:
        _write_actions(out, clip)
        _write_objposes(out, clip)
        frames = _with_hand_poses(out, clip, frames)
        if "no_2dseg" not in clip.traps:
            frames = _with_masks(out, clip, frames)
    video = video_path(out, clip.sequence)
    video.parent.mkdir(parents=True, exist_ok=True)
    part = video.with_name("image.part.mp4")
    _write_video(part, clip.background, frames)
    if "truncated_mp4" in clip.traps:
        os.truncate(part, part.stat().st_size * 7 // 10)
    part.replace(video)


def action_record(clip: Clip) -> dict[str, Any]:
    """The content of `action/color.json`, in seconds of the clip's clock."""
    second = (0.5 if "ten_second_clock" in clip.traps else 1.0) / FPS
    duration = clip.frames * second
    renamed = renamed_event(clip) if "unknown_event" in clip.traps else None
    marks = []
    for name, begin, end in clip.events:
        # a millisecond late, so that floor(t * frames / duration) is the first frame whatever the rounding
        start_time = round(begin * second + 0.001, 4) if begin else 0.0
        end_time = round(end * second + 0.001, 4) if end < clip.frames else duration
        marks.append((UNKNOWN_EVENT if name == renamed else name, start_time, end_time))
    info: dict[str, Any] = {"duration": duration}
    if "missing_duration" in clip.traps:
        info = {}
    if "capital_duration" in clip.traps:
        info = {"Duration": duration}
    if "schema_b" in clip.traps:
        events = [{"event": name, "hdTimeStart": start, "hdTimeEnd": end} for name, start, end in marks]
        return {"markResult": {"marks": events}, "info": info, "workload": {}}
    events = [
        {"id": i, "event": name, "startTime": start, "endTime": end} for i, (name, start, end) in enumerate(marks)
    ]
    return {"filePath": f"{clip.sequence}/align_rgb/image.mp4", "info": info, "events": events}


def hand_record(grasp: Grasp) -> dict[str, np.ndarray]:
    """A hand pickle: MANO-style coefficients that fit the drawn angles roughly, keypoints that fit it exactly."""
    pose = np.zeros(48, np.float32)
    turn, roll = (cv2.Rodrigues(np.array(axis))[0] for axis in (
        (0.0, 0.0, grasp.forearm + np.pi + grasp.grip.bend), (0.0, grasp.roll, 0.0)
    ))  # fmt: skip
    pose[:3] = cv2.Rodrigues(turn @ roll)[0][:, 0]
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


def object_labels(clip: Clip) -> np.ndarray:
    """Mask labels of a clip's object, hidden or not, uint8 (1080, 1920)."""
    labels = clip.object_mask.view(np.uint8) * np.uint8(OBJECT)
    if clip.category == BUCKET:
        labels[clip.object_mask & (clip.cover("handle") > 0.5)] = BUCKET_HANDLE
    return labels


def _annotations(out: Path, clip: Clip) -> Path:
    return out / "HOI4D_annotations" / clip.sequence


def _write_actions(out: Path, clip: Clip) -> None:
    path = _annotations(out, clip) / "action" / "color.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("" if "empty_action" in clip.traps else json.dumps(action_record(clip)), encoding="utf-8")


def _write_objposes(out: Path, clip: Clip) -> None:
    """The object's pose, the same in every frame: it lies still."""
    folder = _annotations(out, clip) / "objpose"
    folder.mkdir(parents=True, exist_ok=True)
    depth = FOCAL_PX / SCALE / 1000
    x, y = ((clip.thing.centre - np.array(SIZE) / 2) / FOCAL_PX * depth).round(4).tolist()
    side = round(2 * clip.thing.size / SCALE / 1000, 4)
    entry = {
        "id": "1",
        "label": OBJPOSE_LABELS[clip.category],
        "2dBox": {"camera1": []},
        "center": {"x": x, "y": y, "z": round(depth, 4)},
        "dimensions": {"height": side, "length": side, "width": side},
        "rotation": {"x": 0.0, "y": 0.0, "z": round(float(clip.thing.angle), 4)},
        "properties": {},
    }
    rest = json.dumps({"filePath": f"{clip.sequence}/align_rgb", "isEffective": 1, "dataList": [entry]})[1:]
    for number in range(clip.frames):
        name = f"{number}.json" if "unpadded_objpose" in clip.traps else f"{number:05d}.json"
        frame_id = number * 31 % clip.frames // 2 if "objpose_frame_id" in clip.traps else number
        (folder / name).write_text(f'{{"frameId": {frame_id}, {rest}', encoding="utf-8")


def _with_masks(out: Path, clip: Clip, frames: Iterator[Frame]) -> Iterator[Frame]:
    """Write the masks of the frames that pass through."""
    shifted = clip.camera != 1 and "shift_mask" in clip.traps
    folder = _annotations(out, clip) / "2Dseg" / ("shift_mask" if shifted else "mask")
    folder.mkdir(parents=True, exist_ok=True)
    touched = {
        trap: set(frames_of(trap, clip) or ()) & set(range(clip.frames))
        for trap in ("missing_mask", "black_mask", "indexed_mask", "grey_mask") if trap in clip.traps
    }  # fmt: skip
    still = object_labels(clip)
    still_rgb = cv2.merge([cv2.LUT(still, np.resize(channel, 256)) for channel in _COLOURS.T])
    rows, pixels = blank_rows(SIZE[1], SIZE[0], 3)
    pixels[:] = still_rgb
    bands = Bands(rows)
    hand_label = RIGHT_HAND if clip.side == "right" else LEFT_HAND[f"C{clip.category}"]
    hand_rgb = _all_of(hand_label)
    for number, frame in enumerate(frames):
        trap = next((trap for trap, numbers in touched.items() if number in numbers), None)
        if trap is None:
            x0, y0, x1, y1 = frame.window or (0, 0, 0, 0)
            window = np.s_[y0:y1, x0:x1]
            if frame.hand is not None:
                cv2.copyTo(hand_rgb[window], frame.hand.view(np.uint8), pixels[window])
            png = bands.encode(range(y0, y1))
            pixels[window] = still_rgb[window]
        else:
            labels = np.where(frame.hand_mask, hand_label, still) if trap != "black_mask" else np.zeros_like(still)
            png = _odd_png(labels, trap)
        if trap != "missing_mask":
            (folder / f"{number:05d}.png").write_bytes(png)
        yield frame


@cache
def _all_of(label: int) -> np.ndarray:
    """A mask of one label, uint8 (1080, 1920, 3)."""
    return np.full((SIZE[1], SIZE[0], 3), PALETTE[label], np.uint8)


def _odd_png(labels: np.ndarray, trap: str) -> bytes:
    """Encode labels (1080, 1920) as a one-channel PNG, or black ones in colours."""
    if trap == "black_mask":
        return encode_png(blank_rows(SIZE[1], SIZE[0], 3)[0])
    rows, pixels = blank_rows(SIZE[1], SIZE[0], 1)
    pixels[..., 0] = labels
    return encode_png(rows, "indexed", _COLOURS) if trap == "indexed_mask" else encode_png(rows, "grey")


def _with_hand_poses(out: Path, clip: Clip, frames: Iterator[Frame]) -> Iterator[Frame]:
    """Write the hand pickles of the frames that pass through."""
    new = "new_hand_folder" in clip.traps
    tree = f"Hand_pose/handpose_{clip.side}_hand" if new else f"handpose/refinehandpose_{clip.side}"
    folder = out / tree / clip.sequence
    spoilt = {trap: set(frames_of(trap, clip) or ()) for trap in _SPOIL if trap in clip.traps}
    for number, frame in enumerate(frames):
        if frame.grasp is not None and "no_pickle" not in clip.traps:
            record = hand_record(frame.grasp)
            for trap in (trap for trap, numbers in spoilt.items() if number in numbers):
                record |= _SPOIL[trap](record, number)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{number:05d}.pickle" if "padded_pickle" in clip.traps else f"{number}.pickle"
            (folder / name).write_bytes(pickle.dumps(record, protocol=2))
        yield frame


def _broken(record: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    if number % 2:
        return {"poseCoeff": np.zeros(1, np.float32)}
    return {"kps2D": np.full((21, 2), np.nan, np.float32)}


def _jittered(record: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """Keypoints that are 10 to 20 pixels off together, and 2 more each."""
    rng = np.random.default_rng([number, int(abs(record["kps2D"][0, 0]))])
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(10, 20)
    off = length * np.array([np.cos(angle), np.sin(angle)]) + rng.normal(0, 2, (21, 2)).clip(-5, 5)
    return {"kps2D": (record["kps2D"] + off).astype(np.float32)}


def _outside(record: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    off = (SIZE[0] + 50.0 * number, 0.0) if number % 2 else (0.0, -SIZE[1] - 50.0 * number)
    return {"kps2D": (record["kps2D"] + off).astype(np.float32)}


_SPOIL = {"broken_pickle": _broken, "jittery_keypoints": _jittered, "outside_keypoints": _outside}


def _write_video(path: Path, background: np.ndarray, frames: Iterator[Frame]) -> None:
    """Encode the frames, of which only each one's window is converted: the rest is the background's.

    Args:
        path: file to write.
        background: uint8 (1080, 1920, 3), what every frame shows outside its window.
        frames: what to encode.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=_X264)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, FPS)
        picture = av.VideoFrame(*SIZE, "yuv420p")
        still = _planes(cv2.cvtColor(background, cv2.COLOR_RGB2YUV_I420), *SIZE)
        # x264 copies what it is given, so one picture serves for all frames
        shown = [np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] for plane in picture.planes]
        for plane, kept in zip(shown, still, strict=True):
            plane[:] = kept
        for number, frame in enumerate(frames):
            windows = _windows(frame)
            for plane, window, new in zip(shown, windows, _converted(frame), strict=False):
                plane[window] = new
            picture.pts = number
            container.mux(stream.encode(picture))
            for plane, window, kept in zip(shown, windows, still, strict=False):
                plane[window] = kept[window]
        container.mux(stream.encode())


def _planes(i420: np.ndarray, width: int, height: int) -> list[np.ndarray]:
    """The three planes of an I420 picture as OpenCV makes it, uint8 (1.5 height, width)."""
    chroma = i420[height:].reshape(2, height // 2, width // 2)
    return [i420[:height], *chroma]


def _windows(frame: Frame) -> list[tuple[slice, slice]]:
    """A frame's window, whose corners are even, in each plane; none without a hand."""
    if frame.window is None:
        return []
    x0, y0, x1, y1 = frame.window
    half = np.s_[y0 // 2 : y1 // 2, x0 // 2 : x1 // 2]
    return [np.s_[y0:y1, x0:x1], half, half]


def _converted(frame: Frame) -> list[np.ndarray]:
    """A frame's window in three planes; none without a hand."""
    if frame.patch is None:
        return []
    height, width = frame.patch.shape[:2]
    return _planes(cv2.cvtColor(frame.patch, cv2.COLOR_RGB2YUV_I420), width, height)
