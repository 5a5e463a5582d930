"""Configurations, run directories and checkpoints from strangers: no code runs, nothing outside the run is written."""

import os
import pickle
import shutil
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
import yaml
from commands import REPOSITORY, TINY
from omegaconf import OmegaConf

from quintet.common.checkpoints import load_checkpoint
from quintet.common.errors import UserError
from quintet.harness import cli
from quintet.harness.config import compose, config, secrets, trust
from quintet.harness.config.build import build
from quintet.harness.messages import user_message
from quintet.harness.resume.checkpoint import AtomicCheckpointIO

HOSTILE = [
    "builtins.eval",
    "os.system",
    "subprocess.run",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "torch.hub.load",
    "torch.load",
    "torch.ops.load_library",
    "torch.utils.cpp_extension.load",
    "torch.utils.collect_env.run",
    "torch.serialization.add_safe_globals",
    "torch.package.PackageImporter",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.callbacks.LambdaCallback",
    "lightning.pytorch.LightningModule.load_from_checkpoint",
    "lightning.pytorch.loggers.MLFlowLogger",
    "lightning.fabric.utilities.cloud_io._load",
    "quintet.harness.slurm.submit.subprocess.run",
    "quintet.harness.slurm.submit.BeforeSubmission",
    "quintet.harness.config.build.build",
    "quintet.harness.results.write_result",
    "quintet.data.archives.unpack",
    "quintet.data.archives.shutil.rmtree",
    "quintet.data.archives.FileLock",
    "quintet.data.store.build_once",
    "quintet.backbones.pretrained.torch.load",
    "quintet.papers.wavenet.module.WaveNetModule.load_from_checkpoint",
    "quintet.harness.resume.checkpoint.load_checkpoint",
    "quintet.papers.deeplab.protocols.crf_search.np.load",
    "quintet..data.store.ListColumn",
    "quintet.nothing.Here",
    "${oc.env:HOME}",
    ["os.system"],
    None,
]


def composed(*overrides):
    cfg = compose.compose_checked("train", ["name=test", "run_dir=logs/test", "run_id=x", *overrides])
    OmegaConf.set_struct(cfg, False)
    return cfg


@pytest.fixture(scope="module")
def whole():
    return composed()


@pytest.mark.parametrize("target", HOSTILE, ids=str)
def test_hostile_targets_are_refused_wherever_they_stand(target, whole):
    node = {"_target_": target}
    deep = [1, [{"deep": node}]]
    for place, value in {
        "callbacks.x": node,
        "model.network": node,
        "trainer.profiler": node,
        "data.source": deep,
    }.items():
        cfg = deepcopy(whole)
        OmegaConf.update(cfg, place, value, merge=False)
        with pytest.raises(UserError, match=r"not allowed|names nothing"):
            config.check(cfg, config.Origin())
    with pytest.raises(UserError):
        build({"_target_": target})


def test_what_the_house_builds_is_allowed():
    for path in sorted(config.CONF.rglob("*.yaml")):
        for where, node in config.targets(yaml.safe_load(path.read_text()) or {}):
            if not where.startswith("hydra"):
                assert trust.is_allowed(node["_target_"]), (path, node["_target_"])


@pytest.mark.parametrize("extra", [{"_partial_": True}, {"_args_": [1]}, {"_recursive_": False}, {"_convert_": "none"}])
def test_hydras_own_keys_are_refused(extra):
    cfg = composed()
    cfg.callbacks.x = {"_target_": "quintet.harness.callbacks.throughput.Throughput", **extra}
    with pytest.raises(UserError, match="not allowed"):
        config.check(cfg, config.Origin())


def test_wandb_does_not_hand_its_key_to_another_server():
    with pytest.raises(UserError, match=r"logger.wandb.settings"):
        config.check(composed("logger=wandb", "+logger.wandb.settings={base_url: 'http://x.invalid'}"), config.Origin())
    config.check(composed("logger=wandb", "+logger.wandb.notes=hello"), config.Origin())


LOGS = "hydra: {job_logging: {version: 1, "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hydra: {callbacks: {x: {_target_: os.system, command: 'true'}}}", "launchers and sweepers only"),
        ("hydra: {launcher: {_target_: subprocess.run}}", "launchers and sweepers only"),
        ("hydra: {sweeper: {_target_: hydra_plugins.x.submitit_launcher.os.system}}", "launchers and sweepers only"),
        ("hydra: {job: {env_set: {LD_PRELOAD: /tmp/x.so}}}", "set the variable in your shell"),
        ("hydra: {launcher: {setup: ['true']}}", "would run in a shell"),
        ('hydra: {launcher: {partition: "x\\ntrue"}}', "line break"),
        (LOGS + "formatters: {x: {'()': os.system, command: 'true'}}}}", "is not allowed"),
        (LOGS + "handlers: {x: {class: logging.handlers.HTTPHandler}}}}", "is not allowed"),
        (LOGS + "handlers: {x: {class: logging.StreamHandler, stream: 'ext://os.system'}}}}", "is not allowed"),
        ("name: ../../outside", "use letters, digits"),
        ("name: ${oc.env:WANDB_API_KEY}", "may not read a secret"),
        ("run_id: ../up", "use letters, digits"),
    ],
)
def test_an_experiment_file_reaches_no_code_through_hydra(text, says, tmp_path):
    """Hydra's own doors open before train.py sees the configuration."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "evil.yaml").write_text(f"# @package _global_\nname: test\n{text}\n".replace("name: test\nname", "name"))
    launcher = ["launcher=slurm"] if "launcher: {" in text else []
    with pytest.raises(Exception, match=r".") as caught:
        overrides = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=evil", "run_dir=x", *launcher]
        config.check(compose.compose_config("train", overrides), config.Origin())
        compose.compose_config("train", overrides).name  # noqa: B018  resolved late
    message = user_message(caught.value)
    assert message and says in message and "\n" not in message, caught.value


def test_hydras_doors_are_guarded_in_a_real_process(tmp_path):
    mark = tmp_path / "mark"
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    evil = f"# @package _global_\nhydra: {{callbacks: {{x: {{_target_: os.system, command: 'touch {mark}'}}}}}}\n"
    (folder / "evil.yaml").write_text(evil)
    command = [sys.executable, "train.py", f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "experiment=evil"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and not mark.exists()
    assert done.stderr.startswith("error: ") and "os.system" in done.stderr and done.stderr.count("\n") == 1, (
        done.stderr
    )


def test_what_the_user_types_is_the_users(tmp_path):
    compose.compose_config("train", ["launcher=slurm", "hydra.launcher.setup=[module load cuda]", "run_id=x"])
    compose.compose_config("train", ["+hydra.job.env_set.NAME=value", "run_id=x"])


# --- a stranger's run directory ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(house):
    return house.train(*TINY, "trainer.max_steps=2", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
                       run_id="stranger")  # fmt: skip


@pytest.fixture
def copy(run, tmp_path):
    """A copy elsewhere, as someone gets it who downloads it."""
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder, change):
    path = folder / "config.yaml"
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def test_a_copied_run_resumes_where_it_is_now(house, run, copy):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = house.run("train.py", f"resume={copy}", "trainer.max_steps=4", "trainer.enable_progress_bar=false")
    assert done.returncode == 0, done.stderr[-2000:]
    assert load_checkpoint(copy / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert "dirpath has changed" not in done.stdout + done.stderr


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 8))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("!!python/object/apply:os.system ['true']", "no plain YAML"),
        ("a: !!python/name:os.system", "no plain YAML"),
        ("- 1\n- 2", "no mapping"),
        ("name: ${oc.env:HOME}", "not resolved"),
        ("name: '${quintet_root:}'", "not resolved"),
        (BOMB, "more than"),
        ("a: &a\n  b: *a", "levels deep"),
        ("a: !!binary aGVsbG8=", "no plain value"),
        ("\t: [", "no plain YAML"),
        ("name: x", "has no '"),
    ],
)  # fmt: skip
def test_a_hostile_config_yaml_is_one_line(text, says, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        config.check(compose.saved_config(tmp_path), config.Origin())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["callbacks"]["last"].update(dirpath="/tmp/elsewhere"),
        lambda c: c["callbacks"]["best"].update(filename="../../../../up"),
        lambda c: c["logger"]["csv"].update(save_dir="s3://bucket"),
        lambda c: c["trainer"].update(
            profiler={"_target_": "lightning.pytorch.profilers.SimpleProfiler", "dirpath": "/tmp", "filename": "x"}
        ),
    ],
)
def test_a_run_that_writes_elsewhere_is_refused(copy, change):
    edit(copy, change)
    with pytest.raises(UserError, match="outside of the run directory"):
        cli.resume_job(copy, [])


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.csv", "console.log", "media", "checkpoints/last.ckpt", "eval"]
)
def test_links_out_of_the_run_directory_are_refused(copy, tmp_path, name):
    target, link = tmp_path / "precious", copy / name
    target.mkdir() if name in ("media", "eval") else target.write_text("name: precious")
    if link.exists():
        shutil.rmtree(link) if link.is_dir() else link.unlink()
    link.symlink_to(target)
    with pytest.raises(UserError, match="link out of the run directory"):
        compose.config_of(str(copy), None)
    if name == "eval":
        (copy / "x.ckpt").write_bytes((copy / "checkpoints" / "last.ckpt").read_bytes())
        with pytest.raises(UserError, match="link out of the run directory"):
            compose.config_of(None, str(copy / "x.ckpt"))
    link.unlink()
    link.symlink_to("environment.json")  # as W&B does it: inside
    trust.refuse_links(copy)


class Payload:
    def __reduce__(self):
        return os.system, ("echo broken in > broken_in",)


def test_a_pickle_in_a_checkpoint_is_not_run(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = copy / "checkpoints" / "best.ckpt"
    stored = torch.load(path, weights_only=True)
    torch.save(stored | {"extra": Payload()}, path)
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Payload()))
    for file in (path, tmp_path / "raw.ckpt"):
        with pytest.raises(UserError, match="no readable checkpoint"):
            load_checkpoint(file)
    with pytest.raises(UserError, match="no readable checkpoint"):
        compose.config_of(None, str(path))
    assert not (tmp_path / "broken_in").exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hyper_parameters", {"_instantiator": "logs.evil.f"}, "wants to be built by"),
        ("hparams", {"_instantiator": "lightning.pytorch.cli.instantiate_module"}, "wants to be built by"),
        ("quintet_config", {"model": {"_target_": "${oc.env:HOME}"}}, "not resolved"),
        ("quintet_config", {"model": torch.zeros(1)}, "no plain value"),
        ("quintet_config", [1], "no mapping"),
        ("callbacks", {"x": {"best_model_path": "local:///home/me", "dirpath": "/r"}}, "may delete"),
        (
            "callbacks",
            {"x": {"best_model_path": "", "kth_best_model_path": "/r/../../home", "dirpath": "/r"}},
            "may del",
        ),
        (
            "callbacks",
            {"x": {"best_model_path": "", "best_k_models": {"/r/../up": 1.0}, "dirpath": "/r"}},
            "may delete",
        ),
    ],
)
def test_what_a_checkpoint_may_say(copy, tmp_path, key, value, says):
    stored = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(stored | {key: value}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=says):
        compose.config_of(None, str(tmp_path / "evil.ckpt"))


def test_the_trainer_reads_through_the_same_door(copy, tmp_path):
    stored = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(stored | {"hyper_parameters": {"_instantiator": "a.b"}}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="wants to be built by"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt")


def test_publish_stays_in_its_folder():
    for name in ("../x", "/tmp/x", "a/b", ".hidden", "a\nb"):
        request = compose.compose_checked("eval", ["run=x"])
        request.publish = name
        with pytest.raises(UserError, match="publish="):
            compose.check_request(request, config.Origin())


# --- secrets ----------------------------------------------------------------------------------------------------------

KEY = "0123456789abcdef0123456789abcdef01234567"


def test_a_key_on_the_command_line_or_in_a_configuration_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        secrets.refuse_known_secrets(OmegaConf.create({"logger": {"wandb": {"notes": f"my key is {KEY}"}}}))
    assert "WANDB_API_KEY" in str(caught.value) and KEY not in str(caught.value)
    with pytest.raises(Exception) as caught:
        composed("logger=wandb", "+logger.wandb.notes=${oc.env:WANDB_API_KEY}").logger.wandb.notes  # noqa: B018
    assert "secret" in user_message(caught.value) and KEY not in user_message(caught.value)
    secrets.refuse_known_secrets(composed())
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    with pytest.raises(UserError, match=r"~/.netrc for api.wandb.ai"):
        secrets.refuse_secrets(["train.py", f"name={KEY}"], "the command line")


def test_a_process_with_a_key_in_its_arguments_writes_nothing(house):
    done = house.run("train.py", *TINY, f"+logger.wandb.notes={KEY}", "name=leak", env={"WANDB_API_KEY": KEY})
    assert done.returncode == 1 and "WANDB_API_KEY" in done.stderr and KEY not in done.stderr + done.stdout
    assert not (house.folder / "logs" / "leak").exists()


def test_other_variables_may_be_read(monkeypatch):
    monkeypatch.setenv("QUINTET_TEST_FOLDER", "/somewhere")
    assert composed("data.root='${oc.env:QUINTET_TEST_FOLDER}'").data.root == "/somewhere"
    assert composed("data.root='${oc.env:QUINTET_TEST_NOTHING,null}'").data.root is None
    with pytest.raises(Exception, match="QUINTET_TEST_NOTHING"):
        composed("data.root='${oc.env:QUINTET_TEST_NOTHING}'").data.root  # noqa: B018
