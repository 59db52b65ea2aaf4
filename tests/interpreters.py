"""Scripts run to their end in interpreters of their own, forked from one that has imported everything."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import TracebackType

PATIENCE = 300.0  # seconds after which a script hangs, on a machine that has much else to do, too

_SERVER = """
import atexit, gc, os, signal, sys, threading, time, weakref
import numpy as np, torch
import ndtorch as nd
{start}
def begun():
    print("begun", flush=True)
for _script in map(eval, sys.stdin):
    _pid = os.fork()
    if _pid == 0:
        for _number in 1, 2:
            os.dup2(os.open(f"{folder}/{{_number}}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), _number)
        os.close(0)
        break
    print(_pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(_pid, 0)[1]), flush=True)
else:
    os._exit(0)
exec(compile(_script, "<script>", "exec"))
"""


class Interpreters:
    """One after the other; each ends as an interpreter does at the end of a script.

    Args:
        start: What every script finds done already.
        folder: Where they write what they say.
        environment: Variables of the environment beside those that are set.
    """

    def __init__(self, start: str, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", "-X", "faulthandler", "-c", _SERVER.format(start=start, folder=folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | environment,
            bufsize=0,
        )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._requests, self._answers = self._server.stdin, self._server.stdout

    def __enter__(self) -> Interpreters:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._requests.close()
        self._server.wait(PATIENCE)
        self._answers.close()

    def run(self, script: str, *, with_signal: signal.Signals | None = None) -> tuple[int, str]:
        """Give the exit status and what was said on stderr.

        Args:
            script: What to run.
            with_signal: What is sent to it once it has called ``begun()``.
        """
        said = [self._folder / "1", self._folder / "2"]
        for file in said:
            file.write_text("")
        self._requests.write(f"{textwrap.dedent(script)!r}\n".encode())
        pid = int(self._answers.readline())
        killer = subprocess.Popen(["sh", "-c", f"sleep {PATIENCE} && kill -ABRT {pid}"], start_new_session=True)
        try:
            while with_signal is not None and not self._has_ended():
                if said[0].read_text():
                    os.kill(pid, with_signal)
                    break
            status = int(self._answers.readline())
        finally:
            os.killpg(killer.pid, signal.SIGKILL)
            killer.wait()
        return status, said[1].read_text()

    @property
    def printed(self) -> str:
        """What the last script said on stdout."""
        return (self._folder / "1").read_text().strip()

    def _has_ended(self) -> bool:
        return bool(select.select([self._answers], [], [], 0.002)[0])
