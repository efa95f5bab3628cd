"""Hand pickles, read without running anything that they name."""

import io
import pickle
from typing import Any

import numpy as np

from data_prep.sources import Fault, File


def read_keypoints(path: File) -> np.ndarray:
    """Read the 21 keypoints of a hand pickle, wrist first.

    Returns:
        float64 (21, 2): x, y in pixels of the released frame, pixel centres at integers; they may lie outside it.

    Raises:
        Fault: not a pickle of plain arrays, or the keypoints have another shape or are not finite.
    """
    try:
        record = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        keypoints, pose = np.asarray(record["kps2D"]).astype(np.float64), np.asarray(record["poseCoeff"])
    except Exception as error:  # a damaged pickle can raise anything
        raise Fault("bad-hand-pose", path, repr(error)) from None
    # HOI4D's failed registrations have a poseCoeff of one number.
    if keypoints.shape != (21, 2) or not np.isfinite(keypoints).all() or pose.size != 48:
        raise Fault("bad-hand-pose", path, f"kps2D {keypoints.shape} and poseCoeff {pose.shape}, or not finite")
    return keypoints


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays in plain containers; any other global is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # NumPy 2 renamed it
        if (module, name) not in {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a hand pickle")
        return super().find_class(module, name)
