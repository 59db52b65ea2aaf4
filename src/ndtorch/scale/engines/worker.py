"""What a worker process does: units, as they come through its connection, until that ends.

It is started with ``python -c``, not by multiprocessing's spawn, which would import the caller's script once more and
so ask for ``if __name__ == "__main__"`` in it.
"""

from __future__ import annotations

import os
import select
import threading
from multiprocessing.connection import Connection

from .outcomes import answered

START = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from {} import serve; serve(*sys.argv[1:])"
"""The program of a worker; through its stdin it hears where modules are."""

READY = "ready"
_LOOK_EVERY = 1000  # milliseconds


def serve(descriptor: str, parent: str) -> None:
    """Do units until the connection ends, or whoever started this process does.

    Args:
        descriptor: The number of the connection.
        parent: The process that this one works for.
    """
    os.set_inheritable(int(descriptor), False)
    connection = Connection(int(descriptor))
    # Not PR_SET_PDEATHSIG, which is sent when the thread ends that started this process.
    threading.Thread(target=_end_with, args=(connection, int(parent)), daemon=True).start()
    try:
        connection.send(READY)
        work = connection.recv()
        while True:
            unit = connection.recv()
            connection.send(answered(work, unit))
    except (EOFError, OSError):
        os._exit(0)  # nobody is there to hear of anything that could still go wrong


def _end_with(connection: Connection, parent: int) -> None:
    """End this process when the other end of its connection has closed, or its parent is gone and others have kept it.

    A process is killed without a word: what it leaves behind has to notice by itself.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    while not poll.poll(_LOOK_EVERY) and os.getppid() == parent:
        pass
    os._exit(0)
