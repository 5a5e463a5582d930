"""The LightningModule: what it minimises, how fast which parameter learns, what it reports, what it saves."""

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, Trainer
from sklearn.metrics import accuracy_score, jaccard_score
from torch.func import functional_call, grad, vmap
from torchvision import models

from quintet.common.errors import UserError
from quintet.common.optim import OptimizerConfig, lr_factor
from quintet.data.batches import SegmentationBatch
from quintet.harness.resume.checkpoint import AtomicCheckpointIO
from quintet.papers.deeplab.backbone import BackboneConfig
from quintet.papers.deeplab.config import DeepLabConfig
from quintet.papers.deeplab.module import DeepLabModule

CLASSES = ["background", "cat", "dog"]
SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.9}


def module(network=None, backbone=None, optimizer=None, **options):
    torch.manual_seed(0)
    return DeepLabModule(
        {"head": "none"} | (network or {}),
        {"name": "resnet18", "output_stride": 16, "weights": None} | (backbone or {}),
        SGD | (optimizer or {}),
        {"num_classes": 3, "classes": CLASSES},
        **options,
    )


def batch(count=2, size=33, sizes=None, seed=0):
    """Random pictures; where `sizes` are smaller, padded with the mean colour and 255."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, size, size, generator=generator)
    labels = torch.randint(0, 3, (count, size, size), generator=generator)
    labels[:, :3, :3] = 255
    sizes = torch.tensor(sizes or [[size, size]] * count)
    for b, (height, width) in enumerate(sizes.tolist()):
        images[b, :, height:], images[b, :, :, width:] = 0.45, 0.45
        labels[b, height:], labels[b, :, width:] = 255, 255
    return SegmentationBatch(images, labels, sizes, torch.arange(count))


class Data(LightningDataModule):
    """Batches at hand, the same for every split."""

    crop_size = 33

    def __init__(self, batches):
        super().__init__()
        self.batches = batches
        self.data_info = {"num_classes": 3, "classes": CLASSES}

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.batches, batch_size=None)

    val_dataloader = test_dataloader = train_dataloader

    def num_examples(self, split):
        return len(self.batches)

    def example_batch(self, split, indices):
        return self.batches[indices[0]]


def trainer(path, **options):
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    return Trainer(accelerator="cpu", default_root_dir=path, **quiet | options)


def test_four_groups_without_what_is_frozen():
    made = module({"head": "aspp_s"}, {"frozen_blocks": 2})
    made.trainer = Trainer(max_steps=10, logger=False, accelerator="cpu", enable_checkpointing=False)
    optimizer = made.configure_optimizers()["optimizer"]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in made.network.named_parameters():
        expected = 0.01 * (10 if name.startswith("head") else 1) * (2 if name.endswith("bias") else 1)
        if name.startswith("backbone.body.conv1"):
            assert id(parameter) not in rates
        else:
            assert rates[id(parameter)] == pytest.approx(expected), name
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.01, 0.1, 0.2])


def test_vggs_fc6_and_fc7_learn_like_the_backbone():
    made = module({"head": "large_fov", "form": "vgg", "channels": 4}, {"name": "vgg11"}, {"schedule": "constant"})
    optimizer = made.configure_optimizers()["optimizer"]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    branch = made.network.head
    found = [rates[id(getattr(layer, kind))] for layer in branch.layers() for kind in ("weight", "bias")]
    assert found == pytest.approx([0.01, 0.02, 0.01, 0.02, 0.1, 0.2])


def test_the_l2_term_is_sgds_weight_decay():
    """A step on loss + term moves every parameter as torch's decay of the weights, and none of the biases, does."""
    made, same = module(weight_decay=0.1), module(weight_decay=0.1)
    for one in (made, same):
        torch.nn.init.ones_(one.network.head.classifier.bias)
    given = batch()
    weights, biases = [[p for n, p in same.named_parameters() if n.endswith("bias") == b] for b in (False, True)]
    optimizer = torch.optim.SGD([{"params": weights, "weight_decay": 0.1}, {"params": biases}], lr=0.5)
    same.example_losses(given).mean().backward()
    optimizer.step()
    made.log = lambda *told, **options: None
    made.training_step(given, 0).backward()
    torch.optim.SGD(made.parameters(), lr=0.5).step()
    for (name, ours), theirs in zip(made.named_parameters(), same.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6), name
    rest = module({}, {"frozen_blocks": 8}, weight_decay=0.1)
    expected = 0.05 * rest.network.head.classifier.weight.square().sum()
    assert rest.regularisation().item() == pytest.approx(expected.item()), "what is frozen does not decay"


def test_poly_and_step_count_optimiser_steps():
    poly, step = OptimizerConfig(schedule="poly", total_steps=20), OptimizerConfig(schedule="step", step_size=5)
    assert [lr_factor(poly, s) for s in (0, 5, 10, 20, 25)] == pytest.approx([1, 0.75**0.9, 0.5**0.9, 0, 0])
    assert [lr_factor(step, s) for s in (0, 4, 5, 10)] == pytest.approx([1, 1, 0.1, 0.01])


def test_accumulated_single_images_are_a_batch_and_one_step_of_the_schedule(tmp_path):
    """The paper's 1 x 10 for ResNet-101 takes the same steps as all of them at once."""
    given = batch(4)
    singles = [SegmentationBatch(*(part[i : i + 1] for part in given)) for i in range(4)]
    ends = []
    for batches, accumulate in (([given] * 3, 1), (singles * 3, 4)):
        made = module(optimizer={"schedule": "poly", "lr": 1e-3})
        limits = {"max_steps": 3, "accumulate_grad_batches": accumulate, "limit_val_batches": 0}
        run = trainer(tmp_path, **limits)
        run.fit(made, Data(batches))
        ends.append(made)
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9), "poly ends with max_steps"
    for (name, one), other in zip(ends[0].named_parameters(), ends[1].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("scales", [[1.0], [1.0, 0.5]])
def test_what_is_reported_is_what_scikit_learn_counts(tmp_path, scales):
    made = module({"head": "aspp_s", "scales": scales}, mean_over=["cat", "dog"])
    with torch.no_grad():  # so that all classes are predicted
        for branch in made.network.head.branch_list():
            branch.classifier.weight.normal_(0, 1)
    batches = [batch(1, 49, [[40, 31]], 1), batch(2, 33, None, 2)]
    metrics = trainer(tmp_path).test(made, Data(batches), verbose=False)[0]
    predicted, labels = [], []
    for given in batches:
        with torch.no_grad():
            classes = made.eval().predict(given)
            scores = made.scores(given.images)
        assert torch.equal(classes, scores.argmax(1)) and scores.shape[-2:] == given.labels.shape[-2:]
        for b, (height, width) in enumerate(given.sizes.tolist()):
            true = given.labels[b, :height, :width].numpy().ravel()
            predicted.append(classes[b, :height, :width].numpy().ravel()[true != 255])
            labels.append(true[true != 255])
    predicted, labels = np.concatenate(predicted), np.concatenate(labels)
    assert len(set(predicted.tolist())) > 1
    each = jaccard_score(labels, predicted, average=None, labels=[0, 1, 2])
    assert metrics["test/miou"] == pytest.approx(each.mean(), abs=1e-6)
    assert metrics["test/miou_chosen"] == pytest.approx(each[1:].mean(), abs=1e-6)
    assert [metrics[f"test/iou_{name}"] for name in CLASSES] == pytest.approx(list(each), abs=1e-6)
    assert metrics["test/accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-6)
    with torch.no_grad():
        losses = torch.cat([made.example_losses(given) for given in batches])
    assert metrics["test/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_losses_of_examples_can_be_differentiated_one_by_one():
    """What influence functions do: vmap over examples of a gradient through functional_call."""
    made = module({"head": "aspp_s"}, weight_decay=0.1).eval()
    given = batch(3)
    chosen = {n: p.detach() for n, p in made.named_parameters() if n.startswith("network.head")}

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = made

        def forward(self, images, labels):
            one = SegmentationBatch(images[None], labels[None], given.sizes[:1], given.index[:1])
            return self.module.example_losses(one)[0] + self.module.regularisation()

    call = Call()

    def loss(parameters, images, labels):
        return functional_call(call, {f"module.{n}": p for n, p in parameters.items()}, (images, labels))

    each = vmap(grad(loss), (None, 0, 0))(chosen, given.images, given.labels)
    for b in range(3):
        made.zero_grad()
        (made.example_losses(given)[b] + made.regularisation()).backward()
        for name, parameter in made.named_parameters():
            if name in chosen:
                assert torch.allclose(each[name][b], parameter.grad, rtol=1e-3, atol=1e-6), name


def test_a_checkpoint_needs_no_weights_file(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(models.resnet18(weights=None).state_dict(), path)
    made = module(backbone={"weights": str(path)})
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0, plugins=[AtomicCheckpointIO()])
    run.fit(made, Data([batch()]))
    run.save_checkpoint(tmp_path / "last.ckpt")
    path.unlink()
    loaded = DeepLabModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    images = torch.rand(1, 3, 20, 30)
    with torch.no_grad():
        assert torch.equal(loaded.scores(images), made.eval().scores(images))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]["backbone"]["weights"] is None


def test_pictures_of_predictions(tmp_path):
    from matplotlib.image import imread

    made = module(media_count=2).eval()
    (path,) = made.make_media(Data([batch(1, seed=s) for s in range(3)]), tmp_path)
    assert path.name == "predictions.png" and imread(path)[..., :3].std() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": {"weight_decay": 0.1}}, r"model\.optimizer\.weight_decay is 0 here: model\.weight_decay"),
        ({"weight_decay": -1}, r"model\.weight_decay=-1"),
        ({"new_layers_lr": 0}, r"model\.new_layers_lr=0"),
        ({"mean_over": ["bird"]}, r"model\.mean_over has 'bird': the data's classes are background, cat, dog"),
        ({"network": {"hed": "none"}}, r"model\.network has no key 'hed'"),
        ({"optimizer": {"total_steps": 0}}, r"model\.optimizer\.total_steps=0"),
        ({"optimizer": {"step_size": 0}}, r"step_size must be at least 1"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(UserError, match=message):
        module(**options)


def test_poly_needs_an_end(tmp_path):
    made = module(optimizer={"schedule": "poly"})
    with pytest.raises(UserError, match=r"schedule=poly needs an end: set trainer\.max_steps"):
        trainer(tmp_path, max_epochs=-1, limit_val_batches=0).fit(made, Data([batch()]))


def test_configs_take_each_other():
    made = DeepLabModule(
        DeepLabConfig("none"),
        BackboneConfig("resnet18"),
        OptimizerConfig(**SGD),
        {"num_classes": 3, "classes": CLASSES},
    )
    assert made.hparams["network"]["head"] == "none"
