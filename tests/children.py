"""Work in forked copies of the test's process, some of which are killed."""

import os
import signal
import sys
import time

LIMIT = 180  # seconds


def in_child(work):
    """Start `work()` in a child; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            if "torch" in sys.modules:  # OpenMP's threads of an earlier test are not copied, and would be waited for
                sys.modules["torch"].set_num_threads(1)
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    return pid


def ended(pid):
    """The child's exit code; it is killed if it does not end."""
    deadline = time.monotonic() + LIMIT
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"a child did not end in {LIMIT} s")
        time.sleep(0.01)


def killed_at(calls, real):
    """`real`, whose n-th call is the end of the process."""
    left = [calls]

    def called(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    return called


def folders(parent):
    return sorted(p.name for p in parent.iterdir() if p.is_dir())
