"""What train loss and Hessian add to a product of inputs: Koh & Liang 2017, section 2.3, figure 1.

For binary logistic regression the influence has a closed form, computed here with NumPy and SciPy from the features:
y_t y sigma(-y_t theta.x_t) sigma(-y theta.x) x_t^T H^-1 x / n is the change of the test loss when x is removed. Parts
without some of its factors differ from it, and the engine's answer must equal the whole formula.
Legend: N training examples, F features (ones last for a bias).
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import expit

from quintet.common.errors import UserError
from quintet.common.tables import write_csv
from quintet.data.preview import Preview
from quintet.papers.influence.influence import influence
from quintet.papers.influence.protocols.scatter import Cloud, agreement, draw_row, shown
from quintet.papers.influence.risk.examples import Examples
from quintet.papers.influence.solvers.interface import Solver

log = logging.getLogger(__name__)
ROWS = 4096  # examples read at a time


class Terms(NamedTuple):
    """What the closed form is made of."""

    x_nf: NDArray
    y_n: NDArray  # +1 and -1
    query_f: NDArray
    query_y: float
    theta_f: NDArray
    decay_f: NDArray  # diagonal of the L2 term's Hessian


class ClosedForm(NamedTuple):
    """Changes (N,) of the test loss if an example is removed, and what they are without some factors."""

    everything: NDArray  # the paper's formula: its train gradient is of the loss alone
    without_train_loss: NDArray
    without_hessian: NDArray
    without_both: NDArray
    l2_constant: float  # what the gradient of the L2 term adds to each, theta^T H^-1 grad L(z_test) lambda / n


class Components:
    """Influence on one held-out example by the engine, by the closed form, and by parts of that.

    Needs a run with model.loss=logistic on features that are fixed. Writes components/components.csv and
    components.png under `run_dir`: every training example, and a panel for each part.
    """

    def __init__(
        self, solver: Solver, test_index: int = 30, split: str = "test", batch_size: int | None = None
    ) -> None:
        self.solver, self.test_index, self.split, self.batch_size = solver, test_index, split, batch_size

    def __call__(self, module, datamodule, run_dir: Path) -> dict[str, float]:
        if getattr(module, "loss", None) != "logistic":
            raise UserError("protocol=components is for model.loss=logistic: train model=binary_logistic")
        out_dir = Path(run_dir) / "components"
        train = Examples(datamodule, "train")
        query = Examples(datamodule, self.split, [self.test_index], name="protocol.test_index")
        top = [f"network.top.{name}" for name, _ in module.network.top.named_parameters()]
        result = influence(module, train, query, top, self.solver, self.batch_size, out_dir / "cache")
        engine_n = result.delta_test_loss_if_removed[0].double().numpy()
        terms = read_terms(module, train, query)
        parts = closed_form(terms, result.effective_damping)
        same_n = terms.y_n == terms.query_y
        self._write(out_dir, datamodule, engine_n, parts)
        self._draw(out_dir / "components.png", datamodule, engine_n, parts, same_n)
        return compared(engine_n, parts, same_n) | {
            "components/train_examples": float(len(train)),
            "components/query_loss": float(result.query_losses[0]),
            "components/relative_residual": float(result.relative_residual[0]),
            "components/gradient_norm": result.gradient_norm,
        }

    def _write(self, out_dir: Path, datamodule: Any, engine_n: NDArray, parts: ClosedForm) -> None:
        """components.csv: a row for each training example."""
        names = [name for name in parts._fields if name != "l2_constant"]
        header = ["train_index", "label", "engine", *names]
        columns = [getattr(parts, name) for name in names]
        rows = (
            [n, datamodule.preview("train", n).label, *(float(values[n]) for values in (engine_n, *columns))]
            for n in range(len(engine_n))
        )
        write_csv(out_dir / "components.csv", header, rows)

    def _draw(self, path: Path, datamodule: Any, engine_n: NDArray, parts: ClosedForm, same_n: NDArray) -> None:
        query = datamodule.preview(self.split, self.test_index)
        titled = {
            "the whole formula": (parts.everything, "with train loss and $H^{-1}$"),
            "without train loss": (parts.without_train_loss, "without the train loss's factor"),
            "without $H^{-1}$": (parts.without_hessian, "the identity for $H^{-1}$"),
            "without both": (parts.without_both, "product of inputs, with signs"),
        }
        clouds: list[Cloud] = []
        side = "influence: change of the loss if removed"
        for title, (values_n, label) in titled.items():
            note = f"Pearson {shown(agreement(values_n, engine_n)['pearson'])}"
            clouds.append(Cloud(title, values_n, engine_n, note, label, "" if clouds else side))
        worst = int(np.where(same_n, engine_n, np.inf).argmin())
        pictures = []
        if query.image is not None:
            pictures = [(query, f"test example {self.test_index}: {query.label}")]
        if pictures and engine_n[worst] < 0:
            pictures.append((datamodule.preview("train", worst), f"the most harmful {query.label}\nof training"))
        headline = f"influence of {len(engine_n)} training examples on {self.split} example {self.test_index}, by parts"
        draw_row(path, clouds, same_n, (f"{query.label}, like it", "the other class"), headline, images(pictures))


def images(pictures: list[tuple[Preview, str]]) -> list[tuple[NDArray, str]]:
    return [(preview.image, title) for preview, title in pictures if preview.image is not None]


def read_terms(module: Any, train: Examples, query: Examples) -> Terms:
    """Features, signs and parameters in float64."""
    named = dict(module.named_parameters())
    (x_nf, y_n), (query_1f, query_y) = (_features(module, examples) for examples in (train, query))
    top = module.network.top
    theta, decay = [named["network.top.weight"][0]], [np.full(top.weight.shape[1], module.l2)]
    if top.bias is not None:
        theta.append(named["network.top.bias"])
        decay.append(np.array([module.l2 if module.decay_bias else 0.0]))
    theta_f = np.concatenate([part.detach().cpu().double().numpy() for part in theta])
    return Terms(x_nf, y_n, query_1f[0], float(query_y[0]), theta_f, np.concatenate(decay))


def _features(module: Any, examples: Examples) -> tuple[NDArray, NDArray]:
    """(rows (N, F), signs (N,))."""
    weight, rows, signs = module.network.top.weight, [], []
    for _, batch in examples.batches(ROWS, weight.dtype, weight.device, keep=False):
        rows.append(module.linear_parts(batch).design.detach().cpu().double().numpy())
        signs.append(2.0 * batch.labels.cpu().numpy() - 1)
    x_nf = np.concatenate(rows)
    ones = [np.ones((len(x_nf), 1))] if module.network.top.bias is not None else []
    return np.hstack([x_nf, *ones]), np.concatenate(signs)


def closed_form(terms: Terms, damping: float = 0.0) -> ClosedForm:
    """Section 2.3's formula over n, and its parts without some factors. Errors: UserError for a singular Hessian."""
    x_nf, count = terms.x_nf, len(terms.x_nf)
    chance_n = expit(x_nf @ terms.theta_f)
    hessian_ff = x_nf.T @ ((chance_n * (1 - chance_n))[:, None] * x_nf) / count + np.diag(terms.decay_f + damping)
    try:
        solved_f = cho_solve(cho_factor(hessian_ff), terms.query_f)
    except LinAlgError as error:
        raise UserError("the Hessian is singular: train with model.l2 above 0, or give solver.damping") from error
    slope = expit(-terms.query_y * (terms.query_f @ terms.theta_f))
    train_n = expit(-terms.y_n * (x_nf @ terms.theta_f))
    signs_n = terms.query_y * terms.y_n * slope / count
    return ClosedForm(
        everything=signs_n * train_n * (x_nf @ solved_f),
        without_train_loss=signs_n * (x_nf @ solved_f),
        without_hessian=signs_n * train_n * (x_nf @ terms.query_f),
        without_both=signs_n * (x_nf @ terms.query_f),
        l2_constant=float(-terms.query_y * slope * (terms.decay_f * terms.theta_f) @ solved_f / count),
    )


def compared(engine_n: NDArray, parts: ClosedForm, same_n: NDArray) -> dict[str, float]:
    """Engine against formula; the differences are relative to the largest influence.

    Pearson's R does not see the L2 term's constant, so both differences are given: from the formula with that constant,
    and from the paper's, whose train gradient has no L2 term.

    same_class_harmful: how many of the query's class would lower its loss by going, which a part without H cannot show.
    """
    size, difference_n = np.abs(engine_n).max(), engine_n - parts.everything
    exact = agreement(parts.everything, engine_n)["pearson"]
    values = {
        "pearson": exact,
        "one_minus_pearson": 1 - exact,
        "relative_difference": np.abs(difference_n - parts.l2_constant).max() / size,
        "relative_difference_without_l2_term": np.abs(difference_n).max() / size,
    }
    for name in ("without_train_loss", "without_hessian", "without_both"):
        found = agreement(getattr(parts, name), engine_n)
        values |= {f"pearson_{name}": found["pearson"], f"spearman_{name}": found["spearman"]}
    values |= {
        "same_class": same_n.sum(),
        "same_class_harmful": (parts.everything[same_n] < 0).sum(),
        "same_class_harmful_without_hessian": (parts.without_hessian[same_n] < 0).sum(),
    }
    return {f"components/{name}": float(value) for name, value in values.items()}
