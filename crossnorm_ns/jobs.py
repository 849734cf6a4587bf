"""Independent jobs, carried out side by side on this machine or as an array of SLURM jobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed
from pathlib import Path
from typing import Any, TypeVar

Result = dict[str, Any]
Job = TypeVar("Job", bound=Callable[[], Result])

POLL_SECONDS = 5.0
"""Between two looks at jobs of a cluster."""


class JobError(ValueError):
    """Jobs that cannot be submitted, or one that failed on a cluster: the message says why."""


def run_in_pool(jobs: Sequence[Job], pool: Executor) -> Iterator[tuple[Job, Result | Exception]]:
    """Carries out jobs in a pool; yields each result, or what was raised, when it is there.

    Where it is left early, jobs that have not begun are not begun any more.
    """
    futures = {pool.submit(job): job for job in jobs}
    try:
        for future in as_completed(futures):
            yield futures[future], _outcome(future)
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def run_on_slurm(
    jobs: Sequence[Job], folder: Path, options: dict[str, Any]
) -> Iterator[tuple[Job, Result | Exception]]:
    """Carries out jobs as an array of SLURM, through submitit; yields each result when it is there.

    Where it is left early, the jobs are cancelled.

    Args:
        jobs: which can be pickled; their files lie on a file system that the nodes share. Those with submitit's method
            `checkpoint` are queued again where their time is over or their node is taken.
        folder: for submitit's files.
        options: of submitit's executor, see `slurm_options`.

    Raises:
        JobError: submitit is not installed, or there is no SLURM.
    """
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise JobError('SLURM needs submitit: pip install "crossnorm-ns[slurm]"') from error
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
    except RuntimeError as error:
        raise JobError(f"jobs cannot be submitted: {error}") from error
    executor.update_parameters(**options)
    with executor.batch():
        submitted = [executor.submit(job) for job in jobs]
    places = {handle.job_id: job for job, handle in zip(jobs, submitted, strict=True)}
    try:
        for handle in submitit.helpers.as_completed(submitted, poll_frequency=POLL_SECONDS):
            outcome = _outcome(handle)
            if isinstance(outcome, Exception):
                outcome = JobError(cluster_reason(str(outcome)))
            yield places[handle.job_id], outcome
    except BaseException:
        for handle in submitted:
            handle.cancel(check=False)
        raise


def cluster_reason(message: str) -> str:
    """What submitit says of a job that failed, in a line: the cluster's state of it, or what the job has raised."""
    if state := re.search(r"has not produced any output \(state: (.*)\)", message):
        return f"ended by the cluster ({state[1]})"
    lines = [line for line in message.partition("\nYou can check full logs")[0].splitlines() if line.strip(" -")]
    return re.sub(r"^[\w.]*(Error|Exception): ", "", lines[-1]) if lines else "failed"


def slurm_options(minutes: int, cpus: int, gpus: int, partition: str | None) -> dict[str, Any]:
    """Options of submitit's executor for each job."""
    options: dict[str, Any] = {"timeout_min": minutes, "cpus_per_task": cpus, "gpus_per_node": gpus}
    return options if partition is None else options | {"slurm_partition": partition}


def _outcome(job: Future[Result] | Any) -> Result | Exception:
    try:
        return job.result()
    except Exception as error:  # one job that fails leaves the others alone
        return error
