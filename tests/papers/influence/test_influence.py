"""Signs and scales against retraining without a point; caching and resuming; the perturbation against differences."""

import logging
from copy import deepcopy

import pytest
import torch
from small_models import Awkward, Net, Softmax, data, dense, examples, fit, slopes

from quintet.common.errors import UserError
from quintet.data.batches import ExampleBatch
from quintet.papers.influence import influence as engine
from quintet.papers.influence.attack.perturb import attack_step, perturbation_influence
from quintet.papers.influence.influence import influence, influence_on_params, self_influence
from quintet.papers.influence.risk.examples import Examples, rows_of
from quintet.papers.influence.risk.linear_risk import make_risk
from quintet.papers.influence.risk.risk import EmpiricalRisk
from quintet.papers.influence.solvers.cg import ConjugateGradient
from quintet.papers.influence.solvers.direct import Direct


def copies(batch, times):
    return ExampleBatch(*(part.repeat(times, *[1] * (part.dim() - 1)) for part in batch))


@pytest.mark.parametrize("linear", [False, True])
def test_sign_and_scale_against_exact_retraining(linear):
    """Each example removed from a larger set, refitted by Newton's method: the change is predicted to first order."""
    batch, queries = copies(data(), 20), data(7, 6)
    module = fit(Softmax(linear=linear, l2=0.1), batch)
    found = influence(module, Examples.of_batch(batch), Examples.of_batch(queries), solver=Direct())
    before = module.example_losses(queries).detach()
    torch.testing.assert_close(found.query_losses, before)
    for row in (0, 3, 11, 39):
        without = fit(deepcopy(module), batch, skip=row)
        change = without.example_losses(queries).detach() - before
        torch.testing.assert_close(found.delta_test_loss_if_removed[:, row], change, rtol=0.05, atol=1e-6)


def test_formula_by_dense_algebra_with_the_l2_term_in_train_gradients_only():
    module = fit(Softmax(l2=0.3), data())
    with torch.no_grad():
        module.layer.weight += 0.1  # not at the minimum: the L2 gradient does not cancel
    queries = data(3, 5)
    found = influence(module, examples(), Examples.of_batch(queries), solver=ConjugateGradient(tolerance=1e-12))
    hessian = dense(module, data())[1]
    train = slopes(module, data()) + 0.3 * module.layer.weight.detach().flatten()
    wanted = slopes(module, queries) @ torch.linalg.inv(hessian) @ train.T / len(train)
    torch.testing.assert_close(found.delta_test_loss_if_removed, wanted)
    assert found.num_params == 15 and found.relative_residual.max() < 1e-10 and found.effective_damping == 0
    assert found.gradient_norm == pytest.approx(float(dense(module, data())[0].norm()))


def test_a_point_and_its_twin_help_and_the_twin_with_a_wrong_label_harms_most():
    batch = data()
    wrong = (batch.labels[:1] + 1) % 3
    labels = torch.cat([batch.labels, batch.labels[:1], wrong])
    both = ExampleBatch(torch.cat([batch.inputs, batch.inputs[:1].repeat(2, 1)]), labels, torch.arange(42))
    module = fit(Softmax(), both)
    found = influence(module, Examples.of_batch(both), Examples.of_batch(rows_of(data(), [0])), solver=Direct())
    (scores,) = found.delta_test_loss_if_removed
    assert scores[0] == pytest.approx(float(scores[40])) and scores[0] > 0
    assert found.top_harmful(1)[1].item() == 41 and found.top_harmful(1)[0].item() == scores.min() < 0
    assert found.top_helpful(1)[0].item() == scores.max() and found.top_helpful(1)[1].item() == scores.argmax()
    assert len(found.top_helpful(1000)[1][0]) == 42


def test_self_influence_and_influence_on_parameters():
    module = fit(Softmax(), data())
    risk = make_risk(module, examples(), batch_size=9)
    inverse = torch.linalg.inv(dense(module, data())[1] + 0.01 * torch.eye(15))
    gradients = slopes(module, data()) + 0.05 * risk.theta
    wanted = torch.einsum("bp,pq,bq->b", gradients, inverse, gradients) / 40
    prepared = Direct(damping=0.01).prepare(risk)
    torch.testing.assert_close(self_influence(risk, prepared), wanted)
    moved = influence_on_params(risk, prepared, slice(4, 7))
    torch.testing.assert_close(moved.vectors, -gradients[4:7] @ inverse)
    # removal moves the parameters by -1/n of it
    large = copies(data(), 10)
    start = fit(Softmax(), large)
    risk = make_risk(start, Examples.of_batch(large))
    step = -influence_on_params(risk, Direct().prepare(risk), slice(4, 5)).vectors[0] / 400
    true = fit(deepcopy(start), large, skip=4).layer.weight.detach().flatten() - risk.theta
    assert torch.nn.functional.cosine_similarity(step, true, dim=0) > 0.999
    assert float(true.norm() / step.norm()) == pytest.approx(1, rel=0.02)


def test_networks_and_awkward_kernels_go_the_same_way():
    for module in (fit(Awkward(), data()), Net()):
        found = influence(module, examples(), examples(3, 4), solver=Direct(damping=1.0))
        hessian = dense(module, data())[1] + torch.eye(found.num_params)
        train = slopes(module, data()) + engine.make_risk(module, examples()).penalty_gradient()
        wanted = slopes(module, data(3, 4)) @ torch.linalg.inv(hessian) @ train.T / 40
        torch.testing.assert_close(found.delta_test_loss_if_removed, wanted)


def test_warns_of_parameters_that_are_not_at_a_minimum(caplog):
    with caplog.at_level(logging.WARNING):
        influence(fit(Softmax(), data()), examples(), examples(3, 2))
        assert not caplog.records
        influence(Softmax(), examples(), examples(3, 2))
    assert "has gradient norm 1." in caplog.text and "train longer, or set solver.damping" in caplog.text


def test_a_second_call_reads_what_the_first_one_wrote_and_goes_on_from_it(tmp_path, monkeypatch):
    module = fit(Softmax(), data())
    some = {"solver": Direct(damping=0.1), "batch_size": 8, "cache_dir": tmp_path}
    monkeypatch.setattr(engine, "QUERY_BLOCK", 2)
    first = influence(module, examples(), examples(3, 5), **some)
    (folder,) = tmp_path.iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["gradient_norm.pt", *(f"scores_{n:09d}.pt" for n in range(0, 40, 8)), "settings.json",
                     *(f"solution_{n:05d}.pt" for n in range(3))]  # fmt: skip
    (folder / "scores_000000016.pt").unlink()
    (folder / "solution_00001.pt").unlink()
    calls = []
    true = EmpiricalRisk.directional
    monkeypatch.setattr(EmpiricalRisk, "directional", lambda *a: calls.append("chunk") or true(*a))
    monkeypatch.setattr(Direct, "prepare", lambda s, r, true=Direct.prepare: calls.append("solver") or true(s, r))
    again = influence(module, examples(), examples(3, 5), **some)
    assert sorted(calls) == ["chunk", "solver"]
    torch.testing.assert_close(again.delta_test_loss_if_removed, first.delta_test_loss_if_removed, rtol=0, atol=0)
    with torch.no_grad():
        module.layer.weight[0, 0] += 1e-6
    influence(module, examples(), examples(3, 5), **some)
    influence(module, examples(), examples(4, 5), **some)
    assert len(list(tmp_path.iterdir())) == 3  # other weights and other queries have folders of their own


def test_perturbation_is_the_mixed_derivative():
    """Against moving one number of one training input by hand and solving again: equation 5 by finite differences."""
    module = fit(Softmax(l2=0.1), data())
    query = data(3, 1)
    risk = EmpiricalRisk(module, examples())
    s_test = Direct().solve(risk, slopes(module, query)).vectors[0]
    found = perturbation_influence(risk, data(), s_test)
    assert found.shape == data().inputs.shape
    for row, column in ((0, 0), (5, 3)):
        losses = []
        for sign in (1, -1):
            moved = data().inputs.clone()
            moved[row, column] += sign * 1e-3
            other = fit(Softmax(l2=0.1), data()._replace(inputs=moved))
            losses.append(float(other.example_losses(query).detach()))
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(float(found[row, column]) / 40, rel=1e-3)


def test_tokens_cannot_be_perturbed():
    batch = data()._replace(inputs=torch.ones(40, 5, dtype=torch.int64))
    with pytest.raises(UserError, match=r"ExampleBatch\.inputs is not a floating-point tensor"):
        perturbation_influence(EmpiricalRisk(Softmax(), examples()), batch, torch.zeros(15))


def test_attack_stays_in_its_box():
    original = torch.tensor([0.5, 0.0, 0.999])
    x = original.clone()
    for _ in range(5):
        x = attack_step(x, original, torch.tensor([1.0, -1.0, 2.0]), step=0.004, radius=0.01)
    torch.testing.assert_close(x, torch.tensor([0.51, 0.0, 1.0]))
