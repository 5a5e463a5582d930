"""metrics.csv survives kills: whole at every moment, and one row a step after any number of resumptions."""

import csv
import signal

from children import ended, in_child, killed_at

from quintet.harness.resume.metrics_csv import MetricsCsv, join_metrics, set_aside_metrics


def rows(path):
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def log(folder, *lines):
    logger = MetricsCsv(str(folder))
    for step, metrics in lines:
        logger.log_metrics(metrics, step)
        logger.save()


def test_a_kill_while_a_new_column_is_written_loses_no_row(tmp_path):
    def dies():
        log(tmp_path, (0, {"a": 1}), (1, {"a": 2}))
        writer = MetricsCsv(str(tmp_path)).experiment  # clears the folder, as a new run does
        log(tmp_path, (0, {"a": 1}), (1, {"a": 2}))
        csv.DictWriter.writerows = killed_at(1, csv.DictWriter.writerows)
        writer._rewrite_with_new_header(["a", "b", "step"])

    assert ended(in_child(dies)) == -signal.SIGKILL
    assert rows(tmp_path / "metrics.csv") == [{"a": "1", "step": "0"}, {"a": "2", "step": "1"}]


def test_new_columns_come_in(tmp_path):
    log(tmp_path, (0, {"a": 1}), (0, {"b": 2}), (1, {"a": 3}))
    assert rows(tmp_path / "metrics.csv") == [{"a": "1", "step": "0"}, {"b": "2", "step": "0"}, {"a": "3", "step": "1"}]


def test_parts_are_joined_in_order_and_what_was_done_again_counts_once(tmp_path):
    """Killed after step 2, resumed from step 2 before its validation; killed once more in the middle of a row."""
    log(tmp_path, (0, {"loss": 1}), (1, {"loss": 2}), (1, {"val": 9}), (2, {"loss": 3}))
    set_aside_metrics(tmp_path)
    log(tmp_path, (1, {"val": 8}), (2, {"loss": 4}))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("5.0")
    set_aside_metrics(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("metrics*")) == ["metrics.part0.csv", "metrics.part1.csv"]
    join_metrics(tmp_path)  # nothing was left to do
    found = [(row["step"], row.get("loss"), row.get("val")) for row in rows(tmp_path / "metrics.csv")]
    assert found == [("0", "1", None), ("1", "2", None), ("1", None, "8"), ("2", "4", None)]
    assert not list(tmp_path.glob("metrics.part*"))


def test_a_part_never_takes_anothers_name(tmp_path):
    """A kill between joining and clearing up leaves some of the parts."""
    (tmp_path / "metrics.part1.csv").write_text("loss,step\n1,0\n")
    log(tmp_path, (0, {"loss": 1}), (1, {"loss": 2}))
    set_aside_metrics(tmp_path)
    join_metrics(tmp_path)
    assert [row["step"] for row in rows(tmp_path / "metrics.csv")] == ["0", "1"]
