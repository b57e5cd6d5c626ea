"""Training: augmentation against a slow oracle, exact resuming, collapse, evaluation, batch-norm recalibration."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from shrinkbook.experiments.li2017 import HE2016, RETRAIN
from shrinkbook.training import checkpoint
from shrinkbook.training.augment import crop_flip, draw_crop_flip
from shrinkbook.training.batches import batches, derived_seed, split_validation
from shrinkbook.training.data import DataSet, load
from shrinkbook.training.evaluate import evaluate, recalibrate_batch_norm
from shrinkbook.training.fit import cross_entropy, fit, train_step
from shrinkbook.training.precision import autocast_dtype, bf16_units, conv3x3_by_product, precision
from shrinkbook.training.recipe import Recipe, optimiser_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def tiny(seed=0, channels=1):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(64, 10),
    )


def colours(count=40):
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    y = torch.randint(10, (count,), generator=generator)
    return DataSet("noise", x, y, x[:10], y[:10], (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 10, "none")


def slow_crop_flip(images, draws, padding):
    """One image at a time: pad, cut, mirror."""
    results = []
    for image, (top, left, flip) in zip(images, draws.tolist(), strict=True):
        channels, height, width = image.shape
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
        padded[:, padding : padding + height, padding : padding + width] = image
        cut = padded[:, top : top + height, left : left + width]
        results.append(cut.flip(2) if flip else cut)
    return torch.stack(results)


def test_crop_flip_equals_the_loop_over_images():
    images = colours(60).x_train[:, :, :20]  # not square
    draws = draw_crop_flip(60, 4, torch.Generator().manual_seed(1))
    fast = crop_flip(images, draws, 4)
    assert torch.equal(fast, slow_crop_flip(images, draws, 4)) and fast.dtype == torch.uint8
    assert fast.is_contiguous(memory_format=torch.channels_last)


def test_draws_are_independent_and_cover_their_range():
    top, left, flip = draw_crop_flip(8100, 4, torch.Generator().manual_seed(0)).T
    counts = torch.stack([top, left]).unsqueeze(2).eq(torch.arange(9)).sum(1)
    assert counts.min() > 750 and counts.max() < 1050  # 900 each
    assert 3850 < flip.sum() < 4250
    for a, b in ((top, left), (top, flip), (left, flip)):
        assert torch.corrcoef(torch.stack([a, b]).float())[0, 1].abs() < 0.05


def test_batches_are_every_image_once_normalised_after_padding():
    data = colours(41)
    recipe = Recipe(epochs=1, batch=8, lr=0.1)
    seen = list(batches(data, torch.arange(41), recipe, seed=0, epoch=0))
    assert [len(labels) for _, labels in seen] == [8] * 5  # the last image alone is left out
    order = torch.cat([labels for _, labels in seen])
    other = torch.cat([labels for _, labels in batches(data, torch.arange(41), recipe, seed=0, epoch=1)])
    assert not torch.equal(order, other)
    plain = data.normalise(data.x_train)
    for images, labels in seen:
        for image, label in zip(images, labels, strict=True):
            matches = (plain == image).flatten(1).all(1)
            assert matches.sum() == 1 and data.y_train[matches].item() == label
    black = data.normalise(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).flatten()
    augmented, _ = next(batches(data, torch.arange(41), dataclasses.replace(recipe, augment=True), 0, 0))
    borders = [image[:, 0, 0] for image in augmented] + [image[:, -1, -1] for image in augmented]
    assert any(torch.equal(corner, black) for corner in borders)  # padding is a black pixel, not a mean one


def test_the_papers_schedules():
    baseline, retraining = Recipe(**HE2016), Recipe(**RETRAIN)
    rates = [baseline.rate(epoch) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert (baseline.weight_decay, baseline.batch, baseline.epochs) == (1e-4, 128, 160)
    assert {retraining.rate(epoch) for epoch in range(retraining.epochs)} == {0.001} and retraining.epochs == 40
    with pytest.raises(ValueError, match="choose float32 or bfloat16"):
        Recipe(1, 8, 0.1, dtype="float16")


def test_one_step_is_sgd_with_weight_decay_and_momentum():
    data = colours(8)
    data = dataclasses.replace(data, x_train=data.x_train.contiguous())
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10, bias=False))
    start = model[1].weight.detach().clone()
    recipe = Recipe(epochs=2, batch=8, lr=0.01, momentum=0.5, weight_decay=0.1, milestones=(0.5,))
    fit(model, data, recipe, seed=0)
    weight, velocity = start.double(), torch.zeros_like(start).double()
    x = data.normalise(data.x_train).flatten(1).double()
    for rate in (0.01, 0.001):
        weight = weight.detach().requires_grad_()
        nn.functional.cross_entropy(x @ weight.T, data.y_train).backward()
        velocity = 0.5 * velocity + weight.grad + 0.1 * weight.detach()
        weight = weight.detach() - rate * velocity
    torch.testing.assert_close(model[1].weight.detach().double(), weight, rtol=1e-4, atol=1e-6)


def test_fit_learns_and_is_a_function_of_the_seed(digits):
    recipe = Recipe(epochs=12, batch=32, lr=0.1, milestones=(0.5, 0.8))
    model, twin, other = tiny(), tiny(), tiny()
    result = fit(model, digits, recipe, seed=1)
    assert result.status == "finished" and len(result.history) == 12
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert [row["lr"] for row in result.history] == pytest.approx([0.1] * 6 + [0.01] * 4 + [0.001] * 2)
    assert result.best_by_val is None and result.seconds > 0
    assert evaluate(model, digits).accuracy > 85
    torch.manual_seed(99)  # what was drawn before does not matter
    fit(twin, digits, recipe, seed=1)
    fit(other, digits, recipe, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert not torch.equal(model[0].weight, other[0].weight)


def test_one_step_of_adam():
    """The first step is lr g / (|g| + eps): every weight moves by the rate, whatever its gradient."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    before = model[1].weight.detach().clone()
    optimiser = optimiser_of(model, Recipe(epochs=1, batch=2, lr=0.01, weight_decay=0, optimiser="adam"))
    loss, _ = train_step(model, optimiser, torch.randn(2, 1, 2, 2), torch.tensor([0, 1]))
    assert torch.allclose((model[1].weight - before).abs(), torch.full((2, 4), 0.01), rtol=1e-3)
    with pytest.raises(ValueError, match="choose sgd, adam or adamw"):
        Recipe(epochs=1, batch=2, lr=0.01, optimiser="lion")


def test_a_checkpoint_from_before_a_field_existed_still_counts(digits, tmp_path):
    path, recipe = tmp_path / "run.safetensors", Recipe(epochs=1, batch=64, lr=0.1)
    fit(tiny(), digits, recipe, 3, checkpoint=path)
    state, metadata = checkpoint.load(path)
    del metadata["recipe"]["optimiser"]
    checkpoint.save(state, path, metadata)
    fit(tiny(), digits, recipe, 3, checkpoint=path, progress=lambda row: pytest.fail("trained again"))
    with pytest.raises(ValueError, match="its recipe differs"):
        fit(tiny(), digits, dataclasses.replace(recipe, lr=0.2), 3, checkpoint=path)


class Stop(Exception):
    """Somebody pulled the plug."""


@pytest.mark.parametrize(("optimiser", "lr"), [("sgd", 0.1), ("adam", 0.01)])
def test_resumed_run_ends_in_the_same_bits(digits, tmp_path, optimiser, lr):
    recipe = Recipe(epochs=5, batch=64, lr=lr, milestones=(0.5,), val_fraction=0.2, optimiser=optimiser)
    whole = tiny()
    expected = fit(whole, digits, recipe, seed=3)

    def stop(row):
        if row["epoch"] == 2:
            raise Stop

    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        fit(tiny(), digits, recipe, 3, checkpoint=path, progress=stop, save_every=0)
    resumed, epochs = tiny(seed=77), []
    result = fit(resumed, digits, recipe, 3, checkpoint=path, progress=lambda row: epochs.append(row["epoch"]))
    assert epochs == [3, 4]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        assert torch.equal(expected.best_state[name], result.best_state[name]), name

    def timeless(history):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in history]

    assert timeless(result.history) == timeless(expected.history)
    assert result.best_by_val == expected.best_by_val
    finished = fit(tiny(seed=5), digits, recipe, 3, checkpoint=path, progress=lambda row: pytest.fail("trained again"))
    assert finished.history == result.history
    with pytest.raises(ValueError, match="belongs to another run .its seed differs"):
        fit(tiny(), digits, recipe, 4, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another run .its recipe differs"):
        fit(tiny(), digits, dataclasses.replace(recipe, lr=0.2), 3, checkpoint=path)
    with pytest.raises(ValueError, match="holds another network"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, recipe, 3, checkpoint=path)


def test_validation_slice_comes_from_training_images_and_chooses_the_best_state(digits):
    keep, held_out = split_validation(400, 0.25, seed=0)
    assert len(held_out) == 100 and sorted(torch.cat([keep, held_out]).tolist()) == list(range(400))
    assert not torch.equal(held_out, split_validation(400, 0.25, seed=1)[1])
    model = tiny()
    result = fit(model, digits, Recipe(epochs=6, batch=32, lr=0.3, val_fraction=0.25), seed=0)
    best = tiny(seed=1)
    best.load_state_dict(result.best_state)
    held = dataclasses.replace(digits, x_test=digits.x_train[held_out], y_test=digits.y_train[held_out])
    assert evaluate(best, held).accuracy == result.best_by_val == max(row["val_accuracy"] for row in result.history)
    assert evaluate(model, held).accuracy == result.history[-1]["val_accuracy"]


def test_exploding_and_idle_runs_are_collapsed(digits, tmp_path):
    path = tmp_path / "run.safetensors"
    recipe = Recipe(epochs=5, batch=64, lr=1e20)
    exploded = fit(tiny(), digits, recipe, 0, checkpoint=path)
    assert exploded.status == "collapsed" and exploded.history[-1]["loss"] is None and len(exploded.history) < 5
    assert fit(tiny(), digits, recipe, 0, checkpoint=path).history == exploded.history
    idle = fit(tiny(), digits, Recipe(epochs=1, batch=64, lr=0.0), seed=0)
    assert idle.status == "collapsed" and math.isfinite(idle.history[0]["loss"])


def test_objective_replaces_the_loss(digits):
    def half(model, images, labels):
        logits = model(images)
        return 0.5 * nn.functional.cross_entropy(logits, labels), logits

    recipe = Recipe(epochs=1, batch=400, lr=0.1, weight_decay=0.0)
    ordinary, halved = tiny(), tiny()
    start = ordinary[10].bias.detach().clone()
    a, b = fit(ordinary, digits, recipe, 0), fit(halved, digits, recipe, 0, objective=half)
    assert b.history[0]["loss"] == pytest.approx(a.history[0]["loss"] / 2)
    torch.testing.assert_close(ordinary[10].bias - start, 2 * (halved[10].bias - start))


def test_bfloat16_keeps_weights_and_statistics_in_float32(digits):
    if not bf16_units():
        pytest.skip("no bfloat16 units here")
    model = tiny()
    result = fit(model, digits, Recipe(epochs=12, batch=32, lr=0.1, milestones=(0.5,), dtype="bfloat16"), seed=1)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
    assert result.status == "finished" and evaluate(model, digits, dtype="bfloat16").accuracy > 85


def test_pinned_instruction_set_has_no_bfloat16_units(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not bf16_units() and autocast_dtype() == "float32"
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert not bf16_units("cpu")


def test_product_equals_convolution_and_its_gradients():
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 6, 2, 3), (5, 6, 3, 3), (5,))
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    fast, slow = conv3x3_by_product(x, weight, bias), nn.functional.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(fast, slow)
    cotangent = torch.randn(fast.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(y, (x, weight, bias), cotangent) for y in (fast, slow)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(conv3x3_by_product(x, weight), nn.functional.conv2d(x, weight, padding=1))


def test_bfloat16_uses_the_product_on_small_maps_only_and_puts_everything_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(256, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
    for side in (4, 6):
        x = torch.randn(2, 256, side, side)
        with precision(model, torch.device("cpu"), "bfloat16"):
            assert [type(m) is nn.Conv2d for m in model] == [False, True, True]
            y = model(x)
            used_product = "Linear" in repr(_ancestors(model[0](x))) or "Addmm" in repr(_ancestors(model[0](x)))
        assert y.dtype == torch.bfloat16 and used_product == (side == 4)
        assert (y - model(x)).abs().max() < 0.05
    assert all(type(m) is nn.Conv2d for m in model)
    with precision(model, torch.device("cpu"), "float32"):
        assert type(model[0]) is nn.Conv2d and model(x).dtype == torch.float32


def _ancestors(tensor):
    names, open_nodes = set(), [tensor.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        names.add(type(node).__name__)
        open_nodes += [parent for parent, _ in node.next_functions if parent is not None]
    return names


def test_evaluation_counts_right_answers_and_restores_modes(digits):
    model = tiny()
    model[1].eval()
    result = evaluate(model, digits, batch=100)
    assert model.training and not model[1].training
    model.eval()
    with torch.no_grad():
        logits = model(digits.normalise(digits.x_test))
    assert torch.equal(result.correct, logits.argmax(1) == digits.y_test)
    assert result.accuracy == pytest.approx(100 * result.correct.sum().item() / 1397)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, digits.y_test).item(), rel=1e-5)
    with pytest.raises(ValueError, match="no test images"):
        evaluate(model, dataclasses.replace(digits, x_test=digits.x_test[:0], y_test=digits.y_test[:0]))


def test_recalibration_mends_spoiled_statistics(digits):
    model = tiny()
    fit(model, digits, Recipe(epochs=10, batch=32, lr=0.1, milestones=(0.6,)), seed=0)
    good = evaluate(model, digits).accuracy
    norm = model[1]
    norm.running_mean.add_(3)
    norm.running_var.mul_(20)
    spoiled = evaluate(model, digits).accuracy
    weights = [p.detach().clone() for p in model.parameters()]
    recalibrate_batch_norm(model, digits, images=400, batch=400)
    assert spoiled < good - 20 and evaluate(model, digits).accuracy > good - 3
    assert norm.momentum == 0.1 and norm.training
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    first = model[0](digits.normalise(digits.x_train))
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    recalibrate_batch_norm(model, digits, images=400, batch=100)  # cumulative: the average over the four batches
    variances = [part.var((0, 2, 3)) for part in first.split(100)]
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)


def test_checkpoint_returns_tensors_and_metadata(tmp_path):
    model = tiny().to(memory_format=torch.channels_last)
    model.twin = model[0]  # shared storage
    path = checkpoint.save(model, tmp_path / "deep" / "net.safetensors", {"epoch": 3, "loss": 0.1 + 0.2, "name": "vgg"})
    state, metadata = checkpoint.load(path)
    assert metadata == {"epoch": 3, "loss": 0.1 + 0.2, "name": "vgg"}
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_checkpoint_names_the_file(tmp_path, keep):
    path = checkpoint.save(tiny(), tmp_path / "net.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(checkpoint.CheckpointError, match=r"net\.safetensors is truncated") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(checkpoint.CheckpointError, match="is missing"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_checkpoint_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(checkpoint.CheckpointError, match="cannot be written"):
        checkpoint.save(tiny(), tmp_path / "file" / "net.safetensors")


def test_warm_up_covers_its_share_of_the_steps_and_no_more(digits):
    recipe = Recipe(2, 40, 0.1, momentum=0, weight_decay=0, milestones=(0.5,), warmup=0.2)  # ten steps an epoch
    model, seen = nn.Linear(1, 10, bias=False), []

    def objective(model, images, labels):  # a slope of 1: every step goes down by the learning rate
        seen.append(model.weight[0, 0].item())
        return model.weight.sum(), model.weight.new_zeros(len(labels), 10)

    fit(model, digits, recipe, seed=0, objective=objective)
    seen.append(model.weight[0, 0].item())
    steps = [before - after for before, after in zip(seen, seen[1:], strict=False)]
    assert steps == pytest.approx([0.01] * 4 + [0.1] * 6 + [0.01] * 10, abs=1e-5)
    with pytest.raises(ValueError, match="0 <= warmup < 1"):
        Recipe(1, 8, 0.1, warmup=1)


def test_a_sampler_composes_the_batches_and_the_default_is_every_image_once(digits):
    data, recipe = colours(41), Recipe(epochs=1, batch=8, lr=0.1, augment=True)
    generator = torch.Generator().manual_seed(derived_seed(5, 2))
    order = torch.arange(41)[torch.randperm(41, generator=generator)]
    draws = draw_crop_flip(41, 4, generator)
    seen = list(batches(data, torch.arange(41), recipe, seed=5, epoch=2))
    for start, (images, labels) in zip(range(0, 40, 8), seen, strict=True):
        chosen = order[start : start + 8]
        assert torch.equal(labels, data.y_train[chosen])
        assert torch.equal(images, data.normalise(crop_flip(data.x_train[chosen], draws[start : start + 8], 4)))

    def pairs(indices, generator):
        return [indices[:2], indices[2:3], indices[3:8]]

    own = [labels for _, labels in batches(data, torch.arange(10, 41), recipe, 0, 0, sampler=pairs)]
    assert [labels.tolist() for labels in own] == [data.y_train[10:12].tolist(), data.y_train[13:18].tolist()]
    sizes = []

    def counted(model, images, labels):
        sizes.append(len(labels))
        return cross_entropy(model, images, labels)

    fit(tiny(), digits, dataclasses.replace(recipe, augment=False), 0, objective=counted, sampler=pairs)
    assert sizes == [2, 5]


def test_notes_join_the_rows_and_outlive_an_interruption(digits, tmp_path):
    noted = iter([0.5, math.nan])
    recipe, path = Recipe(epochs=2, batch=200, lr=0.1), tmp_path / "run.safetensors"
    result = fit(tiny(), digits, recipe, 0, checkpoint=path, notes=lambda: {"extra": next(noted)})
    assert [row["extra"] for row in result.history] == [0.5, None]
    resumed = fit(tiny(), digits, recipe, 0, checkpoint=path, notes=lambda: pytest.fail("trained again"))
    assert [row["extra"] for row in resumed.history] == [0.5, None]
