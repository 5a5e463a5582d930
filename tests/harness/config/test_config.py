"""A misspelt key, wherever it stands, stops with one line: the key, where it stands, the nearest legal names."""

import tomllib

import pytest
from commands import REPOSITORY
from omegaconf import OmegaConf

from quintet.common.errors import UserError
from quintet.harness.config import compose, config
from quintet.harness.messages import EXTRAS, user_message


def composed(*overrides):
    """A training configuration without Hydra's run time values."""
    cfg = compose.compose_checked("train", ["name=test", "run_dir=logs/test", "run_id=x", *overrides])
    config.check(cfg, config.Origin(tuple(overrides)))
    return cfg


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("data.bach_size=8", "batch_size"),
        ("trainer.max_step=3", "max_steps"),
        ("model.network.kernel_sise=3", "kernel_size"),
        ("model.optimizer.lrr=1", "lr"),
        ("sed=7", "seed"),
        ("trainer.gradient_clip=1", "gradient_clip_val"),
        ("datta.batch_size=1", "data"),
    ],
)
def test_command_line(override, near):
    with pytest.raises(UserError) as caught:
        composed(override)
    message = str(caught.value)
    assert near in message and "command line" in message and "\n" not in message
    assert override.split("=")[0].split(".")[0] in message


@pytest.mark.parametrize("override", ["+data.bach_size=8", "++model.network.kernel_sise=3", "+sed=7"])
def test_forced_addition_is_still_checked(override):
    with pytest.raises(UserError, match="unknown key"):
        composed(override)


def test_a_legal_key_that_the_yaml_leaves_out_is_added():
    assert composed("trainer.max_time=00:00:01:00", "trainer.detect_anomaly=true").trainer.detect_anomaly is True


def test_a_legal_key_is_added_beside_a_sweep():
    sweep = ["model=logistic_regression,all_cnn", "data=digits_sample", "seed=range(1,3)", "model.optimizer.lr=1,2"]
    assert compose.add_if_legal("model.optimizer.lr", sweep) == [*sweep[:-1], "++model.optimizer.lr=1,2"]


@pytest.mark.parametrize("choice", ["model=wavnet", "data=vctc", "experiment=wavenet_smple"])
def test_unknown_option_names_the_nearest(choice):
    with pytest.raises(Exception) as caught:
        composed(choice)
    message = user_message(caught.value)
    assert "did you mean" in message and "\n" not in message


def test_experiment_file(tmp_path, monkeypatch):
    folder = config.CONF / "experiment"
    bad = folder / "zz_test_bad_key.yaml"
    bad.write_text("# @package _global_\ndata:\n  bach_size: 8\n")
    try:
        cfg = compose.compose_config("train", ["name=t", "run_dir=x", "run_id=x", "experiment=zz_test_bad_key"])
        origin = config.Origin((), (("experiment", "zz_test_bad_key"),))
        with pytest.raises(UserError) as caught:
            config.check(cfg, origin)
    finally:
        bad.unlink()
    assert "data.bach_size" in str(caught.value)
    assert "conf/experiment/zz_test_bad_key.yaml" in str(caught.value)
    assert "batch_size" in str(caught.value)


@pytest.mark.parametrize("override", ["data.batch_size=many", "seed=1.5", "trainer.num_nodes=null"])
def test_wrong_type(override):
    with pytest.raises(UserError, match="must be"):
        composed(override)


def test_a_strangers_target_is_refused():
    cfg = composed()
    OmegaConf.set_struct(cfg, False)
    cfg.callbacks.evil = {"_target_": "os.system", "command": "true"}
    with pytest.raises(UserError, match="not allowed"):
        config.check(cfg, config.Origin())
    from quintet.harness.config.build import build

    with pytest.raises(UserError, match="not allowed"):
        build({"_target_": "subprocess.run", "args": ["true"]})


def test_a_pair_that_does_not_fit_names_the_data_that_does():
    cfg = composed()
    cfg.data = {"_target_": "quintet.data.resumable.ResumableDataModule"}
    with pytest.raises(UserError) as caught:
        config.check(cfg, config.Origin())
    assert "AudioBatch" in str(caught.value) and "vctk" in str(caught.value)


def test_multirun_with_ddp_is_refused():
    cfg = composed("trainer=ddp_cpu")
    with pytest.raises(UserError, match="multirun"):
        config.check_multirun(cfg, "MULTIRUN", "basic")
    config.check_multirun(cfg, "RUN", "basic")
    config.check_multirun(cfg, "MULTIRUN", "submitit_slurm")
    config.check_multirun(composed("trainer=ddp_cpu", "trainer.strategy=ddp_fork"), "MULTIRUN", "basic")


def every(group):
    folder = config.CONF / group
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


@pytest.mark.slow
def test_every_data_config_fits_a_model_and_every_model_some_data():
    eats, gives = (
        {option: config._batch_type(config.CONF / group / f"{option}.yaml") for option in every(group)}
        for group in ("model", "data")
    )
    assert set(eats.values()) == set(gives.values())
    for data, given in gives.items():
        for model in (model for model, eaten in eats.items() if eaten == given):
            composed(f"model={model}", f"data={data}")


def test_a_pair_of_two_papers_is_refused():
    with pytest.raises(UserError, match=r"expects AudioBatch.*yields EpisodeBatch: choose data=.*vctk_sample"):
        composed("model=wavenet", "data=glyphs_sample")
    with pytest.raises(UserError, match=r"expects EpisodeBatch.*choose data=glyphs_sample \| omniglot$"):
        composed("model=rare_events", "data=vctk_sample")


EXPERIMENTS = pytest.param("experiment", marks=pytest.mark.slow)


@pytest.mark.parametrize("group", ["trainer", "callbacks", "logger", "debug", "launcher", EXPERIMENTS])
def test_every_option_composes_and_passes_the_check(group):
    assert every(group)
    for option in every(group):
        value = f"'{option}'" if option in ("true", "false") else option
        composed(f"{group}={value}")


def test_every_protocol_passes_the_check():
    for option in every("protocol"):
        request = compose.compose_checked("eval", [f"protocol={option}", "run=x"])
        compose.check_request(request, config.Origin())
        assert request.protocol._target_.startswith("quintet.")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("trainer.max_epochs=three", r"'trainer\.max_epochs=three' on the command line must be None \| int"),
        ("trainer.devices=-3", r"'trainer\.devices=-3' on the command line must be 1 or more"),
        ("trainer.precision=7", "must be one of"),
        ("trainer.num_nodes=0", "must be > 0"),
        ("model.optimizer.name=rmsprop", "must be one of adam, adamw, sgd"),
        ("model.optimizer.lr=-1", "must be > 0"),
        ("model.optimizer.schedule=cosine", "must be one of constant"),
        ("data.num_workers=-1", "must be >= 0"),
        ("seed=-1", "must be >= 0"),
        ("data.source.name=foo", "unknown key 'data.source.name'"),
        ("model.network.context_stack.pool=512", r"is null here, so .* set it whole, for example"),
        ("model.optimizer.schedule._target_=torch.optim.lr_scheduler.Nothing", "names nothing"),
    ],
)
def test_types_choices_and_limits(override, text):
    with pytest.raises(UserError, match=text) as caught:
        composed("data=vctk_sample", override)
    assert "\n" not in str(caught.value)


def test_a_null_part_with_a_described_type_is_set_by_key():
    with pytest.raises(UserError, match=r"model\.memory"):
        composed("model=show_and_tell", "data=captions_sample", "model.memory.slotz=64")
    assert composed("model=show_and_tell", "data=captions_sample", "model.memory.slots=64").model.memory.slots == 64


@pytest.mark.parametrize("key", ["model.network.context_stack.pool", "data.features.name"])
def test_a_null_part_that_needs_more_is_set_whole(key):
    part = key.rpartition(".")[0]
    with pytest.raises(UserError, match=rf"'{part}' is null here.*set it whole, for example '{part}="):
        composed("model=wavenet", "data=vctk_sample", f"{key}=512")


def test_a_gpu_is_missed_before_torch_is_imported(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "DEVICES", tmp_path)
    with pytest.raises(UserError, match="no visible GPU, use trainer=cpu"):
        config.check_accelerator(composed("trainer=gpu"))
    config.check_accelerator(composed("trainer=cpu"))
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config.check_accelerator(composed("trainer=gpu"))


def test_a_protocol_for_another_model_names_those_that_fit():
    request = compose.compose_checked("eval", ["protocol=segment", "run=x"])
    with pytest.raises(UserError, match=r"protocol Segment is not for WaveNetModule: choose .*generate"):
        compose.check_protocol(request, composed("data=vctk_sample"))
    compose.check_protocol(request, composed("model=deeplab", "data=shapes_sample"))


def test_a_misspelt_key_of_eval_names_evals_own_keys():
    with pytest.raises(UserError, match="did you mean protocol"):
        compose.apply_overrides(composed(), ["protocl=generate"], root="eval")


def test_an_optimizer_of_torch_by_target():
    schedule = "model.optimizer.schedule"
    node = composed(
        "model.optimizer._target_=torch.optim.RMSprop",
        "model.optimizer.alpha=0.9",
        f"{schedule}._target_=torch.optim.lr_scheduler.CosineAnnealingLR",
        f"{schedule}.T_max=100",
    ).model.optimizer
    assert (node._target_, node.alpha, node.schedule.T_max) == ("torch.optim.RMSprop", 0.9, 100)
    with pytest.raises(UserError, match=r"unknown key 'model\.optimizer\.betas' on the command line"):
        composed("model.optimizer._target_=torch.optim.RMSprop", "model.optimizer.betas=[0.9,0.99]")
    with pytest.raises(UserError, match="alpa"):
        composed("model.optimizer._target_=torch.optim.RMSprop", "model.optimizer.alpa=0.9")


def test_a_package_of_the_user_is_built_once_it_is_trusted(tmp_path, monkeypatch):
    package = tmp_path / "quintet_test_plugin"
    (package / "conf" / "callbacks").mkdir(parents=True)
    (package / "__init__.py").write_text("class Mine:\n    def __init__(self, size: int = 1): ...\n")
    for folder in ("conf", "conf/callbacks"):
        (package / folder / "__init__.py").touch()
    (package / "conf" / "callbacks" / "mine.yaml").write_text("mine: {_target_: quintet_test_plugin.Mine, size: 2}\n")
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ["hydra.searchpath=[pkg://quintet_test_plugin.conf]", "callbacks=mine"]
    with pytest.raises(UserError, match="QUINTET_TRUST=<package>"):
        composed(*overrides)
    monkeypatch.setenv("QUINTET_TRUST", "other, quintet_test_plugin")
    assert composed(*overrides).callbacks.mine.size == 2
    with pytest.raises(UserError, match="size"):
        composed(*overrides, "callbacks.mine.siz=3")


def test_a_missing_optional_package_is_one_line():
    message = user_message(ModuleNotFoundError("No module named 'faiss'", name="faiss"))
    assert "pip install 'quintet[rare_events]'" in message
    assert user_message(ModuleNotFoundError("No module named 'quintet.nothing'", name="quintet.nothing")) is None


def test_every_extra_is_one_of_the_packages():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)
