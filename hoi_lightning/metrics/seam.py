"""Does the border of the hole show?"""

import numpy as np


def border_jump(picture: np.ndarray, hole: np.ndarray) -> float:
    """Mean absolute difference, 0..255, between neighbouring pixels of which one lies in the hole and one outside.

    What a seam adds to it is seen by comparing with the recorded picture's, at the same border.

    Args:
        picture: uint8 (H, W, 3).
        hole: bool (H, W).

    Returns:
        NaN where there is no border.
    """
    values = picture.astype(np.float64)
    across = [np.abs(values[1:] - values[:-1]).mean(-1)[hole[1:] != hole[:-1]]]
    across += [np.abs(values[:, 1:] - values[:, :-1]).mean(-1)[hole[:, 1:] != hole[:, :-1]]]
    jumps = np.concatenate(across)
    return float(jumps.mean()) if len(jumps) else float("nan")
