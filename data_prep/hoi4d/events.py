"""Action events: two schemas, two clocks."""

import json
import math
import re
from dataclasses import dataclass
from typing import Literal

from data_prep.hoi4d.classes import CONTACT_EVENTS, FPS, IDLE_EVENTS
from data_prep.sources import Fault, File


@dataclass(frozen=True)
class Event:
    """An action event on the video's frames.

    Attributes:
        name: as HOI4D stores it, e.g. `Carrywithbothhands`.
        first: its first frame.
        stop: the frame after its last.
    """

    name: str
    first: int
    stop: int

    @property
    def kind(self) -> Literal["contact", "idle", "unknown"]:
        """Whether a hand touches something in it; `unknown` for a name outside HOI4D's list."""
        name = re.sub(r"[^a-z]", "", self.name.lower())
        return "contact" if name in CONTACT_EVENTS else "idle" if name in IDLE_EVENTS else "unknown"


def read_events(path: File, num_frames: int) -> list[Event]:
    """Read `action/color.json`, either schema, either clock.

    A clip of 300 frames lasts 20 s on some clocks and 10 s on others; the frame of a time t is t·num_frames/duration,
    whatever the clip's length. Where the duration is missing it is the video's, 20 s of 300 frames, or half of it if
    the last event ends before 12 s of these 20.

    Raises:
        Fault: missing, empty or malformed.
    """
    try:
        record = json.loads(path.read_bytes())
        info = record.get("info") or {}
        if "markResult" in record:
            spans = [(e["event"], e["hdTimeStart"], e["hdTimeEnd"]) for e in record["markResult"]["marks"]]
        else:
            spans = [(e["event"], e["startTime"], e["endTime"]) for e in record["events"]]
        times = [(str(name), float(start), float(end)) for name, start, end in spans]
        duration = float(info.get("duration") or info.get("Duration") or 0)
    except OSError as error:
        raise Fault("no-actions", path, error.strerror or "") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault("no-actions", path, f"malformed: {error!r}") from None
    if not times or not all(math.isfinite(value) for _, *pair in times for value in (*pair, duration)):
        raise Fault("no-actions", path, "no events" if not times else "times are not finite")
    if duration <= 0:
        duration = num_frames / FPS
        if max(end for *_, end in times) < 0.6 * duration:
            duration /= 2

    def frame(t: float) -> int:
        return min(max(math.floor(t * num_frames / duration + 1e-6), 0), num_frames)

    return [Event(name, frame(start), frame(end)) for name, start, end in times]


def event_at(events: list[Event], frame: int) -> Event | None:
    """The event that covers a frame, one of contact before others; None where there is none."""
    order = {"contact": 0, "unknown": 1, "idle": 2}
    covering = [event for event in events if event.first <= frame < event.stop]
    return min(covering, key=lambda event: order[event.kind], default=None)
