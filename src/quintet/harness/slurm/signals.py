"""The only place that handles SLURM's signals in a job.

SIGUSR2 warns that the time limit or a preemption is near (`--signal=USR2@120`). SIGTERM means that SLURM is ending the
job: it requeues, preempts or cancels it, or the limit is reached; SIGKILL follows after the cluster's KillWait.
While training a handler only takes note: the ranks save together at the next step boundary (requeue.py).
Before and after training nothing is to be saved, so rank 0 asks for the requeue at once. Only the standard library is
imported here: the owner takes the signals before torch is.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

WARNING, END = signal.SIGUSR2, signal.SIGTERM
EXIT_CODE = 128 + END  # as a shell reports a process that SIGTERM ended
NOTHING, WARNED, ENDING = 0, 1, 2
LIMIT_KEY = "QUINTET_MAX_RESTARTS"


def in_batch_job() -> bool:
    """Whether this process is a task that srun started in a job that can be requeued."""
    return "SLURM_PROCID" in os.environ and "SLURM_JOB_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ


def is_restarted() -> bool:
    """Whether SLURM started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def job_id() -> str:
    """The job as scontrol wants it: an element of an array by array and index, else all of the array would move."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


class Signals:
    """The signals received so far (`noted`: NOTHING, WARNED or ENDING), and the reaction to them."""

    def __init__(self) -> None:
        self.noted = NOTHING
        self.training = False
        self._owner_pid = 0
        self._requeued = False

    def take(self) -> None:
        """Install the handlers in a SLURM task; elsewhere nothing happens."""
        if not in_batch_job():
            return
        self._owner_pid = os.getpid()
        for number in (WARNING, END):
            signal.signal(number, self._note)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # comes before SIGTERM and means nothing

    @property
    def taken(self) -> bool:
        """Whether this process owns the signals."""
        return self._owner_pid == os.getpid()

    def _note(self, number: int, frame: object) -> None:
        if not self.taken:  # a data worker: SLURM signals the whole process group, and it has inherited the handler
            return
        self.noted = max(self.noted, WARNED if number == WARNING else ENDING)
        if os.environ["SLURM_PROCID"] != "0":
            return  # only rank 0 calls scontrol
        if self.noted == ENDING and reached_time_limit():
            self.requeue()  # though the next step boundary may come too late to save
        elif self.noted == WARNED and not self.training:
            self.requeue()
        if self.noted == ENDING and not self.training:
            raise SystemExit(EXIT_CODE)

    def requeue(self) -> bool:
        """Put the job back into the queue, once; False, with a line on stderr, when that is not to be."""
        if self._requeued:
            return True
        restarts, most = (int(os.environ.get(k, d)) for k, d in (("SLURM_RESTART_COUNT", 0), (LIMIT_KEY, 100)))
        if restarts >= most:
            say(f"error: job {job_id()} was restarted {restarts} times, the most that {LIMIT_KEY} allows: not requeued")
            return False
        for attempt in range(3):
            time.sleep(2 * attempt)  # a busy controller
            code, _, complaint = scontrol("requeue", job_id())
            if code == 0:
                self._requeued = True
                say(f"SLURM: job {job_id()} goes back into the queue")
                return True
        say(f"error: SLURM does not requeue job {job_id()}: {complaint}; continue with resume=")
        return False


def scontrol(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and one line of complaint of `scontrol ARGUMENTS`."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def reached_time_limit() -> bool:
    """Whether SLURM ends the job because of its time limit, after which it does not requeue it by itself."""
    return re.search(r"\bReason=TimeLimit\b", scontrol("-o", "show", "job", job_id())[1]) is not None


def say(line: str) -> None:
    """A line on stderr that is safe to write from a signal handler, where buffered streams are not."""
    os.write(2, f"{line}\n".encode())


SIGNALS = Signals()
