"""A run over many models: what is done is left, the others run, and each leaves its record when it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bnfold.batch.attempt import Attempt, Ended, Place
from bnfold.batch.job import FOLD, Job, digest, with_paths
from bnfold.batch.manifest import read_manifest
from bnfold.batch.overview import write_overview
from bnfold.batch.policy import Need, Queue, cores, estimate, limit_for
from bnfold.batch.progress import Progress, Silent
from bnfold.batch.records import Record, Records
from bnfold.batch.units import memory_in_words, parse_memory
from bnfold.errors import UsageError

__all__ = ["AGAIN", "run"]

AGAIN = ("FAILED", "ALL")
LOOK_SECONDS = 0.2
_TRIES_ELSEWHERE = 2  # after a machine went away under a model


def run(
    manifest: str | Path,
    output: str | Path,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    timeout: float | None = None,
    memory: int | str | None = None,
    again: str | None = None,
    ship: bool = False,
    options: Mapping[str, Sequence[str]] | None = None,
    work: str = FOLD,
    progress: Progress | None = None,
) -> list[Record]:
    """Fold and prove every model of a manifest, each in a process of its own.

    Args:
        manifest: a ``.csv`` or ``.jsonl`` file with a row for each model and columns named like the options of
            ``bnfold fold``, or a folder of model files.
        output: the folder that gets ``results.jsonl``, ``index.html``, ``junit.xml`` and a folder for each model. What
            has a record there, of the same content, options and versions, is not done again.
        jobs: how many models at a time on this machine; one a core by default.
        ray: the address of a Ray cluster to run on; ``""`` for the one that is there, or one made here.
        timeout: seconds of wall-clock time for each model; none by default.
        memory: for each model: bytes, or text such as ``"3GiB"``; twice its estimate by default.
        again: ``"FAILED"`` does again what is not equivalent, ``"ALL"`` everything.
        ship: send the files to the nodes of the cluster and back, where they share no storage.
        options: columns with values for models that have nothing there, such as ``{"merge": ["--merge"]}``.
        work: what to run for each model, instead of the fold: ``module:function``.
        progress: who is told how it goes.

    Returns:
        A record for each model, in the manifest's order, as in ``results.jsonl``.

    Raises:
        UsageError: a row of the manifest, or an argument, is wrong. Nothing was started.
        FileAccessError: the manifest cannot be read, or the folder not be written to, or another run is at work there.
        MissingPackageError: ``ray`` was given, and Ray is not installed.
    """
    if again is not None and again not in AGAIN:
        raise UsageError(f"{again!r} names nothing to do again.", fix=f"Give {' or '.join(AGAIN)}.")
    if jobs is not None and jobs < 1:
        raise UsageError(f"{jobs} models at a time are none.", fix="Give 1 or more jobs.")
    try:
        given = parse_memory(memory) if isinstance(memory, str) else memory
    except ValueError as error:
        raise UsageError(str(error), fix="Give the memory of one model.") from error
    every = read_manifest(Path(manifest), Path(output), defaults=options, work=work)
    every = [replace(job, seconds=job.seconds or timeout) for job in every]
    place = _place(jobs, ray, ship, Path(output), work)
    with Records(Path(output)) as records:
        todo = _todo(every, records, again)
        earlier = {job.name: int(records.done.get(job.name, {}).get("peak_bytes") or 0) for job in todo}
        records.drop(job.name for job in todo)
        run = _Run(records, progress or Silent(), len(every) - len(todo))
        try:
            with place:
                run.do(todo, place, earlier, given)
        finally:
            records.wait_for_processes()
            found = [records.done[job.name] for job in every if job.name in records.done]
            with contextlib.suppress(OSError):  # of a full disk the records tell more
                write_overview(Path(output), found)
    return found


def _place(jobs: int | None, ray: str | None, ship: bool, output: Path, work: str) -> Place:
    if ray is None:
        from bnfold.batch.local import Here

        return Here(jobs, work)
    from bnfold.batch.cluster import Cluster

    return Cluster(ray, jobs=jobs, ship=ship, output=output)


def _todo(every: Sequence[Job], records: Records, again: str | None) -> list[Job]:
    """Return the jobs that have no record, one of something else, or one that is to be made again."""

    def wanted(job: Job) -> bool:
        record = records.done.get(job.name)
        if record is None or again == "ALL" or (again == "FAILED" and record["outcome"] != "equivalent"):
            return True
        return bool(record.get("key") != digest(job)[1])

    with ThreadPoolExecutor(cores()) as pool:  # it reads every file that has a record
        return [job for job, yes in zip(every, pool.map(wanted, every), strict=True) if yes]


class _Run:
    """What waits and what runs, and what becomes of what ends."""

    def __init__(self, records: Records, progress: Progress, done: int) -> None:
        self.records = records
        self.progress = progress
        self.done = done
        self.later: list[Attempt] = []
        self.running: dict[str, Need[Attempt]] = {}

    def do(self, jobs: Sequence[Job], place: Place, earlier: Mapping[str, int], given: int | None) -> None:
        """Run the jobs to their end."""
        attempts = []
        for job in jobs:
            limit = job.memory or given
            expected = min(estimate(job, earlier.get(job.name)), limit or place.largest, place.largest)
            if limit is not None and limit > place.largest:
                self.progress.say(
                    f"{job.name} may hold {memory_in_words(limit)}, and no machine has more than "
                    f"{memory_in_words(place.largest)} for it: it gets that."
                )
            attempts.append(Attempt(job, expected, limit_for(expected, place.largest, limit)))
        queue = Queue([Need(attempt, attempt.expected) for attempt in attempts], memory=place.memory, slots=place.slots)
        self.progress.begin(self.done, {attempt.job.name: attempt.expected for attempt in attempts})
        while len(queue) or self.later or self.running:
            if not len(queue):  # what ran out of memory comes last: it runs alone, and the others need not wait for it
                queue.add([Need(attempt, place.largest) for attempt in self.later])
                self.later = []
            while (need := queue.next()) is not None:
                self.running[need.what.job.name] = need
                place.start(need.what)
            for ended in place.wait(LOOK_SECONDS):
                queue.ended(self.running.pop(ended.attempt.job.name))
                again = self._again(ended, place)
                if again is None:
                    self._record(ended)
                elif again.limit == place.largest and ended.lost is None:
                    self.later.append(again)
                else:
                    queue.add([Need(again, again.expected)])
            self.progress.look(place.stages(), len(queue) + len(self.later))

    def _again(self, ended: Ended, place: Place) -> Attempt | None:
        """Return another attempt, where one is due."""
        attempt = ended.attempt
        if ended.lost is not None:
            if attempt.lost >= _TRIES_ELSEWHERE:
                return None
            before = (*attempt.before, f"The machine that it ran on went away: {ended.lost}.")
            # in a folder of its own: a node that is only cut off may still write into the other
            folder = f"{attempt.job.folder}.{len(before) + 1}"
            job = with_paths(attempt.job, {attempt.job.folder: folder})
            return replace(attempt, job=job, lost=attempt.lost + 1, before=before)
        if ended.told["outcome"] != "out-of-memory" or attempt.expected >= place.largest:
            return None
        held = f"It ran out of memory with {memory_in_words(attempt.limit)}"
        before = (*attempt.before, f"{held}, and was tried again alone with {memory_in_words(place.largest)}.")
        return replace(attempt, expected=place.largest, limit=place.largest, before=before)

    def _record(self, ended: Ended) -> None:
        attempt, told = ended.attempt, ended.told
        if ended.lost is not None:
            told = {"outcome": "died", "error": f"The machine that it ran on went away: {ended.lost}."}
        record: Record = {
            "name": attempt.job.name,
            "source": attempt.job.source or attempt.job.arguments[0],
            "sha256": None,
            "outcome": "died",
            "exit_code": None,
            "summary": None,
            "seconds": None,
            "peak_bytes": None,
            "error": None,
            "outputs": [],
            **told,
            "attempts": len(attempt.before) + 1,
            "before": list(attempt.before),
            "folder": f"models/{Path(attempt.job.folder).name}",
        }
        self.records.append(record)
        self.progress.ended(record)
