"""The same tasks on a Ray cluster: CPU tasks decode clips, one actor per GPU holds the model that they share.

All machines see the data set and the output under the same paths and have this package installed.
"""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_prep.launch import Job, make_part
from hoi_lightning.errors import InputError

if TYPE_CHECKING:
    from data_prep.remove_hand import RemovalRequest, Removed
    from data_prep.sources import Clip

RETRIES = 5  # of a clip whose machine was lost, and of a lost model


class Remover:
    """The model's actor."""

    def __init__(self, job: Job) -> None:
        self.remover = job.remover.open(job.settings.size)

    def remove(self, requests: "list[RemovalRequest]") -> "list[Removed]":
        """Remove the hands from a batch of crops."""
        return list(self.remover(requests))

    def ready(self) -> None:
        """Answer when the model is loaded."""


def make_parts_on_ray(clips: "Sequence[Clip]", job: Job, workers: int | None) -> Iterator[None]:
    """Make the parts of all clips on the cluster that `RAY_ADDRESS` names, or else on one of this machine alone.

    No more tasks are submitted than can run soon, and each has one batch on its way at most. A task whose machine is
    lost runs again elsewhere.

    Args:
        clips: the clips without a part.
        job: what they have in common.
        workers: tasks submitted at a time; None for twice the cluster's cores, so that new machines find work.

    Raises:
        InputError: Ray is not installed, no cluster answers, it has no GPU for the model, or a clip was lost too often.
        OSError: a part cannot be written.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray: Ray is not installed; `pip install 'hoi_lightning[ray]'`") from None
    address = os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address or "local", logging_level="WARNING", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"RAY_ADDRESS {address}: no cluster answers ({str(error).splitlines()[0]}); start one with "
            "`ray start --head`, or unset it to use this machine alone"
        ) from None
    try:
        actors = _open_actors(job) if job.remover.has_model else [None]
        yield from _run(clips, job, workers, actors)
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None
    except ray.exceptions.RayError as error:
        raise InputError(
            f"--engine ray: machines were lost too often ({str(error).splitlines()[0]}); give the same command again, "
            "finished clips are kept"
        ) from None
    finally:
        ray.shutdown()


def _open_actors(job: Job) -> list[Any]:
    """One model per GPU of the cluster, or one on its CPUs where that was asked for."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    on_cpu = job.remover.device == "cpu"
    if not gpus and not on_cpu:
        raise InputError("--engine ray: the cluster has no GPU for the diffusion model; add one, or give --device cpu")
    actor = ray.remote(num_gpus=0 if on_cpu else 1, max_restarts=RETRIES, max_task_retries=RETRIES)(Remover)
    actors = [actor.remote(job) for _ in range(1 if on_cpu else gpus)]
    ray.get([one.ready.remote() for one in actors])
    return actors


def _run(clips: "Sequence[Clip]", job: Job, workers: int | None, actors: list[Any]) -> Iterator[None]:
    import ray

    task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(_task)
    todo = iter(clips)
    running: dict[Any, int] = {}  # task → its actor's number
    while True:
        limit = workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while len(running) < limit and (clip := next(todo, None)) is not None:
            loads = [list(running.values()).count(number) for number in range(len(actors))]
            number = loads.index(min(loads))
            running[task.remote(clip, job, actors[number])] = number
        if not running:
            return
        (finished,), _ = ray.wait(list(running), num_returns=1)
        del running[finished]
        ray.get(finished)
        yield


def _task(clip: "Clip", job: Job, actor: Any) -> None:
    import ray

    make_part(clip, job, None if actor is None else lambda requests: ray.get(actor.remove.remote(requests)))


def _cause(error: BaseException) -> BaseException:
    """What a task raised: users' and disks' errors as they are, others with Ray's account of where."""
    import ray

    cause: Any = error
    while isinstance(cause, ray.exceptions.RayTaskError):
        cause = cause.cause
    return cause if isinstance(cause, InputError | OSError) else error
