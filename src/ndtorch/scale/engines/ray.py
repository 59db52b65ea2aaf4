"""Ray Core: the machines of a cluster, or this one where there is none.

One remote task a unit, and no more of them at a time than keep the workers busy. Ray does the scheduling, moves what is
to be moved, and gives a unit whose worker died to another one.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..._errors import InvalidOptionError, MissingDependencyError, NdtorchError
from ..units import Unit
from .outcomes import Answer, Done, Work, answered, done_of, names_of, worker_died

_TRIES = 2  # of a unit
_COUNT_EVERY = 5.0  # seconds; a cluster may grow
_ANSWERS_WITHIN = 5.0  # seconds
_LOOK_EVERY = 2.0
_GONE_AFTER = 20.0  # without an answer: one that is started again may need a while
_AHEAD = 3  # tasks for each worker: one that is done, two that wait
# No telemetry of a cluster of ours, and no endless tries of what takes more memory than there is.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(_TRIES - 1)}
_TOKEN = "RAY_AUTH_MODE=token in the environment where the cluster asks for a token, as that of ray start does"
_START = "ray start --head starts one; without an address Ray is started for this call alone"
_ALREADY = "leave the address out: what this process is connected to is used"


def check_cluster(address: str | None) -> None:
    """Refuse where there is no Ray, or no cluster at an address: Ray itself tries that again for minutes.

    Raises:
        MissingDependencyError: Ray is not installed.
        NdtorchError: Nobody answers at the address.
    """
    check_installed()
    address = address or os.environ.get("RAY_ADDRESS")
    if address in (None, "auto", "local") or (sys.modules.get("ray") and sys.modules["ray"].is_initialized()):
        return
    assert address is not None
    host, _, port = address.partition("://")[2 if "://" in address else 0].rpartition(":")
    if not (host and port.isdigit()):
        hint = "HOST:PORT as ray start has printed it, auto, or ray://HOST:PORT"
        raise InvalidOptionError("convert", f"address={address!r} is no address of a cluster", hint=hint)
    why = why_no_answer(host, int(port))
    if why:
        hint = "ray start --head prints the address; auto is the cluster on this machine"
        raise NdtorchError("convert", f"no Ray cluster answers at {address!r}: {why}", hint=hint)


def why_no_answer(host: str, port: int) -> str:
    """Why nobody can be connected to there; empty where somebody can."""
    try:
        socket.create_connection((host.strip("[]"), port), _ANSWERS_WITHIN).close()
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def check_installed() -> None:
    """Refuse where there is no Ray.

    Raises:
        MissingDependencyError: There is none.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingDependencyError("convert", "ray is not installed", hint="pip install ray")


class Ray:
    """Several units at a time, each a task of Ray.

    Args:
        workers: How many units are done at a time; else as many as the cluster, or this machine, has CPUs.
        address: The cluster, as in ``ray.init``. The package has to be importable there.
    """

    def __init__(self, workers: int | None, address: str | None) -> None:
        self.workers = workers
        self.address = address

    def run(self, work: Work, units: Iterable[Unit]) -> Generator[Done, None, None]:
        """Do all units."""
        import ray

        with _connected(self.workers, self.address) as is_ours:
            remote = ray.remote(num_cpus=1, max_retries=_TRIES - 1, retry_exceptions=False)(answered)
            waiting, running = iter(units), dict[Any, Unit]()
            most, counted, pulse = 0, -math.inf, _Pulse()
            try:
                while True:
                    if time.monotonic() - counted > _COUNT_EVERY:
                        most = self.workers if self.workers and not is_ours else _AHEAD * _cpus()
                        counted = time.monotonic()
                    while len(running) < most and (unit := next(waiting, None)) is not None:
                        running[remote.remote(work, unit)] = unit
                    if not running:
                        return
                    finished, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_EVERY)
                    pulse.feel()
                    for reference in finished:
                        yield _done(running.pop(reference), reference)
            finally:
                for reference in running if pulse.is_there else ():
                    with suppress(Exception):
                        ray.cancel(reference, force=True)


class _Pulse:
    """Whether the cluster is still there. Ray ends the whole process of a driver that has lost its cluster for 60 s."""

    def __init__(self) -> None:
        import ray

        self._address: str = ray.get_runtime_context().gcs_address
        self._felt = self._looked = time.monotonic()
        self.is_there = True

    def feel(self) -> None:
        """Look whether somebody answers, now and then.

        Raises:
            NdtorchError: Nobody has for long.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY:
            return
        host, _, port = self._address.rpartition(":")
        why = why_no_answer(host, int(port))
        self._looked = time.monotonic()
        if not why:
            self._felt = self._looked
        elif self._looked - self._felt > _GONE_AFTER:
            self.is_there = False
            fact = f"the Ray cluster at {self._address!r} is gone: {why}"
            raise NdtorchError("convert", fact, hint="the same call goes on where this one stopped")


def _done(unit: Unit, reference: Any) -> Done:
    import ray

    try:
        answer = ray.get(reference)
        return done_of(unit, Answer(*answer))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        died = worker_died(unit, f"says Ray: {_first_line(error)}", _TRIES)
        died.__cause__ = error
        return Done(unit, None, died)
    except ray.exceptions.RayError as error:
        why = f"{type(error).__name__}: {_first_line(error)}"
        lost = NdtorchError("convert", f"unit {unit.number}, {names_of(unit.files)}, is lost: {why}")
        lost.__cause__ = error
        return Done(unit, None, lost)


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _cpus() -> int:
    """How many tasks of one CPU run at a time."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(int(resources.get("CPU", 1)), 1)


@contextmanager
def _connected(workers: int | None, address: str | None) -> Iterator[bool]:
    """Connect to a cluster, or start one; give whether it is ours alone. What the caller has started stays as it is."""
    import ray

    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", here):
            fact = f"address={address!r} is another cluster than the one this process is connected to, {here!r}"
            raise InvalidOptionError("convert", fact, hint=_ALREADY)
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS")
    is_ours = address in (None, "local")
    with _quiet():
        try:
            ray.init(**_options(workers, address, is_ours=is_ours))
        except Exception as error:  # there is no class that its errors have in common
            fact = f"no connection to Ray at {address!r}" if address else "Ray cannot start on this machine"
            hint = _START if address == "auto" else _TOKEN if address else None
            raise NdtorchError("convert", f"{fact}: {_first_line(error)}", hint=hint) from error
    try:
        yield is_ours
    finally:
        ray.shutdown()


def _options(workers: int | None, address: str | None, *, is_ours: bool) -> dict[str, Any]:
    """What ``ray.init`` is told. Output of workers stays in Ray's own logs: stdout may be read by a program."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not is_ours:
        return {"address": address, **quiet}
    cpus = workers or len(os.sched_getaffinity(0))
    return {"address": "local", "num_cpus": cpus, "include_dashboard": False, **quiet}


@contextmanager
def _quiet() -> Iterator[None]:
    """The environment of what is started now, and no advice on the way."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    logger = logging.getLogger("ray")
    level = logger.level
    os.environ |= {name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()}
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
