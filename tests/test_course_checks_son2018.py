"""The checks of the assignment on kernel clustering: the library passes, a student's mistake is told in a sentence."""

import math
from functools import partial

import pytest
import torch

from shrinkbook.course.checks import son2018 as check
from shrinkbook.methods.kernel_clustering import normalise
from shrinkbook.methods.kernel_kmeans import kmeans
from shrinkbook.methods.kernel_lloyd import assign, update
from shrinkbook.methods.kernel_sizes import bits, index_bits
from shrinkbook.methods.kernel_transforms import inverse, permutations, variants

splits = partial(check.splits_into_units_and_scales, count=7, side=3, seed=0)
symmetric = partial(check.are_the_symmetries, side=3, count=8)
undoes = partial(check.undoes, count=4, size=9, seed=0)
rows = partial(check.all_variants, k=3, side=3, count=8, seed=0)
nearest = partial(check.assigns_the_nearest, n=60, k=5, side=3, count=8, seed=0)
averages = partial(check.averages_the_members, n=60, k=5, side=3, count=8, seed=0)
indices = partial(check.index_bits_suffice, most=70)
sizes = partial(check.bits_add_up, kernels=1000, k=128, area=9, transforms=2, scaled=True)
filled = partial(check.empty_clusters_are_filled, count=8)


def steps(pair):
    for count in (1, 8):
        check.steps_never_cost_more(*pair, n=200, k=6, side=3, count=count, seed=0)


def whole(points, centroids, perms):
    found = kmeans(points, len(centroids), perms, start=centroids)
    return found.centroids.double(), found.labels, found.transforms


RIGHT = [
    (splits, normalise),
    (partial(splits, side=5), normalise),
    (check.normalises_zeros, normalise),
    (symmetric, permutations),
    (check.other_sets_are_refused, permutations),
    (undoes, inverse),
    (rows, variants),
    (nearest, assign),
    (partial(nearest, count=1), assign),
    (averages, update),
    (partial(averages, count=2, side=5), update),
    (steps, (assign, update)),
    (indices, index_bits),
    (sizes, bits),
    (partial(sizes, scaled=False), bits),
    (filled, whole),
]


@pytest.mark.parametrize(("check", "function"), RIGHT)
def test_the_library_passes(check, function):
    check(function)


def scaled_by(scales):
    return lambda kernels: (kernels / scales(kernels)[:, None, None], scales(kernels))


def norms(kernels):
    return kernels.flatten(1).norm(dim=1)


def signs(kernels):
    return kernels[:, kernels.shape[1] // 2, kernels.shape[2] // 2].sign()


def flips_only(side, count):
    square = torch.arange(side * side).view(side, side)
    images = [square, square.flip(1), square.flip(0), square.flip(0, 1), square.T, square.T, square.T, square.T]
    return torch.stack(images[:count]).flatten(1)


def assign_without_transforms(points, centroids, perms):
    labels = torch.cdist(points, centroids).argmin(1)
    return labels, torch.zeros_like(labels)


def assign_by_columns(points, centroids, perms):
    codes = assign(points, centroids, perms)
    codes = codes[0] * len(perms) + codes[1]
    return codes % len(centroids), codes // len(centroids)


def assign_to_the_farthest(points, centroids, perms):
    far = torch.cdist(points, variants(centroids, perms)).argmax(1)
    return far // len(perms), far % len(perms)


def update_by(turn, empty_stays=True):
    def update(points, labels, transforms, centroids, perms):
        turned = turn(points, transforms, perms)
        rows = centroids.clone() if empty_stays else torch.zeros_like(centroids)
        for label in labels.unique():
            rows[label] = turned[labels == label].mean(0)
        return rows

    return update


def undone(points, transforms, perms):
    return points.gather(1, inverse(perms)[transforms])


def update_in_place(points, labels, transforms, centroids, perms):
    centroids.copy_(update(points, labels, transforms, centroids, perms))
    return centroids


def update_to_a_sum(points, labels, transforms, centroids, perms):
    turned = undone(points, transforms, perms)
    return torch.zeros_like(centroids).index_add(0, labels, turned)


def counted(each, codebook):
    def bits(kernels, k, area=9, transforms=1, scaled=True, codebook_bits=32):
        return kernels * each(k, transforms, scaled) + codebook(k, area, transforms, codebook_bits)

    return bits


def right_each(k, transforms, scaled):
    return index_bits(k, transforms) + 16 * scaled


def right_codebook(k, area, transforms, codebook_bits):
    return k * area * codebook_bits


def lloyd_without_filling(points, centroids, perms):
    for _ in range(20):
        labels, transforms = assign(points, centroids, perms)
        centroids = update(points, labels, transforms, centroids, perms)
    return centroids, labels, transforms


WRONG = [
    (splits, scaled_by(norms), "the sign of the centre is missing"),
    (splits, scaled_by(lambda w: signs(w) * w.abs().sum((1, 2))), "Euclidean"),
    (splits, scaled_by(lambda w: signs(w) * norms(w) ** 2), "square root"),
    (splits, scaled_by(lambda w: w.sum((1, 2)).sign() * norms(w)), "not of the sum"),
    (
        splits,
        lambda w: (w / norms(w)[:, None, None], signs(w) * norms(w)),
        "the units: the sign of the centre",
    ),
    (splits, lambda w: None, "should give two tensors"),
    (check.normalises_zeros, scaled_by(lambda w: signs(w) * norms(w)), "a kernel with centre 0"),
    (
        check.normalises_zeros,
        scaled_by(lambda w: torch.where(signs(w) < 0, -1.0, 1.0) * norms(w)),
        "unit of a kernel of zeros .* is not finite",
    ),
    (symmetric, lambda side, count: permutations(side, count).flip(0), "row 0 .*; the identity is"),
    (symmetric, lambda side, count: permutations(side, count)[:, None], "has shape"),
    (symmetric, lambda side, count: permutations(side, count).float(), "indices are int64"),
    (symmetric, flips_only, "only 5 different rows"),
    (symmetric, lambda side, count: permutations(side, count)[[0, 2, 1, 3, 4, 5, 6, 7]], "the left-right flip is"),
    (check.other_sets_are_refused, flips_only, r"permutations\(3, 3\) should raise"),
    (undoes, lambda perms: perms, "a flip undoes itself"),
    (undoes, lambda perms: perms.flip(1), "expected"),
    (rows, lambda centroids, perms: centroids[:, perms].transpose(0, 1).flatten(0, 1), "the other way round"),
    (rows, lambda centroids, perms: centroids[:, perms], "has shape"),
    (nearest, assign_without_transforms, "only the first transform"),
    (nearest, lambda *given: assign(*given)[::-1], "exchanged"),
    (nearest, lambda p, c, perms: (torch.cdist(p, variants(c, perms)).argmin(1),) * 2, "row of variants"),
    (nearest, assign_by_columns, "the labels is"),
    (nearest, assign_to_the_farthest, "the labels is"),
    (averages, update_by(lambda points, transforms, perms: points), "not undone"),
    (averages, update_by(lambda points, transforms, perms: points.gather(1, perms[transforms])), "applied once more"),
    (averages, update_by(undone, empty_stays=False), "should stay where it is"),
    (averages, update_in_place, "make a new tensor"),
    (averages, update_to_a_sum, "is .*; expected"),
    (steps, (assign, update_by(lambda points, transforms, perms: points)), "update raised"),
    (steps, (assign_to_the_farthest, update), "assign raised"),
    (steps, (assign, lambda p, labels, t, centroids, perms: centroids), "after six steps"),
    (indices, lambda k, transforms=1: int(math.log2(k)) + int(math.log2(transforms)), "round log2 up"),
    (indices, lambda k, transforms=1: k.bit_length() + (transforms - 1).bit_length(), "numbers from 0 to"),
    (indices, lambda k, transforms=1: index_bits(k), "the transform needs bits too"),
    (sizes, counted(right_each, lambda *_: 0), "the codebook is missing"),
    (sizes, counted(right_each, lambda k, a, t, b: k * a * t * b), "transforms are not stored"),
    (sizes, counted(right_each, lambda k, a, t, b: k * a), "have 32 bits"),
    (sizes, counted(right_each, lambda k, a, t, b: k * a * 32), "codebook_bits=16"),
    (sizes, counted(lambda k, t, scaled: index_bits(k, t), right_codebook), "scales are missing|only if scaled"),
    (sizes, counted(lambda k, t, scaled: index_bits(k, t) + 32 * scaled, right_codebook), "a scale takes 16"),
    (
        partial(sizes, scaled=False),
        counted(lambda k, t, scaled: index_bits(k, t) + 16, right_codebook),
        "only if scaled",
    ),
    (filled, lloyd_without_filling, "members; move an empty one"),
]


@pytest.mark.parametrize(("check", "function", "sentence"), WRONG)
def test_a_mistake_is_told(check, function, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check(function)
