"""Influence of all training points on some queries: ours beside pyDVL, captum, dattri and kronfluence; and retraining.

    python -m benchmarks.influence.speed --root <MNIST> --peers <python of requirements-influence.txt> --case linear_100
    python -m benchmarks.influence.speed --root <MNIST> --case leave_one_out [--publish influence_speed_leave_one_out]

Every candidate runs in a process of its own, one after the other, on the same problem file, and saves its scores. They
are compared with the exact solution (a dense Hessian in float64) and with leave-one-out retraining. Seconds of CPU
begin with data and packages loaded. What finished with the same code is not run again.
"""

import argparse
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import REPOSITORY, RESULTS, one_line_errors, print_table, row
from benchmarks.influence import build as influence_build
from benchmarks.influence.accuracy import Accuracy, accuracy, memory, table
from benchmarks.influence.cases import CASES, Candidate, Case
from quintet.common.errors import UserError
from quintet.harness.results import commit, write_result

HERE = Path(__file__).parent
REMOVALS = 500
MEMORY = 12 << 30  # bytes that a process may have
PEERS = "QUINTET_INFLUENCE_PEERS"
LINEAR = "10-class logistic regression on MNIST (p = 7,840, n = 55,000)"
NETWORK = "tanh network of 2,616 parameters on MNIST (n = 5,500), EK-FAC"
TITLES = {
    "linear_1": f"Influence on 1 test point: {LINEAR}",
    "linear_100": f"Influence on 100 test points: {LINEAR}",
    "cnn_1": f"Influence on 1 test point: {NETWORK}",
    "cnn_100": f"Influence on 100 test points: {NETWORK}",
    "leave_one_out": f"Leave-one-out retraining: {LINEAR}",
}
PROTOCOL = (
    "each candidate in a process of its own, one after the other, on the same problem file, one run each; seconds of"
    " CPU from when data and packages are loaded until all scores are in memory, on a machine that others use, too"
)


@dataclass
class Bench:
    """Where things lie and how long a candidate may take."""

    root: Path
    cache: Path
    peers: str | None
    limit: int
    refits: float = 100.0  # seconds for each of scikit-learn's solvers

    def run(self, case_name: str, only: str = "") -> list[dict]:
        """Rows of one case."""
        if case_name == "leave_one_out":
            return list(self.retraining())
        case = CASES[case_name]
        problem, exact_qn = influence_build.build(case.problem, self.root, self.cache)
        changes = self.changes(problem) if case.problem == "linear" else None
        done: list[tuple[Candidate, dict, Accuracy | None]] = []
        for candidate in (c for c in case.candidates if only in c.name):
            report = self.report(case_name, case, candidate, problem)
            found = accuracy(np.load(report["scores"]), exact_qn, changes) if "scores" in report else None
            done.append((candidate, report, found))
            print(candidate.name, report.get("failed") or report["seconds"], found or "", flush=True)
        return table(done)

    def report(self, case_name: str, case: Case, candidate: Candidate, problem: Path) -> dict:
        """What the candidate's process said; `scores` names its file, `failed` says why there is none."""
        if not candidate.ours and self.peers is None:
            return {"failed": f"skipped: no --peers and no {PEERS}"}
        words = [*candidate.settings]
        script = "benchmarks.influence.ours" if candidate.ours else "benchmarks.influence.peers"
        method = candidate.method if candidate.ours else f"{candidate.package}_{candidate.method}"
        out = (self.folder() if candidate.ours else self.peers_folder()) / f"{case_name}_{digest(candidate.name)}.npy"
        options = ["--dtype", candidate.dtype, "--queries", str(candidate.queries or case.queries)]
        command = [sys.executable if candidate.ours else self.peers, "-m", script, problem, out, method, *options]
        return self.finished(out, [*map(str, command), *(["--set", *words] if words else [])], self.limit)

    def finished(self, out: Path, command: list[str], limit: int | None = None) -> dict:
        """The report of a command that writes `out`, from disk if this commit has run it already.

        limit: seconds of CPU after which the kernel ends it, however busy the machine is.
        """
        kept = out.with_suffix(".json")
        if kept.is_file() and not commit()["dirty"]:
            print(f"{kept.stem}: measured before", flush=True)
            return json.loads(kept.read_text())
        began = time.perf_counter()

        def bound() -> None:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))

        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, cwd=REPOSITORY)
        if done.returncode == -signal.SIGXCPU:
            report = {"failed": f"not finished within {limit} s of CPU"}
        else:
            report = said(done) | ({"scores": str(out)} if done.returncode == 0 else {})
        report["wall"] = time.perf_counter() - began
        kept.write_text(json.dumps(report))
        return report

    def folder(self) -> Path:
        """Reports and scores of ours at this commit."""
        return made(self.cache / "reports" / commit()["commit"])

    def peers_folder(self) -> Path:
        """Those of the peers, which depend on how we call them and not on our own code."""
        texts = [(HERE / name).read_text() for name in ("peers.py", "problem.py", "loo.py")]
        return made(self.cache / "reports" / f"peers_{hashlib.sha256(''.join(texts).encode()).hexdigest()[:12]}")

    def removals(self) -> Path:
        """Positions of training examples drawn at random."""
        path = self.cache / "removals.npy"
        if not path.is_file():
            count = len(np.load(self.cache / "linear.npz")["y_train"])
            np.save(path, np.random.default_rng(0).choice(count, min(REMOVALS, count // 2), replace=False))
        return path

    def changes(self, problem: Path) -> tuple[np.ndarray, np.ndarray]:
        """(removals (k,), changes (q, k)) of the queries' losses by retraining, made once."""
        path = self.folder() / "leave_one_out_ours.npy"
        report = self.refit(problem, "ours", path, len(np.load(self.removals())))
        if "failed" in report:
            raise UserError(f"leave-one-out retraining failed: {report['failed']}")
        return np.load(self.removals()), np.load(path)

    def refit(self, problem: Path, method: str, out: Path, count: int) -> dict:
        """The report of retraining without the first `count` of the removals."""
        command = [
            sys.executable,
            "-m",
            "benchmarks.influence.loo",
            problem,
            out,
            self.removals(),
            method,
            "--count",
            count,
        ]
        return self.finished(out, [*map(str, command)])

    def retraining(self) -> Iterator[dict]:
        """Ours for all removals, scikit-learn's refits for as many as the time allows."""
        problem, _ = influence_build.build("linear", self.root, self.cache)
        total = len(np.load(self.removals()))
        ours_out = self.folder() / "leave_one_out_ours.npy"
        ours = self.refit(problem, "ours", ours_out, total)
        mine_qk, each = np.load(ours_out), ours["cpu_seconds"] / total
        yield row(f"quintet, {total} removals", ours["cpu_seconds"], "s", retrained(ours, total))
        for solver in ("lbfgs", "newton-cg"):
            probe = self.refit(problem, solver, self.peers_folder() / f"leave_one_out_{solver}_2.npy", 2)
            count = int(np.clip(self.refits * 2 / probe["cpu_seconds"], 2, total))
            out = self.peers_folder() / f"leave_one_out_{solver}.npy"
            theirs = self.refit(problem, solver, out, count)
            theirs_qk, one = np.load(out), theirs["cpu_seconds"] / count
            gap = np.abs(theirs_qk - mine_qk[:, :count]).max() / np.abs(mine_qk[:, :count]).max()
            label = f"scikit-learn {solver}"
            yield row(f"{label}, {count} refits", theirs["cpu_seconds"], "s", retrained(theirs, count))
            yield row(f"{label}, {total} refits, extrapolated", one * total, "s", f"{one:.3g} s a refit")
            yield row(f"{label}, largest difference from ours", float(gap), "", "of the largest change of a loss")
            yield row(f"{label}, time over ours", one / each, "times", f"goal 10, over all {total} removals")


def retrained(report: dict, count: int) -> str:
    each, norm = report["cpu_seconds"] / count, report["gradient_norm"]
    return f"{each:.3g} s each, gradient norm {norm:.1e} (first three), {memory(report)}"


def said(done: subprocess.CompletedProcess) -> dict:
    """The JSON in the last line of a process, or its last line of error."""
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    last = lines[-1] if lines else f"exit code {done.returncode}"
    return json.loads(last) if done.returncode == 0 else {"failed": f"failed: {last[:200]}"}


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(name: str) -> str:
    """A file name."""
    return "".join(c if c.isalnum() else "_" for c in name)


def publish(name: str, case: str, bench: Bench, rows: list[dict]) -> None:
    files = [path for where in (bench.folder(), bench.peers_folder()) for path in sorted(where.glob(f"{case}_*.json"))]
    reports = {path.stem: json.loads(path.read_text()) for path in files}
    write_result(
        RESULTS / f"{name}.json",
        title=TITLES[case],
        rows=rows,
        protocol=f"{PROTOCOL}; {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}",
        data=f"MNIST without the first 5,000 training images{', 5,500 drawn' if case.startswith('cnn') else ''}",
        subset=False,
        seconds=sum(report["wall"] for report in reports.values()),
        extra={"threads": torch.get_num_threads(), "cpu_limit": bench.limit, "reports": reports},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of MNIST's four .gz files")
    parser.add_argument("--case", required=True, choices=[*CASES, "leave_one_out"])
    parser.add_argument("--peers", default=os.environ.get(PEERS), help=f"their python (default: ${PEERS})")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "data/cache/influence", help="problems, answers")
    parser.add_argument("--limit", type=int, default=150, help="CPU seconds a process may take, loading too")
    parser.add_argument("--only", default="", help="candidates whose name has this")
    parser.add_argument("--publish", default=None, metavar="NAME", help="write docs/results/NAME.json")
    args = parser.parse_args()
    bench = Bench(args.root, args.cache.resolve(), args.peers, args.limit)
    with one_line_errors():
        rows = bench.run(args.case, args.only)
    print_table(TITLES[args.case], rows)
    if args.publish:
        publish(args.publish, args.case, bench, rows)


if __name__ == "__main__":
    main()
