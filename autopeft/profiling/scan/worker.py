"""A process that scans blocks for its parent: ``python -m autopeft.profiling.scan.worker``.

It reads pickles from stdin, the task first, then blocks, and answers each with a pickle on stdout: the facts, or the
exception. It ends when stdin does. Only a parent of the same installation speaks to it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import IO

from autopeft.profiling.scan.scanner import Scanner


def main() -> None:
    """Serves until the parent closes the pipe."""
    # Ctrl-C reaches the whole group; the parent decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    # What a library prints must not get between the answers.
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers the requests of a stream until it ends."""
    scanner: Scanner | None = None
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        answer: object = None
        try:
            if scanner is None:
                scanner = Scanner(request)
            else:
                answer = scanner.scan(request)
        except Exception as error:
            answer = error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
