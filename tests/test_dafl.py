"""The generator and the losses of DAFL by hand, the two forms against each other, the steps, bad input."""

import copy
import math

import pytest
import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.course.checks import chen2019 as check
from shrinkbook.course.checks.compare import drawn
from shrinkbook.measure.cost import parameter_count
from shrinkbook.methods import dafl
from shrinkbook.methods.dafl import Generator, Teacher, Weights
from shrinkbook.methods.dafl_training import (
    generator_step,
    joint_step,
    joint_training,
    noise,
    student_step,
    two_stage_training,
)
from shrinkbook.methods.distillation import distillation_loss


def network(seed: int = 0) -> nets.LeNet:
    return nets.initialize(nets.LeNet((2, 3, 6, 5), (3, 3, 2), padding=1, classes=4), seed)


def teacher() -> Teacher:
    return Teacher(network().eval().requires_grad_(False), "fc1")


def generator(seed: int = 0) -> Generator:
    return nets.initialize(Generator(side=8, latent=5, width=4), seed)


def test_one_hot_loss_is_minus_the_log_of_the_largest_probability():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(9.0), 0.0]])  # probabilities 3/4 and 9/10
    assert dafl.one_hot_loss(logits).item() == pytest.approx(-(math.log(0.75) + math.log(0.9)) / 2)
    check.is_minus_log_of_the_largest(dafl.one_hot_loss)


def test_one_hot_loss_makes_predictions_more_certain():
    check.makes_predictions_certain(dafl.one_hot_loss)


def test_entropy_loss_by_hand_and_at_its_ends():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])  # mean prediction (3/8, 5/8)
    by_hand = 0.375 * math.log(0.375) + 0.625 * math.log(0.625)
    assert dafl.information_entropy_loss(logits, "paper").item() == pytest.approx(by_hand / 2)
    assert dafl.information_entropy_loss(logits, "code").item() == pytest.approx(by_hand / math.log(10))
    for k in (2, 10, 100):
        check.is_least_for_balanced_batches(dafl.information_entropy_loss, k)


def test_mean_entropy_is_that_loss_as_a_share_of_its_range():
    logits = drawn(12, 10)
    assert dafl.mean_entropy(logits).item() == pytest.approx(-dafl.information_entropy_loss(logits).item())


def test_activation_loss_sums_in_the_paper_and_averages_in_the_code():
    features = torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.5, 2.0]])
    assert dafl.activation_loss(features, "paper").item() == -3.0
    assert dafl.activation_loss(features, "code").item() == -1.0


@pytest.mark.parametrize("form", ["paper", "code"])
def test_the_losses_are_their_formulas_and_the_total_weighs_them(form):
    check.is_minus_the_norm(dafl.activation_loss, form)
    check.is_minus_the_entropy_of_the_mean(dafl.information_entropy_loss, form)
    check.weighs_the_three(dafl.generator_loss, Weights, form)


@pytest.mark.parametrize(("k", "width"), [(10, 120), (100, 512), (2, 7)])
def test_the_two_forms_differ_by_known_factors(k, width):
    logits, features = drawn(128, k), drawn(128, width, seed=1).relu()
    entropy = [dafl.information_entropy_loss(logits, form).item() for form in ("code", "paper")]
    activation = [dafl.activation_loss(features, form).item() for form in ("code", "paper")]
    assert entropy[0] == pytest.approx(entropy[1] * k / math.log(10))
    assert activation[1] == pytest.approx(activation[0] * width)
    weights = Weights(0.7, 5.0, 0.1)
    code = dafl.generator_loss(logits, features, weights, "code")
    paper = dafl.generator_loss(logits, features, dafl.converted(weights, k, width), "paper")
    assert code.total.item() == pytest.approx(paper.total.item())
    assert dafl.generator_loss(logits, features, weights, "paper").total.item() != pytest.approx(code.total.item())


def test_the_enlarged_convolution_is_that_of_the_enlarged_map():
    """Value and gradients against repetition followed by the convolution itself."""
    fast, x = dafl.UpsampledConv2d(3, 5).double(), drawn(2, 3, 4, 6).requires_grad_()
    slow = nn.functional.conv2d(nn.functional.interpolate(x, scale_factor=2.0), fast.weight, fast.bias, padding=1)
    weights = (fast.weight, fast.bias, x)
    outer = drawn(*slow.shape, seed=1)
    expected = torch.autograd.grad((slow * outer).sum(), weights)
    assert torch.allclose(fast(x), slow, rtol=1e-12)
    for ours, theirs in zip(torch.autograd.grad((fast(x) * outer).sum(), weights), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "latent", "parameters"), [(1, 100, 1_049_985), (3, 1000, 8_423_939)])
def test_the_generator_has_the_authors_number_of_parameters(channels, latent, parameters):
    assert parameter_count(Generator(32, channels, latent)) == parameters


def test_generated_batches_are_standardised_in_each_channel():
    images = nets.initialize(Generator(side=8, channels=3, latent=5, width=4), 0)(drawn(40, 5).float())
    assert images.shape == (40, 3, 8, 8)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(images.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-2)


def test_the_teacher_gives_what_its_last_part_reads_and_lets_gradients_through():
    one, images = teacher(), drawn(3, 1, 8, 8).float().requires_grad_()
    logits, features = one(images)
    model = one.model
    assert torch.equal(model.fc2(model.fc1(features).relu()), logits)
    assert features.shape == (3, 6) and (features >= 0).all()
    features.sum().backward()
    assert images.grad.abs().sum() > 0
    assert not model.fc1._forward_pre_hooks


@pytest.mark.parametrize("layer", ["linear", "5"])
def test_features_of_the_papers_other_teachers(layer):
    model = nets.ResNet((1,), (4,), in_channels=1, classes=4) if layer == "linear" else nets.hinton_net(4, 64, 4)
    one = Teacher(model.eval().requires_grad_(False), layer)
    logits, features = one(drawn(3, 1, 8, 8).float())
    assert features.shape == (3, 4)
    assert torch.equal(model.get_submodule(layer)(features), logits)


def setup(lr: float = 0.01) -> tuple:
    made, student = generator(1), network(2).train()
    optimisers = tuple(torch.optim.SGD(part.parameters(), lr) for part in (made, student))
    return made, student, optimisers


def test_a_joint_step_moves_each_network_as_its_own_step_does():
    """The student's images are detached: L_KD moves the student only, L_Total the generator only."""
    z, weights = noise(12, 5, torch.Generator().manual_seed(0)), Weights()
    made, student, optimisers = setup()
    before = copy.deepcopy(made)
    row = joint_step(made, student, teacher(), optimisers, z, weights)
    alone, other, own = setup()
    first = generator_step(alone, teacher(), own[0], z, weights)
    second = student_step(other, teacher(), own[1], before(z).detach())
    for name, tensor in made.state_dict().items():
        assert torch.allclose(tensor, alone.state_dict()[name], atol=1e-7), name
    for name, tensor in student.state_dict().items():
        assert torch.allclose(tensor, other.state_dict()[name], atol=1e-7), name
    assert any(not torch.equal(a, b) for a, b in zip(made.parameters(), before.parameters(), strict=True))
    assert {key: row[key].item() for key in first} == pytest.approx({key: first[key].item() for key in first})
    assert row["distillation"].item() == pytest.approx(second["distillation"].item())


def test_the_teacher_stays_as_it_was():
    one = Teacher(
        nets.initialize(nets.ResNet((1,), (4,), in_channels=1, classes=4), 0).eval().requires_grad_(False), "linear"
    )
    before = copy.deepcopy(one.model.state_dict())
    made, student, optimisers = setup()
    joint_step(made, student, one, optimisers, torch.randn(12, 5), Weights())
    student_step(student, one, optimisers[1], torch.randn(12, 1, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.model.state_dict().items())


def test_two_stages_train_the_generator_first_and_then_the_student_on_its_images():
    made, student, optimisers = setup()
    start = copy.deepcopy(student.state_dict())
    source = torch.Generator().manual_seed(0)
    batches = [noise(12, 5, source) for _ in range(5)]
    rows = two_stage_training(made, student, teacher(), optimisers, (batches[:3], batches[3:]), Weights())
    first = [next(rows) for _ in range(3)]
    assert all("one_hot" in row and "distillation" not in row for row in first)
    assert all(torch.equal(tensor, start[name]) for name, tensor in student.state_dict().items())
    trained = [p.detach().clone() for p in made.parameters()]
    second = list(rows)
    assert len(second) == 2 and all("distillation" in row and "one_hot" not in row for row in second)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), trained, strict=True))
    assert any(not torch.equal(tensor, start[name]) for name, tensor in student.state_dict().items())


def test_training_lowers_the_losses_it_descends():
    made, student, optimisers = setup()
    optimisers = tuple(torch.optim.Adam(part.parameters(), 0.01) for part in (made, student))
    source = torch.Generator().manual_seed(0)
    batches = (noise(40, 5, source) for _ in range(60))
    rows = list(joint_training(made, student, teacher(), optimisers, batches, Weights(activation=0)))
    ends = [
        [torch.stack([row[key] for row in part]).mean() for part in (rows[:10], rows[-10:])]
        for key in ("one_hot", "entropy")
    ]
    assert ends[0][1] + 5 * ends[1][1] < ends[0][0] + 5 * ends[1][0]
    z = noise(200, 5, source)
    logits = teacher()(made(z))[0].detach()
    untrained = distillation_loss(network(2)(made(z)), logits)
    assert distillation_loss(student.eval()(made(z)), logits) < untrained


def test_noise_is_the_same_for_the_same_source():
    first, second = (noise(3, 4, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (3, 4)


def test_best_matches_ignore_sign_and_scale():
    filters = drawn(3, 1, 5, 5)
    assert torch.allclose(dafl.best_matches(filters, -3 * filters.flip(0)), torch.ones(3, dtype=torch.float64))
    horizontal, vertical = torch.zeros(2, 1, 2, 2)
    horizontal[0, 0] = 1
    vertical[0, :, 0] = 1
    found = dafl.best_matches(torch.stack([horizontal, torch.zeros_like(horizontal)]), vertical[None])
    assert found.tolist() == pytest.approx([0.5, 0])
    with pytest.raises(ValueError, match=r"\(1, 5, 5\) and \(1, 3, 3\)"):
        dafl.best_matches(filters, drawn(3, 1, 3, 3))


def test_a_batch_smaller_than_the_classes_is_warned_of():
    with pytest.warns(UserWarning, match="3 images cannot be certain and show all 10 classes"):
        dafl.information_entropy_loss(drawn(3, 10))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"logits \(3, 4\), features \(2, 6\)"):
        dafl.generator_loss(drawn(3, 4), drawn(2, 6), Weights())
    with pytest.raises(ValueError, match=r"one_hot_loss: logits \(0, 4\).*at least one image"):
        dafl.generator_loss(drawn(0, 4), drawn(0, 6), Weights())
    for loss in (dafl.one_hot_loss, dafl.information_entropy_loss, dafl.activation_loss):
        with pytest.raises(ValueError, match=r"\(0, 4\).*at least one image"):
            loss(drawn(0, 4))
        with pytest.raises(ValueError, match=r"\(4,\); they must be \(images, numbers\)"):
            loss(drawn(4, 4)[0])
    with pytest.raises(ValueError, match="unknown form 'log2'.* code, paper"):
        dafl.activation_loss(drawn(2, 3), "log2")
    with pytest.raises(ValueError, match="side 10 is not a multiple of 4"):
        Generator(side=10)
    with pytest.raises(ValueError, match="training mode"):
        Teacher(network().train().requires_grad_(False), "fc1")
    with pytest.raises(ValueError, match="gradients are on; freeze it"):
        Teacher(network().eval(), "fc1")
    with pytest.raises(ValueError, match="no module 'fc9' in LeNet; it has conv1"):
        Teacher(network().eval().requires_grad_(False), "fc9")
    made, student, optimisers = setup()
    with pytest.raises(ValueError, match="evaluation mode"):
        joint_step(made.eval(), student, teacher(), optimisers, torch.randn(12, 5), Weights())
    with pytest.raises(ValueError, match="temperature 0 is not positive"):
        student_step(student, teacher(), optimisers[1], torch.randn(12, 1, 8, 8), temperature=0)
