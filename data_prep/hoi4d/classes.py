"""What HOI4D's numbers, names and colours mean."""

from data_prep.sources import Box, Side

WIDTH, HEIGHT, FPS = 1920, 1080, 15
NUM_FRAMES = 300  # of every clip released

CATEGORIES = {
    "C1": "ToyCar",
    "C2": "Mug",
    "C3": "Laptop",
    "C4": "StorageFurniture",
    "C5": "Bottle",
    "C6": "Safe",
    "C7": "Bowl",
    "C8": "Bucket",
    "C9": "Scissors",
    "C11": "Pliers",
    "C12": "Kettle",
    "C13": "Knife",
    "C14": "TrashCan",
    "C17": "Lamp",
    "C18": "Stapler",
    "C20": "Chair",
}

# Mask colours, RGB: Pascal VOC's, label 0 to 9.
PALETTE = (
    (0, 0, 0),
    (128, 0, 0),
    (0, 128, 0),
    (128, 128, 0),
    (0, 0, 128),
    (128, 0, 128),
    (0, 128, 128),
    (128, 128, 128),
    (64, 0, 0),
    (192, 0, 0),
)
RIGHT_HAND = 2
LEFT_HAND = {"C8": 6, "C17": 6, "C20": 3}  # elsewhere a left hand is not labelled at all

# Labels that are parts of one object; a label that is not listed is an object of its own (label.csv of HOI4D).
PARTS = {
    "C3": ((1, 3),),
    "C4": ((1, 3, 4),),
    "C6": ((1, 3),),
    "C8": ((1, 3), (4, 5)),
    "C9": ((1, 3),),
    "C11": ((1, 3),),
    "C14": ((1, 3),),
    "C17": ((1, 3, 4, 5),),
    "C18": ((1, 3, 4),),
}

# Event names in lower case, letters only.
# fmt: off
CONTACT_EVENTS = frozenset({
    "grasp", "pickup", "carry", "carrywithbothhands", "putdown", "open", "close", "push", "pull", "dump", "cut",
    "papercut", "press", "binding", "turnontheswitch",
})
IDLE_EVENTS = frozenset({"rest", "reachout", "stop", "go", "lookaround"})
# fmt: on

FULL: Box = (0, 0, WIDTH, HEIGHT)
# The released RGB of cameras 2 to 4 is shifted: black columns at the left, black rows at the bottom.
VALID: dict[str, Box] = {
    "ZY20210800001": FULL,
    "ZY20210800002": (15, 0, WIDTH, 1077),
    "ZY20210800003": (15, 0, WIDTH, 1050),
    "ZY20210800004": (15, 0, WIDTH, 1077),
}

# The two generations of hand-pose folders.
HAND_FOLDERS: dict[Side, tuple[str, str]] = {
    "right": ("refinehandpose_right", "handpose_right_hand"),
    "left": ("refinehandpose_left", "handpose_left_hand"),
}
