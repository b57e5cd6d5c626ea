"""Class-uniform batches: k images of each class that is drawn, every image about as often; superclasses by k-means."""

import pytest
import torch

from shrinkbook.methods.batch_samplers import class_uniform, same_class_pairs, superclasses


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LABELS = torch.arange(230) % 10  # 23 images a class
KEEP = torch.arange(0, 230)[torch.arange(230) % 7 != 3]  # a training part of them


@pytest.mark.parametrize("k", [4, 5, 8, 20])
def test_every_batch_holds_k_images_of_each_class_it_draws(k):
    labels = torch.arange(480) % 10
    batches = class_uniform(labels, 40, k)(torch.arange(480), generator())
    assert len(batches) == 12
    for batch in batches:
        assert len(batch.unique()) == 40
        classes, counts = labels[batch].unique(return_counts=True)
        assert len(classes) == 40 // k and set(counts.tolist()) == {k}
        assert same_class_pairs(labels[batch]) == 40 * (k - 1) // 2


def test_all_images_of_a_class_are_seen_before_one_comes_again_and_no_others():
    batches = class_uniform(LABELS, 30, 3)(KEEP, generator())  # all ten classes in every batch
    assert len(batches) == 7  # 197 images, the last batch is filled up
    seen = torch.cat(batches)
    assert set(seen.tolist()) <= set(KEEP.tolist())
    for label in range(10):
        own = seen[LABELS[seen] == label]
        members = int((LABELS[KEEP] == label).sum())
        assert len(own[:members].unique()) == min(members, len(own))


def test_the_generator_alone_decides():
    sampler = class_uniform(LABELS, 20, 4)
    one, same, other = (torch.cat(sampler(KEEP, generator(seed))) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    drawn = torch.stack([LABELS[batch].unique() for seed in range(60) for batch in sampler(KEEP, generator(seed))])
    counts = drawn.flatten().bincount(minlength=10)
    assert counts.min() > 0.8 * counts.float().mean()  # no class is preferred


def test_few_pairs_of_one_class_in_uniform_batches_many_in_class_uniform_ones():
    """With 100 classes n (n - 1) / (2 K) = 7.8 of 780 pairs at n = 40; with k = 4 it is 60."""
    labels = torch.arange(5000) % 100
    uniform = [same_class_pairs(labels[torch.randperm(5000, generator=generator(seed))[:40]]) for seed in range(400)]
    assert sum(uniform) / 400 == pytest.approx(7.8, abs=0.4)
    assert {
        same_class_pairs(labels[batch]) for batch in class_uniform(labels, 40, 4)(torch.arange(5000), generator())
    } == {60}


def test_superclasses_are_the_clusters_of_the_features():
    centres = 5 * torch.eye(3)
    member = torch.arange(60) % 3
    features = centres[member] + 0.1 * torch.randn(60, 3, generator=generator())
    found = superclasses(features, 3)
    assert all(len(found[member == one].unique()) == 1 for one in range(3)) and len(found.unique()) == 3
    assert torch.equal(found, superclasses(features, 3))
    batches = class_uniform(found, 12, 4)(torch.arange(60), generator())
    assert all(member[batch].bincount().tolist() == [4, 4, 4] for batch in batches)


def test_small_superclasses_go_to_their_neighbours():
    features = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [4.0]])
    three = superclasses(features, 3)
    assert len(three.unique()) == 3 and three.bincount().min() == 1
    two = superclasses(features, 3, smallest=2)
    assert sorted(two.unique(return_counts=True)[1].tolist()) == [3, 4]
    assert two[6] == two[3] and torch.equal(two[:6], three[:6])
    with pytest.raises(ValueError, match="none of 3 has 6 images; make fewer"):
        superclasses(features, 3, smallest=6)


def test_what_a_batch_cannot_hold_is_named():
    with pytest.raises(ValueError, match="k = 3 does not divide a batch of 40; take a k that does"):
        class_uniform(LABELS, 40, 3)
    with pytest.raises(ValueError, match="does not divide"):
        class_uniform(LABELS, 40, 0)
    with pytest.raises(ValueError, match="needs 20 classes, there are 10; raise k"):
        class_uniform(LABELS, 40, 2)(KEEP, generator())
    with pytest.raises(ValueError, match="k = 20, but a class has only 19 images; lower k"):
        class_uniform(LABELS, 40, 20)(KEEP, generator())
    with pytest.raises(ValueError, match="61 superclasses of 60 images"):
        superclasses(torch.zeros(60, 3), 61)
