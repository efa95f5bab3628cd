"""A tiny HOI4D tree: grey table, red block, an ellipse for a hand with a bar for its forearm."""

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

COLOURS = {1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 6: (0, 128, 128)}
SKIN = (205, 150, 120)


@dataclass(frozen=True)
class Clip:
    """One sequence to draw; the hand is there in frames 3 to 9, at the block in frames 4 to 8, the contact event."""

    name: str
    schema: str = "A"
    clock: float | None = 20.0
    hand_label: int = 2
    keypoints: bool = False
    num_frames: int = 12


CLIPS = (
    Clip("ZY20210800001/H1/C2/N01/S1/s01/T1", keypoints=True),
    Clip("ZY20210800003/H3/C8/N02/S2/s01/T1", schema="B", clock=10.0, hand_label=6),
    Clip("ZY20210800002/H2/C2/N03/S3/s01/T1"),
)


def draw_tree(root: Path, clips=CLIPS) -> Path:
    for clip in clips:
        draw_clip(root, clip)
    names = [clip.name for clip in clips]
    (root / "release.txt").write_bytes("\r\n".join([*names, names[0], ""]).encode())
    return root


def zip_tree(root: Path, out: Path, packed: int = zipfile.ZIP_DEFLATED) -> Path:
    """The same tree as it is downloaded; one zip begins with its own folder, one with the cameras, one deeper."""
    for source, archive, prefix in (
        ("HOI4D_release", "HOI4D_release", "HOI4D_release/"),
        ("HOI4D_annotations", "HOI4D_annotations", ""),
        ("Hand_pose", "HOI4D_Hand_pose", "HOI4D_Hand_pose/Hand_pose/"),
    ):
        out.mkdir(exist_ok=True)
        with zipfile.ZipFile(out / f"{archive}.zip", "w", packed) as file:
            for path in sorted((root / source).rglob("*")):
                file.write(path, prefix + path.relative_to(root / source).as_posix())
    (out / "release.txt").write_bytes((root / "release.txt").read_bytes())
    return out


def draw_clip(root: Path, clip: Clip) -> None:
    annotations = root / "HOI4D_annotations" / clip.name
    masks = annotations / "2Dseg" / ("mask" if "ZY20210800001" in clip.name else "shift_mask")
    masks.mkdir(parents=True)
    frames = []
    for index in range(clip.num_frames):
        picture, labels = draw_frame(clip, index)
        frames.append(picture)
        write_mask(masks / f"{index:05d}.png", labels)
        if clip.keypoints and (labels == clip.hand_label).any():
            folder = root / "Hand_pose" / "handpose_right_hand" / clip.name
            folder.mkdir(parents=True, exist_ok=True)
            record = {"poseCoeff": np.zeros(48, np.float32), "kps2D": keypoints(index)}
            (folder / f"{index}.pickle").write_bytes(pickle.dumps(record, protocol=2))
    write_video(root / "HOI4D_release" / clip.name / "align_rgb" / "image.mp4", frames)
    (annotations / "action").mkdir()
    (annotations / "action" / "color.json").write_text(json.dumps(actions(clip)))


def draw_frame(clip: Clip, index: int):
    """Picture (1080, 1920, 3) and labels (1080, 1920) of a frame."""
    noise = np.random.default_rng(0).integers(0, 24, (68, 120, 1), np.uint8)
    picture = cv2.resize(np.tile(noise + np.uint8(140), (1, 1, 3)), (1920, 1080), interpolation=cv2.INTER_LINEAR)
    labels = np.zeros((1080, 1920), np.uint8)
    picture[440:600, 840:1100] = (180, 40, 40)
    labels[440:600, 840:1100] = 1
    if 3 <= index < 10:
        hand = np.zeros((1080, 1920), np.uint8)
        centre = hand_centre(index)
        cv2.ellipse(hand, centre, (60, 80), 0, 0, 360, 1, -1)
        cv2.line(hand, centre, (centre[0] + 60, 1079), 1, 70)
        picture[hand == 1] = SKIN
        labels[hand == 1] = clip.hand_label
    if "ZY20210800001" not in clip.name:
        picture[:, :15] = 0
        picture[1050 if "ZY20210800003" in clip.name else 1077 :] = 0
    return picture, labels


def hand_centre(index: int) -> tuple[int, int]:
    return 960 + 4 * index, 640 if 4 <= index < 9 else 800


def keypoints(index: int) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 21)
    return np.stack([60 * np.cos(angles), 80 * np.sin(angles)], 1).astype(np.float32) + hand_centre(index)


def actions(clip: Clip) -> dict:
    """Rest to frame 2, reach-out in 3, contact in 4 to 8, rest; in seconds of the clip's clock."""
    second = (clip.clock or 20.0) / clip.num_frames
    spans = [("rest", 0, 3), ("Reachout", 3, 4), ("Pickup", 4, 9), ("rest", 9, clip.num_frames)]
    start, end = ("startTime", "endTime") if clip.schema == "A" else ("hdTimeStart", "hdTimeEnd")
    events = [{"event": name, start: first * second, end: stop * second} for name, first, stop in spans]
    info = {} if clip.clock is None else {"duration" if clip.schema == "A" else "Duration": clip.clock}
    return {"info": info, "events": events} if clip.schema == "A" else {"info": info, "markResult": {"marks": events}}


def write_mask(path: Path, labels: np.ndarray) -> None:
    palette = np.zeros((256, 3), np.uint8)
    for label, colour in COLOURS.items():
        palette[label] = colour
    cv2.imwrite(str(path), palette[labels][..., ::-1])


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
