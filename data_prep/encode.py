"""A sample's members by faster encoders than the ones that reading shards brings along."""

from functools import partial
from typing import Any

import cv2
import numpy as np
from isal import isal_zlib

from hoi_lightning.data import sample as treaty

# What Pillow writes, to the byte, in three quarters of its time; simplejpeg's faster transform costs 2 dB.
JPEG_OPTIONS = [
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
]


def encode(sample: treaty.HOISample) -> dict[str, Any]:
    """Turn a sample into a WebDataset record, as `hoi_lightning.data.sample.encode` does."""
    return treaty.encode(sample, jpeg=encode_jpeg, png=encode_png)


def encode_jpeg(picture: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) at quality 95 with 4:2:0 chroma."""
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), JPEG_OPTIONS)[1].tobytes()


encode_png = partial(treaty.encode_mask, deflate=partial(isal_zlib.compress, level=1))
