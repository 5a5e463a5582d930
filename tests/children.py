"""Work in forked copies of the test's process, some of which are killed."""

import os
import signal


def in_child(work):
    """Start `work()` in a child; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


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
