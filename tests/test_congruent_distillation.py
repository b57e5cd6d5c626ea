"""Training by correlation congruence: features of one pass, the objective term by term, a teacher left as it is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinkbook import nets
from shrinkbook.methods.batch_samplers import class_uniform
from shrinkbook.methods.congruent_distillation import (
    CongruentDistillation,
    ConsecutiveProduct,
    Embedded,
    with_features,
)
from shrinkbook.methods.correlation_congruence import (
    KERNELS,
    FrozenProjection,
    congruence_error,
    consecutive_product_loss,
    correlation_congruence_loss,
)
from shrinkbook.methods.distillation import distillation_loss
from shrinkbook.training.data import load
from shrinkbook.training.fit import Recipe, fit


def network(width: int = 4, hidden: int = 12, seed: int = 0) -> nets.VGG:
    return nets.initialize(nets.VGG(((width,), (width,)), hidden=hidden, in_channels=1, side=8), seed)


def teacher(hidden: int = 12) -> nn.Module:
    return network(8, hidden, seed=1).eval().requires_grad_(False)


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_features_are_what_the_last_linear_layer_reads():
    model = network().eval()
    features, logits = with_features(model, IMAGES)
    assert features.shape == (6, 12) and torch.equal(logits, model(IMAGES))
    assert torch.equal(model.classifier.linear_2(features), logits)
    assert not model.classifier.linear_2._forward_pre_hooks
    resnet = nets.resnet_cifar(8).eval()
    features, logits = with_features(resnet, torch.randn(2, 3, 32, 32))
    assert torch.equal(resnet.linear(features), logits) and features.shape == (2, 64)


def test_networks_without_such_a_layer_are_named():
    with pytest.raises(ValueError, match="Conv2d has no linear layer"):
        with_features(nn.Conv2d(1, 1, 3), IMAGES)
    layer = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="used its last linear layer 2 times"):
        with_features(nn.Sequential(layer, layer), IMAGES)


@pytest.mark.parametrize("reading", ["weighted", "added"])
def test_the_objective_is_the_sum_of_its_terms(reading):
    model, guide = network().eval(), teacher()
    objective = CongruentDistillation(guide, KERNELS["rbf3"], 0.7, alpha=0.3, temperature=3.0, reading=reading)
    loss, logits = objective(model, IMAGES, LABELS)
    features, _ = with_features(model, IMAGES)
    target, teacher_logits = with_features(guide, IMAGES)
    ce = F.cross_entropy(logits, LABELS)
    kd = distillation_loss(logits, teacher_logits, 3.0)
    congruence = correlation_congruence_loss(features, target, KERNELS["rbf3"])
    expected = (0.3 * ce + 0.7 * kd if reading == "weighted" else ce + 0.3 * kd) + 0.7 * congruence
    assert loss.item() == pytest.approx(expected.item())
    assert torch.equal(objective.trace[0], torch.stack([kd, congruence]).detach())
    assert objective.means() == pytest.approx({"distillation": kd.item(), "congruence": congruence.item()})
    assert not objective.trace


def test_a_projection_acts_on_the_teachers_features():
    guide = teacher(hidden=20)
    objective = CongruentDistillation(guide, projection=FrozenProjection(20, 12, seed=3), beta=1.0)
    model = network().eval()
    objective(model, IMAGES, LABELS)
    features, target = with_features(model, IMAGES)[0], with_features(guide, IMAGES)[0]
    projected = correlation_congruence_loss(features, FrozenProjection(20, 12, seed=3)(target))
    assert objective.trace[0][1].item() == pytest.approx(projected.item())
    assert projected.item() != pytest.approx(correlation_congruence_loss(features, target).item())


def test_the_benchmarks_objective_trains_both_embeddings_and_has_no_distillation():
    guide = teacher(hidden=20)
    model = nets.initialize(Embedded(network(), 12, 20, size=7), 0)
    loss, logits = ConsecutiveProduct(guide, 0.5)(model, IMAGES, LABELS)
    features, target = with_features(model, IMAGES)[0], with_features(guide, IMAGES)[0]
    neighbours = consecutive_product_loss(model.embed(features), model.embed_teacher(target))
    assert loss.item() == pytest.approx((F.cross_entropy(logits, LABELS) + 0.5 * neighbours).item(), rel=1e-4)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.embed_teacher.parameters())
    model.eval()
    assert torch.equal(model(IMAGES), model.student(IMAGES))


@pytest.mark.parametrize("objective", [CongruentDistillation, ConsecutiveProduct])
def test_a_teacher_that_could_learn_is_refused(objective):
    with pytest.raises(ValueError, match=r"teacher\.requires_grad_\(False\)"):
        objective(network().eval())
    with pytest.raises(ValueError, match=r"call teacher\.eval\(\)"):
        objective(network().requires_grad_(False))


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="temperature 0 is not positive"):
        CongruentDistillation(teacher(), temperature=0)(network(), IMAGES, LABELS)


@pytest.fixture(scope="module")
def trained():
    """A teacher, and students from the same weights on the same batches: distilled, and with congruence."""
    data = load("digits")
    guide = network(8, 12, seed=1)
    fit(guide, data, Recipe(epochs=6, batch=40, lr=0.1), 0)
    guide.eval().requires_grad_(False)
    before = copy.deepcopy(guide.state_dict())
    students, traces = {}, {}
    for beta in (0.0, 100.0):
        students[beta] = network()
        objective = CongruentDistillation(guide, beta=beta)
        sampler = class_uniform(data.y_train, 40, 4)
        fit(students[beta], data, Recipe(epochs=8, batch=40, lr=0.1), 0, objective=objective, sampler=sampler)
        traces[beta] = torch.stack(objective.trace)
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    return data, guide, students, traces


def test_congruence_is_learnt_and_the_first_step_is_shared(trained):
    data, guide, students, traces = trained
    assert len(traces[0.0]) == len(traces[100.0]) == 80
    assert torch.equal(traces[0.0][0], traces[100.0][0])  # same weights, same batch
    assert traces[100.0][-20:, 1].mean() < 0.7 * traces[0.0][-20:, 1].mean()
    images = data.normalise(data.x_test)
    target = with_features(guide, images)[0]
    errors = {
        beta: congruence_error(with_features(model.eval(), images)[0], target) for beta, model in students.items()
    }
    assert errors[100.0] < 0.9 * errors[0.0]


def test_at_weight_zero_it_is_plain_distillation_to_the_bit(trained):
    data, guide, students, _ = trained

    def distilled(model, images, labels):
        logits = model(images)
        with torch.no_grad():
            target = guide(images)
        return 0.1 * F.cross_entropy(logits, labels) + 0.9 * distillation_loss(logits, target, 4.0), logits

    plain = network()
    sampler = class_uniform(data.y_train, 40, 4)
    fit(plain, data, Recipe(epochs=8, batch=40, lr=0.1), 0, objective=distilled, sampler=sampler)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, students[0.0].state_dict()[name]), name


def test_with_alpha_one_it_is_cross_entropy(trained):
    data, guide, _, _ = trained
    recipe = Recipe(epochs=1, batch=40, lr=0.1)
    one, other = network(), network()
    fit(one, data, recipe, 0, objective=CongruentDistillation(guide, alpha=1.0))
    fit(other, data, recipe, 0)
    torch.testing.assert_close(one.state_dict(), other.state_dict())
