"""What `bench data` lets compete: each contestant decodes a number of samples when it is called.

A sample is what FusionNet trains on: two uint8 pictures, the hand's mask, the layout and the keypoints.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_lightning.data.decode import decode_mask

if TYPE_CHECKING:
    from hoi_lightning.data.reader import Shards

BATCH = 64
MEMBERS = ("hoi.jpg", "obj.jpg", "hand.png", "json")
FIELDS: Any = ("hoi", "obj", "hand")

Contestant = Callable[[int], None]  # decodes that many batches


class Buffers:
    """Memory of one batch, used over and over."""

    def __init__(self, side: int) -> None:
        self.pictures = np.empty((2, BATCH, side, side, 3), np.uint8)
        self.hands = np.empty((BATCH, side, side), bool)
        self.layouts = np.empty((BATCH, 5), np.float32)
        self.keypoints = np.empty((BATCH, 21, 2), np.float32)

    def decode(self, row: int, members: dict[str, Any]) -> None:
        """Decode one sample's bytes."""
        import simplejpeg

        for picture, name in zip(self.pictures, ("hoi.jpg", "obj.jpg"), strict=True):
            simplejpeg.decode_jpeg(members[name], "RGB", buffer=picture[row])
        self.hands[row] = decode_mask(members["hand.png"])
        record = json.loads(str(members["json"], "utf-8"))
        self.layouts[row] = [record["layout"][name] for name in ("a", "x", "y", "b1", "b2")]
        self.keypoints[row] = np.nan if record["keypoints"] is None else record["keypoints"]


def in_memory(shards: "Shards") -> Contestant:
    """The bytes are in memory: nothing but decoding."""
    samples = [
        {name: bytes(data) for name, data in shards.read(i, MEMBERS).items()} for i in range(min(len(shards), 512))
    ]
    buffers = Buffers(shards.manifest.size)

    def run(batches: int) -> None:
        for i in range(batches * BATCH):
            buffers.decode(i % BATCH, samples[i % len(samples)])

    return run


def two_processes(root: Path) -> tuple[Contestant, Callable[[], None]]:
    """Two processes decode from memory and send nothing; also returns what ends them."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, str(root)), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()

    def run(batches: int) -> None:
        for pipe, share in zip(pipes, (batches // 2, batches - batches // 2), strict=True):
            pipe.send(share)
        for pipe in pipes:
            pipe.recv()

    def stop() -> None:
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join()

    return run, stop


def _serve(pipe: Any, root: str) -> None:
    from hoi_lightning.data.reader import ShardIndex

    decode = in_memory(ShardIndex(root, "train"))
    decode(2)
    pipe.send("ready")
    with suppress(EOFError):  # the measurement was stopped
        while (batches := pipe.recv()) is not None:
            decode(batches)
            pipe.send("done")


class Stream:
    """Steps of full batches over as many epochs as it takes, small as a data set may be."""

    def __init__(self, shards: "Shards") -> None:
        self.shards, self.batches = shards, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        count, wanted = len(self.shards), self.batches * BATCH
        epochs = [self.shards.order(0, epoch).take(np.arange(count)) for epoch in range(-(-wanted // count))]
        for indices in np.concatenate(epochs)[:wanted].reshape(-1, BATCH):
            yield 0, indices


def ours(shards: "Shards", num_threads: int, fields: Any = FIELDS, latents: bool = False) -> Contestant:
    """This project's loader, in random order."""
    from hoi_lightning.data.loader import BatchLoader, BatchReader, Tally

    steps = Stream(shards)
    reader = BatchReader(shards, fields, Tally(shards.root, "raise", 0.0, len(shards)), latents)
    loader = BatchLoader(reader, steps, num_threads, refill=True)

    def run(batches: int) -> None:
        steps.batches = batches
        for _ in loader:
            pass

    return run


def webdataset_default(root: Path) -> Contestant:
    """As webdataset's documentation has it: float pictures by Pillow, collated."""
    import webdataset as wds

    stream = wds.WebDataset(_tars(root), shardshuffle=False).repeat().decode("torchrgb").to_tuple(*MEMBERS)
    return _consume(iter(stream.batched(BATCH)), 1)


def webdataset_tuned(root: Path) -> Contestant:
    """The same stream with this project's decoders, into memory that is used over and over."""
    import webdataset as wds

    stream = iter(wds.WebDataset(_tars(root), shardshuffle=False, empty_check=False).repeat())
    buffers = Buffers(_side(root))

    def run(batches: int) -> None:
        for i, sample in enumerate(islice(stream, batches * BATCH)):
            buffers.decode(i % BATCH, sample)

    return run


def litdata(shards: "Shards", folder: Path) -> Contestant | None:
    """The same bytes in litdata's own format, with this project's decoders; None where it is not installed."""
    try:
        from litdata import StreamingDataset
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        return None
    folder.mkdir(parents=True)
    writer = BinaryWriter(str(folder), chunk_bytes=64_000_000)
    for i in range(len(shards)):
        writer[i] = {name: bytes(data) for name, data in shards.read(i, MEMBERS).items()}
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(folder), shuffle=False)
    buffers = Buffers(shards.manifest.size)

    def forever() -> Iterator[dict[str, bytes]]:
        while True:
            yield from dataset

    stream = forever()

    def run(batches: int) -> None:
        for i, sample in enumerate(islice(stream, batches * BATCH)):
            buffers.decode(i % BATCH, sample)

    return run


def with_latents(root: Path, shards: "Shards", folder: Path) -> Path:
    """A copy of the training split with latents beside it, of Stable Diffusion's size and of random numbers."""
    import hashlib
    import tarfile

    from safetensors.numpy import save

    folder.mkdir(parents=True)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["shards"] = [entry for entry in manifest["shards"] if entry["split"] == "train"]
    entries, row = [], 0
    rng = np.random.default_rng(0)
    side = shards.manifest.size // 8
    for entry in manifest["shards"]:
        (folder / entry["name"]).symlink_to((root / entry["name"]).resolve())
        path = folder / f"latents-{entry['name']}"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _ in range(entry["count"]):
                data = save({name: rng.standard_normal((4, side, side)).astype(np.float16) for name in ("hoi", "obj")})
                info = tarfile.TarInfo(f"{shards.key(row)}.latents.safetensors")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                row += 1
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        about = {"name": path.name, "split": "train", "count": entry["count"], "sha256": digest}
        entries.append(about | {"of": entry["sha256"]})
    manifest["latents"] = {"vae": {"id": "random"}, "shards": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _consume(stream: Iterator[Any], step: int) -> Contestant:
    def run(batches: int) -> None:
        for _ in islice(stream, batches * step):
            pass

    return run


def _tars(root: Path) -> list[str]:
    return sorted(str(path) for path in root.glob("train-*.tar"))


def _side(root: Path) -> int:
    return int(json.loads((root / "manifest.json").read_text())["size"])
