"""benchmarks/harness/gpu.py on the CPU: every section runs, and a failing one becomes a row."""

import json
import time

import pytest
import torch

from benchmarks import common
from benchmarks.common import SECTION_S
from benchmarks.harness import gpu, gpu_deeplab
from quintet.harness import results

pytestmark = pytest.mark.slow

Skip, row, run_section = common.Skip, common.row, common.run_section


@pytest.fixture(scope="module")
def setting():
    return gpu.Setting(torch.device("cpu"), quick=True)


def rows_of(setting, sections):
    rows = {entry["metric"]: entry for entry in gpu.run_all(setting, 4, sections)}
    failed = {name: entry["value"] for name, entry in rows.items() if str(entry["value"]).startswith("failed")}
    assert not failed
    return rows, {name for name, entry in rows.items() if str(entry["value"]).startswith("skipped")}


def test_every_section_works_or_says_why_it_cannot(setting):
    rows, skipped = rows_of(setting, gpu.SECTIONS)
    assert skipped == {"generation equality", "generation cuda_graph", "Lightning 16-mixed"}
    assert rows["checkpoint resume"]["value"] == 0.0
    assert rows["generation eager, batch 2"]["value"] > 0 and rows["training fp32"]["value"] > 0


def test_every_section_of_deeplab_works_too():
    rows, skipped = rows_of(gpu_deeplab.Setting(torch.device("cpu"), quick=True), gpu_deeplab.SECTIONS)
    assert skipped == {"Lightning 16-mixed"} and rows["CRF: labels equal to pydensecrf's"]["value"] >= 99.8
    assert rows["Lightning bf16-mixed"]["value"] == "ok" and len(rows) == 2 + 4 + 6 + 2 + 12


def test_a_wrong_crf_and_a_wrong_head_are_noticed(monkeypatch):
    """The checks must be able to fail: marginals of another image, branches that are lost on one device."""
    setting = gpu_deeplab.Setting(torch.device("cpu"), quick=True)
    from benchmarks.deeplab import crf

    infer = crf.infer
    monkeypatch.setattr(crf, "infer", lambda probabilities, image, config: infer(probabilities[::-1], image, config))
    *_, entry = run_section("CRF", lambda: gpu_deeplab.dense_crf(setting), SECTION_S)
    assert entry["value"].startswith("failed: only")
    forward = gpu_deeplab.DeepLab.forward
    monkeypatch.setattr(
        gpu_deeplab.DeepLab, "forward", lambda self, x: forward(self, x) * (1 if x.dtype == torch.float64 else 1.01)
    )
    [entry] = run_section("forward", lambda: gpu_deeplab.forward_against_cpu(setting), SECTION_S)
    assert entry["value"].startswith("failed: scores of resnet18 differ")


def test_a_wrong_network_is_noticed(setting, monkeypatch):
    """The checks must be able to fail: logits shifted on the device, weights lost in the checkpoint."""
    forward = gpu.WaveNet.forward

    def shifted(self, classes_bt, *args, **kwargs):
        logits = forward(self, classes_bt, *args, **kwargs)
        return logits + 0.01 if logits.dtype == torch.float32 else logits

    monkeypatch.setattr(gpu.WaveNet, "forward", shifted)
    [entry] = run_section("forward", lambda: gpu.forward_against_cpu(setting), SECTION_S)
    assert entry["value"].startswith("failed: logits differ")
    [entry] = run_section("equality", lambda: gpu.generation_equality(setting), SECTION_S)
    assert entry["value"].startswith("failed: eager queues")


def test_a_resume_that_forgets_the_optimiser_is_noticed(setting, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, state: None)
    [entry] = run_section("resume", lambda: gpu.checkpoint_resume(setting), SECTION_S)
    assert entry["value"].startswith("failed: resumed weights differ")


def test_rows_before_a_failure_stay():
    def section():
        yield row("first", 1.0)
        raise RuntimeError("two\nlines")

    assert [entry["value"] for entry in run_section("second", section, 5)] == [1.0, "failed: two lines"]


def test_a_slow_section_is_cut_and_a_late_one_is_not_begun():
    def slow():
        while True:
            time.sleep(0.01)
            yield row("tick", 1)

    assert run_section("slow", slow, 0.05)[-1]["value"] == "failed: not finished within 0.05 s"
    assert run_section("late", slow, -1.0)[0]["value"] == "skipped: no time left"


def test_missing_packages_and_missing_hardware_are_skips():
    def needs_package():
        import a_package_that_does_not_exist  # noqa: F401

        yield row("never", 1)

    def needs_gpu():
        raise Skip("no CUDA")
        yield

    assert run_section("a", needs_package, 5)[0]["value"].startswith("skipped: No module named")
    assert run_section("b", needs_gpu, 5)[0]["value"] == "skipped: no CUDA"


def test_the_command_writes_a_result_file(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "SECTIONS", {"forward": (gpu.forward_against_cpu, 60)})
    monkeypatch.setattr(gpu_deeplab, "SECTIONS", {"ASPP": (gpu_deeplab.aspp_ways, 60)})
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--quick", "--publish", "gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert not ended.value.code
    assert len(json.loads((tmp_path / "wavenet_gpu.json").read_text())["rows"]) == 2
    assert len(json.loads((tmp_path / "deeplab_gpu.json").read_text())["rows"]) == 6
    page = results.render(tmp_path, tmp_path / "page.md")
    assert "WaveNet on one CPU" in page and "DeepLab on one CPU" in page


def test_no_cuda_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu.main()
