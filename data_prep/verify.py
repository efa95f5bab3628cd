"""Check finished shards: every byte, every picture, every record, and that splits, ledger and manifest agree.

One line per fault, with the shard and the key it is in. Status 0 where there is none, 1 where there are some.
"""

import argparse
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.folder_checks import MAX_LINES, Across, Brief, Faults, TarReport, list_jobs, manifest_faults
from hoi_lightning.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder that `build` wrote")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")


def run(args: argparse.Namespace) -> int:
    """Verify a folder; returns the exit status.

    Raises:
        InputError: there is no such folder, or no finished build in it.
    """
    from tqdm import tqdm

    from data_prep.read_shards import read_manifest

    if args.workers < 1:
        raise InputError(f"--workers {args.workers}: give a number of processes, 1 or more")
    manifest = read_manifest(args.out, "OUT")
    faults = Faults()
    for text in manifest_faults(manifest):
        faults.add("manifest.json", text)
    if faults.count:
        print(f"{args.out}: {faults.count} faults; nothing else can be checked with such a manifest")
        return 1
    jobs = list_jobs(manifest)
    across = Across(manifest, faults)
    total = sum(entry["count"] for entry, _ in jobs)
    with tqdm(total=total, unit="sample", desc="verify") as bar:
        for report in _run_all(args.out, jobs, manifest["size"], min(args.workers, len(jobs))):
            for key, text in report.faults:
                faults.add(f"{report.entry['name']} {key}".strip(), text)
            across.add(report)
            bar.update(report.entry["count"])
    across.finish(args.out)
    if faults.count > MAX_LINES:
        print(f"… and {faults.count - MAX_LINES} more")
    samples = sum(entry["count"] for entry in manifest["shards"])
    what = "1 fault" if faults.count == 1 else f"{faults.count} faults" if faults.count else "no fault"
    print(f"{args.out}: {samples} samples in {len(manifest['shards'])} shards, {len(jobs)} tars: {what}")
    return 1 if faults.count else 0


def check_tar(folder: Path, size: int, job: tuple[dict[str, Any], str]) -> TarReport:
    """Check one tar by itself; what a worker runs.

    Args:
        folder: of the shards.
        size: side of the crops in pixels.
        job: the manifest's entry and the kind of tar: `samples`, `truth` or `latents`.
    """
    from data_prep import sample_checks as checks
    from data_prep.read_shards import iter_records

    entry, kind = job
    report = TarReport(entry)
    path = folder / entry["name"]
    if not path.is_file():
        report.faults.append(("", "the file is missing"))
        return report
    if path.stat().st_size != entry["bytes"]:
        report.faults.append(("", f"{path.stat().st_size} bytes, the manifest says {entry['bytes']}"))
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            report.faults.append(("", "sha256 is not the manifest's"))
    extensions = {"samples": checks.EXTENSIONS, "truth": checks.TRUTH_EXTENSIONS, "latents": checks.LATENTS_EXTENSIONS}
    seen: set[str] = set()
    for record in iter_records(path, extensions[kind], lambda key, text: report.faults.append((key, text))):
        if record.key in seen:
            report.faults.append((record.key, "the key comes twice in this tar"))
            continue
        seen.add(record.key)
        report.keys.append(record.key)
        members = record.read_all()
        if kind == "samples":
            texts = _check_sample(record.key, members, size, report.briefs)
        elif kind == "truth":
            texts = checks.truth_faults(members, size)
        else:
            texts = checks.latents_faults(members)
        report.faults += [(record.key, text) for text in texts]
    if len(report.keys) != entry["count"]:
        report.faults.append(("", f"{len(report.keys)} samples, the manifest says {entry['count']}"))
    return report


def _check_sample(key: str, members: dict[str, bytes], size: int, briefs: list[Brief]) -> Iterator[str]:
    from data_prep import sample_checks as checks

    if "json" not in members:
        yield "json missing"
        return
    info = checks.read_info(key, members["json"])
    if isinstance(info, str):
        yield info
        return
    wrong = list(checks.info_faults(info, key, size))
    yield from wrong
    yield from checks.sample_faults(members, info, size)
    if not wrong:
        has_keypoints = info.keypoints is not None
        briefs.append(Brief(key, info.sequence, info.frame, info.category, info.instance, has_keypoints))


def _run_all(folder: Path, jobs: list[tuple[dict[str, Any], str]], size: int, workers: int) -> Iterator[TarReport]:
    check: Callable[[tuple[dict[str, Any], str]], TarReport] = partial(check_tar, folder, size)
    if workers <= 1:
        yield from map(check, jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker)
    try:
        yield from pool.map(check, jobs)
    except BrokenProcessPool:
        raise InputError(f"--workers {workers}: a worker was killed, probably for want of memory; give fewer") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it."""
    import multiprocessing
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
