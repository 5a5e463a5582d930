"""Result files and the generated page: nothing typed by hand, no private path, readable mistakes."""

import json

import numpy as np
import pytest

from quintet.common.errors import UserError
from quintet.harness import results

ROWS = [
    {"metric": "test/bits", "value": 4.25, "unit": "bits/sample", "paper": None, "note": "a | b"},
    {"metric": "speed", "value": 16000.4, "unit": "samples/s", "paper": 172.0},
]


def write(path, **changes):
    fields = {
        "title": "A run",
        "rows": ROWS,
        "protocol": "test split",
        "data": "VCTK, 2 speakers",
        "subset": True,
        "seconds": 90,
    }
    return results.write_result(path, **{**fields, **changes})


def test_the_committed_page_is_what_the_committed_files_give(tmp_path):
    assert results.PAGE.exists(), "run `make results`"
    assert results.render(results.RESULTS_DIR, tmp_path / "page.md") == results.PAGE.read_text(encoding="utf-8")


def test_committed_files_name_no_path_outside_the_repository():
    for path in results.RESULTS_DIR.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        for string in strings(json.loads(text)):
            assert results.clean_paths(string) == string, f"{path.name}: {string}"


def strings(value):
    if isinstance(value, dict):
        value = list(value.values())
    return [found for item in value for found in strings(item)] if isinstance(value, list) else [str(value)]


def test_a_result_carries_where_when_and_how_it_was_measured(tmp_path):
    write(tmp_path / "wavenet_x.json", command=["python", "eval.py"])
    record = json.loads((tmp_path / "wavenet_x.json").read_text())
    assert record["command"] == "python eval.py" and record["subset"] is True
    assert record["hardware"]["cpu"] and record["hardware"]["cores"] >= 1
    assert {"torch", "python"} <= set(record["versions"]) and isinstance(record["dirty"], bool)
    assert [path.name for path in tmp_path.iterdir()] == ["wavenet_x.json"]


def test_the_page_shows_value_paper_note_and_marks_subsets(tmp_path):
    write(tmp_path / "wavenet_x.json", command="python eval.py run=logs/x")
    write(tmp_path / "other_y.json", title="Full set", subset=False)
    page = results.render(tmp_path, tmp_path / "page.md")
    assert "| test/bits | 4.25 | – | bits/sample | a \\| b |" in page
    assert "| speed | 16,000 | 172 | samples/s | – |" in page
    assert "**subset** of the data: VCTK, 2 speakers" in page and "- data: VCTK, 2 speakers" in page
    assert page.index("## Other") < page.index("### Full set") < page.index("## WaveNet") < page.index("### A run")
    assert page == (tmp_path / "page.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["python", "x.py", "data.root=/home/me/set"], "python x.py data.root=<path>"),
        (["python", "x.py", "data.root=/home/me/my set"], "python x.py data.root=<path>"),
        (["python", "x.py", "data.root=../shared/set"], "python x.py data.root=<path>"),
        (["python", "x.py", "data.root=~/set"], "python x.py data.root=<path>"),
        (["python", f"{results.REPOSITORY}/x.py", "run=logs/a/b"], "python x.py run=logs/a/b"),
        (["python", "x.py", "trainer.max_time=00:00:20:00"], "python x.py trainer.max_time=00:00:20:00"),
    ],
)
def test_commands_keep_no_private_path(words, expected):
    assert results.clean_command(words) == expected


@pytest.mark.parametrize(
    "text", ["train/loss in samples/s", "bits / sample", "a 1/2 b", "https://arxiv.org/abs/1609.03499"]
)
def test_text_that_is_no_path_stays(text):
    assert results.clean_paths(text) == text


def test_notes_lose_private_paths_too(tmp_path):
    record = write(tmp_path / "a.json", rows=[{"metric": "m", "value": "failed: no /root/x/y.wav", "unit": ""}])
    assert record["rows"][0]["value"] == "failed: no <path>"


def test_a_plot_beside_the_json_is_shown_below_its_table(tmp_path):
    write(tmp_path / "wavenet_x.json")
    write(tmp_path / "wavenet_y.json")
    (tmp_path / "wavenet_y.png").write_bytes(b"")
    page = results.render(tmp_path, tmp_path / "page.md")
    assert page.count("![") == 1 and page.index("(wavenet_y)") < page.index("![A run](results/wavenet_y.png)")


def test_numpy_and_non_finite_values_become_plain_json(tmp_path):
    rows = [{"metric": "a", "value": np.float32(0.5), "unit": ""}, {"metric": "b", "value": float("nan"), "unit": ""}]
    write(tmp_path / "a.json", rows=rows)
    values = [row["value"] for row in json.loads((tmp_path / "a.json").read_text())["rows"]]
    assert values == [0.5, "nan"]


@pytest.mark.parametrize("content", ["{broken", "[]", '{"title": "x"}', '{"rows": 3}'])
def test_a_malformed_file_is_one_line_that_names_it(tmp_path, content):
    (tmp_path / "wavenet_bad.json").write_text(content)
    with pytest.raises(UserError) as caught:
        results.render(tmp_path, tmp_path / "page.md")
    assert "wavenet_bad.json" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize("row", [{"metric": "m", "unit": ""}, {"metric": "m", "value": 1, "unit": "", "papr": 2}])
def test_a_wrong_row_is_refused_before_anything_is_written(tmp_path, row):
    with pytest.raises(UserError, match=r"value|papr"):
        write(tmp_path / "a.json", rows=[row])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_gives_a_page_that_says_so(tmp_path):
    assert "No result has been published yet" in results.render(tmp_path, tmp_path / "page.md")


def test_the_papers_numbers_stand_in_one_table_before_the_sections(tmp_path):
    rows = [
        {"metric": f"test/{m}", "value": 0.5, "unit": "", "paper": paper} for m, paper in (("a", 0.75), ("b", None))
    ]
    write(tmp_path / "deeplab_x.json", rows=rows, subset=True)
    text = results.render(tmp_path, tmp_path / "page.md")
    glance, _, sections = text.partition("## DeepLab v2")
    assert "| DeepLab v2 | test/a | 0.75 | 0.5 | [deeplab_x](results/deeplab_x.json) (subset) |" in glance
    assert "test/b" not in glance and "test/b" in sections


def test_long_tables_are_folded_and_lose_no_row(tmp_path):
    count = results.SHOWN + 5
    rows = [{"metric": f"m{n:02}", "value": float(n), "unit": ""} for n in range(count)]
    write(tmp_path / "harness_x.json", rows=rows)
    write(tmp_path / "wavenet_x.json", rows=rows[:1])
    text = results.render(tmp_path, tmp_path / "page.md")
    assert all(text.count(f"| m{n:02} |") == 1 for n in range(1, count))
    assert text.count("<details>") == text.count("</details>") == 1 and "<summary>5 more rows</summary>" in text
    assert text.index("## WaveNet") < text.index("## The harness")
