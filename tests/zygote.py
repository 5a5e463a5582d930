"""A warm interpreter: it has imported what train.py and eval.py import, and forks for each command.

Importing torch and Lightning takes longer than most of the tests' commands. One JSON request a line on stdin; answered
by a line with the pid of the child, then one with its exit code. It computes nothing itself, so that no threads exist
that a fork would lose.
"""

import atexit
import importlib
import json
import os
import runpy
import sys
import threading
import traceback

PRELOAD = ("quintet.harness.cli", "quintet.harness.run.fit", "quintet.harness.run.evaluate", "torchmetrics", "datasets")


def run(request: dict) -> int:
    """The script in this process, as `python <script> <arguments>`; its exit code."""
    for number, name in enumerate(("/dev/null", request["stdout"], request["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    os.chdir(request["folder"])
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0] = request["folder"]
    code = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return code


def main() -> None:
    for name in PRELOAD:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run(json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
