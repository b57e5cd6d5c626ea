"""k-means on kernels: the compiled loop equals a plain one, transforms form groups, empty clusters are filled."""

import itertools
import json

import pytest
import torch
from sklearn.cluster import KMeans as ScikitKMeans

from shrinkbook.bench import clustering as clustering_bench
from shrinkbook.course.checks import son2018 as checks
from shrinkbook.methods.kernel_kmeans import kmeans
from shrinkbook.methods.kernel_lloyd import assign, update
from shrinkbook.methods.kernel_transforms import TRANSFORM_SETS, inverse, permutations, variants
from shrinkbook.training import checkpoint


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(points, start, perms, max_iterations):
    """Lloyd's iterations step by step in double precision, and clusters without members filled."""
    points, centroids = points.double(), start.double().clone()
    labels, transforms, iterations = torch.full((len(points),), -1), torch.full((len(points),), -1), 0
    while True:
        before = labels, transforms
        labels, transforms = assign(points, centroids, perms)
        converged = torch.equal(labels, before[0]) and torch.equal(transforms, before[1])
        if converged or iterations == max_iterations:
            inertia = checks.cost(points, labels, transforms, centroids, perms)
            return centroids, labels, transforms, inertia, iterations, converged
        iterations += 1
        centroids = update(points, labels, transforms, centroids, perms)
        far = (points - centroids[labels].gather(1, perms[transforms])).square().sum(1)
        for cluster in range(len(centroids)):
            if cluster not in labels:
                centroids[cluster] = points[far.argmax()]
                moved = variants(centroids[cluster, None], perms)
                far = torch.minimum(far, torch.cdist(points, moved).square().amin(1))


def assert_same(found, expected):
    centroids, labels, transforms, inertia, iterations, converged = expected
    assert torch.equal(found.labels, labels) and torch.equal(found.transforms, transforms)
    torch.testing.assert_close(found.centroids.double(), centroids, rtol=1e-5, atol=1e-6)
    assert found.inertia == pytest.approx(inertia, rel=1e-6)
    assert (found.iterations, found.converged) == (iterations, converged)


@pytest.mark.parametrize("transforms", TRANSFORM_SETS)
@pytest.mark.parametrize("side", [1, 3, 4, 5, 7])
def test_transforms_are_those_of_the_paper_and_closed_under_composition_and_inverse(side, transforms):
    if side > 1:  # one pixel has one symmetry
        checks.are_the_symmetries(permutations, side, transforms)
    perms = permutations(side, transforms)
    rows = {tuple(row.tolist()) for row in perms}
    assert torch.equal(perms, permutations(side, 8)[:transforms])
    assert side % 2 == 0 or (perms[:, side * side // 2] == side * side // 2).all()  # the centre stays
    assert rows == {tuple(row.tolist()) for row in inverse(perms)}
    assert rows == {tuple(a[b].tolist()) for a, b in itertools.product(perms, perms)}
    checks.all_variants(variants, 4, side, transforms, seed=1)


def test_inverses_undo_any_permutations():
    checks.undoes(inverse, count=8, size=25, seed=0)


@pytest.mark.parametrize(("side", "transforms"), [(3, 1), (3, 2), (3, 8), (5, 4), (7, 8)])
def test_one_plain_step(side, transforms):
    checks.assigns_the_nearest(assign, 80, 6, side, transforms, seed=2)
    checks.averages_the_members(update, 80, 6, side, transforms, seed=2)
    checks.steps_never_cost_more(assign, update, 200, 6, side, transforms, seed=2)


@pytest.mark.parametrize("count", [0, 3, 16])
def test_unknown_transform_sets_are_refused(count):
    with pytest.raises(ValueError, match=f"transforms = {count} .*choose from 1, 2, 4, 8"):
        permutations(3, count)


@pytest.mark.parametrize(
    ("side", "transforms", "k", "n"),
    [(3, 1, 7, 900), (3, 2, 8, 513), (3, 4, 5, 512), (3, 8, 6, 700), (5, 8, 3, 300), (7, 1, 5, 300), (7, 8, 4, 300)],
)
@pytest.mark.parametrize("max_iterations", [3, 200])
def test_compiled_iterations_equal_the_plain_ones(side, transforms, k, n, max_iterations):
    points, perms = drawn(n, side * side), permutations(side, transforms)
    start = points[10 : 10 + k]
    found = kmeans(points, k, perms, start=start, max_iterations=max_iterations)
    assert_same(found, plain(points, start, perms, max_iterations))


@pytest.mark.parametrize("size", [1, 4, 26, 51, 121])
def test_any_number_of_dimensions(size):
    points = drawn(300, size)
    found = kmeans(points, 5, start=points[:5], max_iterations=4)
    assert_same(found, plain(points, points[:5], torch.arange(size)[None], 4))


def test_same_inertia_as_scikit_learn():
    points = torch.nn.functional.normalize(drawn(5000, 9))
    other = ScikitKMeans(32, init=points[:32].numpy(), n_init=1, tol=0, max_iter=20, algorithm="lloyd")
    other.fit(points.numpy())
    found = kmeans(points, 32, start=points[:32], max_iterations=20)
    assert found.inertia == pytest.approx(other.inertia_, rel=1e-4)
    assert (found.labels.numpy() == other.labels_).mean() > 0.99


@pytest.mark.parametrize("start", ["random", "k-means++"])
def test_threads_change_nothing_and_the_seed_decides(start):
    points, perms, found = drawn(20_000, 9), permutations(3, 4), []
    before, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(kmeans(points, 20, perms, start=start, seed=5, max_iterations=6))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(found[0].centroids, other.centroids) and torch.equal(found[0].labels, other.labels)
        assert torch.equal(found[0].transforms, other.transforms) and found[0].inertia == other.inertia
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(
        found[0].centroids, kmeans(points, 20, perms, start=start, seed=6, max_iterations=6).centroids
    )


@pytest.mark.parametrize("transforms", [1, 8])
@pytest.mark.parametrize("max_iterations", [2, 500])
def test_labels_are_the_nearest_of_the_centroids_returned(transforms, max_iterations):
    points, perms = drawn(800, 9), permutations(3, transforms)
    found = kmeans(points, 10, perms, seed=1, max_iterations=max_iterations)
    assert found.converged == (max_iterations == 500)
    squared = torch.cdist(points.double(), variants(found.centroids, perms).double()).square()
    own = squared.gather(1, (found.labels * transforms + found.transforms)[:, None])[:, 0]
    torch.testing.assert_close(own, squared.amin(1), rtol=0, atol=1e-5)
    assert found.inertia == pytest.approx(float(own.sum()), rel=1e-9)


def test_planted_clusters_are_found_up_to_a_transform():
    perms = permutations(3, 8)
    centres = 10 * drawn(6, 9)
    labels, turns = (torch.randint(0, high, (600,), generator=torch.Generator().manual_seed(high)) for high in (6, 8))
    points = centres[labels].gather(1, perms[turns]) + 0.01 * drawn(600, 9, seed=1)
    found = kmeans(points, 6, perms, start="k-means++")
    assert found.converged and found.inertia < 600 * 9 * 0.01**2 * 1.2
    pairs = set(zip(labels.tolist(), found.labels.tolist(), strict=True))
    assert len(pairs) == 6  # one to one
    for true, label in pairs:
        distances = (found.centroids[label][perms] - centres[true]).norm(dim=1)
        assert distances.min() < 0.01
    assert kmeans(points, 6, start="k-means++").inertia > 100 * found.inertia


def test_more_transforms_and_more_iterations_never_cost_more():
    points = torch.nn.functional.normalize(drawn(2000, 9))
    costs = [kmeans(points, 8, permutations(3, count), start=points[:8]).inertia for count in TRANSFORM_SETS]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    steps = [kmeans(points, 8, start=points[:8], max_iterations=count).inertia for count in range(1, 8)]
    assert steps == sorted(steps, reverse=True)


def test_an_empty_cluster_moves_to_the_farthest_point():
    points = torch.cat([0.1 * drawn(50, 9), 5 + 0.1 * drawn(50, 9, seed=1), torch.full((1, 9), 40.0)])
    start = torch.stack([points[0], points[60], torch.full((9,), 1e4), torch.full((9,), -1e4)])
    found = kmeans(points, 4, start=start)
    assert found.labels.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(found.centroids[2], points[100])
    for transforms in (1, 8):
        perms = permutations(3, transforms)
        assert_same(kmeans(points, 4, perms, start=start), plain(points, start, perms, 100))


def test_fewer_different_points_than_centroids():
    points = drawn(3, 9).repeat(20, 1)
    for start in ("random", "k-means++", points[:5]):
        found = kmeans(points, 5, start=start)
        assert found.converged and found.inertia == 0
        assert torch.equal(found.centroids[found.labels], points)


def test_equal_distances_go_to_the_lowest_index():
    points = drawn(20, 9)
    found = kmeans(points, 3, start=torch.stack([points[0], points[0], points[0]]), max_iterations=1)
    assert found.labels.unique().numel() > 1  # refilled
    symmetric = torch.ones(4, 9)
    found = kmeans(symmetric, 2, permutations(3, 8), start=torch.ones(2, 9))
    assert found.labels.tolist() == [0] * 4 and found.transforms.tolist() == [0] * 4


def test_as_many_centroids_as_points_and_only_one():
    points = drawn(30, 9)
    every = kmeans(points, 30, seed=3)
    assert every.inertia == 0 and sorted(every.labels.tolist()) == list(range(30))
    one = kmeans(points, 1)
    torch.testing.assert_close(one.centroids[0], points.mean(0))
    assert one.inertia == pytest.approx(float((points - points.mean(0)).square().sum()), rel=1e-5)


def test_k_means_plus_plus_starts_with_points_far_from_each_other():
    crowd, far = drawn(1, 9) + 1e-4 * drawn(10_000, 9), 20 * drawn(9, 9, seed=1)
    points, perms = torch.cat([far[:3], crowd[:5000], far[3:6], crowd[5000:], far[6:]]), permutations(3, 8)
    lonely = (points - crowd[0]).norm(dim=1) > 1
    for seed in range(5):
        found = kmeans(points, 10, start="k-means++", seed=seed)
        assert found.labels[lonely].unique().numel() == 9 and found.inertia < 1e-3
        assert found.iterations == 1  # nothing had to move
    turned = torch.cat([far[:, perm] for perm in perms])  # eight copies of nine points, the same under TIC8
    for seed in range(5):
        found = kmeans(turned, 9, perms, start="k-means++", seed=seed)
        assert found.inertia < 1e-6 and found.iterations == 1


def test_points_of_other_types_and_strides_are_left_as_they_are():
    points = drawn(9, 400).double().T
    copy = points.clone()
    start = points[:4].clone()
    found = kmeans(points, 4, start=start)
    assert torch.equal(points, copy) and torch.equal(start, copy[:4]) and found.centroids.dtype == torch.float32
    assert torch.equal(found.centroids, kmeans(copy.float().contiguous(), 4, start=start.float()).centroids)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (drawn(10), {}, r"points must be floating \(n, d\)"),
        (drawn(0, 9), {}, r"points must be floating \(n, d\)"),
        (torch.ones(10, 9, dtype=torch.int64), {}, "points must be floating"),
        (torch.full((10, 9), float("nan")), {}, "NaN or infinity"),
        (torch.tensor([[float("-inf")] * 9] * 4), {}, "NaN or infinity"),
        (torch.full((10, 9), 1e30), {}, "too large for float32"),
        (drawn(10, 9), {"k": 0}, "k = 0 centroids for 10 points"),
        (drawn(10, 9), {"k": 11}, "k = 11 centroids for 10 points; give 1 to 10"),
        (drawn(10, 9), {"max_iterations": 0}, "max_iterations = 0"),
        (drawn(10, 9), {"perms": torch.zeros(2, 9, dtype=torch.int64)}, "permutation of 0 to 8"),
        (drawn(10, 9), {"perms": permutations(5, 2)}, "permutation of 0 to 8"),
        (drawn(10, 9), {"start": "kmeans"}, "unknown start 'kmeans'"),
        (drawn(10, 9), {"start": drawn(3, 9)}, r"start must be finite \(2, 9\) centroids, got \(3, 9\)"),
        (drawn(10, 9), {"start": torch.full((2, 9), float("nan"))}, "start must be finite"),
    ],
)
def test_bad_input_is_refused_in_one_line(points, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        kmeans(points, **({"k": 2} | options))
    assert "\n" not in str(caught.value)


def test_the_bench_compares_the_same_clustering(scratch, capsys):
    weights = drawn(30, 20, 3, 3)
    weights[0, :5] = 0
    path = checkpoint.save({"conv": weights, "point": drawn(9, 9, 1, 1)}, scratch / "net.safetensors")
    assert clustering_bench.main(["--weights", str(path), "--iterations", "2"]) == 0
    assert "595 stored kernels" in capsys.readouterr().out
    cases = json.loads((scratch / "build" / "bench-clustering.json").read_text())["cases"]
    assert cases["plain"]["inertia"] == pytest.approx(1, rel=1e-4) and cases["TIC8"]["inertia"] > 1
    for case in cases.values():
        ratios = sorted(pair["sklearn"] / pair["ours"] for pair in case["rounds"])
        assert (case["low"], case["ratio"], case["high"]) == (ratios[0], ratios[len(ratios) // 2], ratios[-1])
    with pytest.raises(SystemExit):
        clustering_bench.main(["--weights", str(checkpoint.save({"conv": weights[:5]}, path))])
    assert "fewer 3x3 kernels than centroids" in capsys.readouterr().err
