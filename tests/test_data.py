"""Data sets: the embedded one is fixed, stored ones are checked, fetched ones arrive whole or not at all."""

import gzip
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from shrinkbook.training import data, download
from shrinkbook.training.data import DataError, load


def arrays(**changes):
    stream = np.random.default_rng(0)
    stored = {
        "x_train": stream.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8),
        "y_train": stream.integers(0, 10, 20),
        "x_test": stream.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
        "y_test": stream.integers(0, 10, 8),
    }
    return {key: value for key, value in (stored | changes).items() if value is not None}


def test_digits_split_is_balanced_complete_and_fixed():
    first, again = load("digits"), load("digits")
    assert first.x_train.shape == (400, 1, 8, 8) and first.x_test.shape == (1397, 1, 8, 8)
    assert first.y_train.bincount().tolist() == [40] * 10
    assert first.fingerprint == again.fingerprint == "376de8bb04ac765ee0baf38a57ae5a49c6273814ff0510ed5a91567ae2753d08"
    assert int(first.x_train.max()) == 240  # 16 * 15
    from sklearn.datasets import load_digits

    everything = np.concatenate([first.x_train.numpy(), first.x_test.numpy()]).reshape(1797, -1)
    original = (load_digits().images * 15).astype(np.uint8).reshape(1797, -1)
    assert sorted(map(bytes, everything)) == sorted(map(bytes, original))


def test_normalised_training_images_have_mean_0_and_sd_1():
    digits = load("digits")
    images = digits.normalise(digits.x_train)
    assert images.mean().abs() < 1e-5 and abs(images.std(unbiased=False) - 1) < 1e-5


def test_stored_colour_images_keep_their_channels_constants_and_note(tmp_path):
    stored = arrays()
    np.savez(tmp_path / "cifar10.npz", **stored)
    plain = load("cifar10", tmp_path)
    assert plain.note == ""
    (tmp_path / "cifar10.note.txt").write_text("99.84 % exact copy\n")
    cifar = load("cifar10", tmp_path)
    assert cifar.note == "99.84 % exact copy" and cifar.fingerprint == plain.fingerprint
    assert cifar.y_test.dtype == torch.int64
    assert cifar.x_train.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(cifar.x_train[3, 2], torch.from_numpy(stored["x_train"][3, :, :, 2]))
    expected = (stored["x_train"][3] / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    np.testing.assert_allclose(cifar.normalise(cifar.x_train)[3].permute(1, 2, 0), expected, atol=1e-5)
    other = load("cifar10", tmp_path, normalise=(data.IMAGENET_MEAN, data.IMAGENET_STD))
    assert other.mean == data.IMAGENET_MEAN and other.std == data.IMAGENET_STD
    with pytest.raises(DataError, match="3 means"):
        load("cifar10", tmp_path, normalise=((0.5,), (0.5,)))


def test_fingerprint_sees_one_changed_pixel(tmp_path):
    stored = arrays()
    np.savez(tmp_path / "cifar10.npz", **stored)
    before = load("cifar10", tmp_path).fingerprint
    stored["x_test"][0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "cifar10.npz", **stored)
    assert load("cifar10", tmp_path).fingerprint != before


def test_unknown_and_missing_data_name_the_choice_and_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="unknown data set 'cifar'.*digits, mnist, cifar10, cifar100, imagenet"):
        load("cifar")
    monkeypatch.setenv("SHRINKBOOK_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"cifar10\.npz is missing: run `make data DATA=cifar10`"):
        load("cifar10")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"y_test": None}, "has no y_test"),
        ({"x_train": np.zeros((20, 32, 32, 3), np.float32)}, "x_train is float32"),
        ({"x_test": np.zeros((8, 28, 28), np.uint8)}, r"x_test is uint8 \(8, 28, 28\), expected"),
        ({"y_train": np.zeros(19, np.int64)}, "20 images but y_train has 19 labels"),
        ({"y_train": np.full(20, 10)}, r"labels 10\.\.10, expected 0\.\.9"),
        ({"y_train": np.zeros(20)}, "y_train is float64"),
        ({"x_train": np.array([None] * 20)}, "cannot be read"),  # would need pickle
    ],
)
def test_wrong_content_is_one_line_with_the_remedy(tmp_path, changes, complaint):
    np.savez(tmp_path / "cifar10.npz", **arrays(**changes))
    with pytest.raises(DataError, match=complaint) as caught:
        load("cifar10", tmp_path)
    message = str(caught.value)
    assert "cifar10.npz" in message and "make data DATA=cifar10" in message and "\n" not in message


@pytest.mark.parametrize("keep", [0, 10, 5000, -30])
def test_truncated_file_is_a_data_error(tmp_path, keep):
    path = tmp_path / "cifar10.npz"
    np.savez_compressed(path, **arrays())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="truncated or damaged"):
        load("cifar10", tmp_path)


def test_flipped_byte_is_a_data_error(tmp_path):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    content[20_000] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated or damaged"):
        load("cifar10", tmp_path)


def publish(monkeypatch, name, folder, archives):
    """Serve archives from a folder as if it were the official site."""
    folder.mkdir()
    for file, content in archives.items():
        (folder / file).write_bytes(content)
    checksums = {file: hashlib.md5(content).hexdigest() for file, content in archives.items()}
    monkeypatch.setitem(download.ARCHIVES, name, (folder.as_uri() + "/", checksums))


def tar_of(members, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def cifar10_archive():
    stream = np.random.default_rng(1)
    parts = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = stream.integers(0, 256, (4, 3072), dtype=np.uint8)
        parts[name] = {b"data": pixels, b"labels": stream.integers(0, 10, 4).tolist()}
    archive = tar_of({f"cifar-10-batches-py/{name}": pickle.dumps(part) for name, part in parts.items()})
    return archive, parts


def test_fetched_cifar10_is_what_the_archive_holds(tmp_path, monkeypatch):
    archive, parts = cifar10_archive()
    publish(monkeypatch, "cifar10", tmp_path / "site", {"cifar-10-python.tar.gz": archive})
    path = download.fetch("cifar10", tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [path.name] == ["cifar10.npz"]
    cifar = load("cifar10", tmp_path / "cache")
    assert cifar.x_train.shape == (20, 3, 32, 32)
    second = parts["data_batch_2"]
    np.testing.assert_array_equal(cifar.x_train[5].numpy().ravel(), second[b"data"][1])
    assert cifar.y_train[4:8].tolist() == second[b"labels"]
    np.testing.assert_array_equal(cifar.x_test[3].numpy().ravel(), parts["test_batch"][b"data"][3])


def test_fetched_mnist_is_what_the_archives_hold(tmp_path, monkeypatch):
    stream = np.random.default_rng(2)
    images = stream.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    labels = np.arange(6, dtype=np.uint8)

    def idx(array):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        return gzip.compress(header + array.tobytes())

    files = dict(zip(download.ARCHIVES["mnist"][1], map(idx, (images, labels, images[:2], labels[:2])), strict=True))
    publish(monkeypatch, "mnist", tmp_path / "site", files)
    download.fetch("mnist", tmp_path)
    mnist = load("mnist", tmp_path)
    np.testing.assert_array_equal(mnist.x_train[:, 0].numpy(), images)
    assert mnist.y_test.tolist() == [0, 1]


def test_failed_fetch_is_one_line_and_keeps_the_old_file(tmp_path, monkeypatch):
    archive, _ = cifar10_archive()
    publish(monkeypatch, "cifar10", tmp_path / "site", {"cifar-10-python.tar.gz": archive})
    cache = tmp_path / "cache"
    before = download.fetch("cifar10", cache).read_bytes()
    (tmp_path / "site" / "cifar-10-python.tar.gz").write_bytes(archive[:-10])
    with pytest.raises(DataError, match="wrong checksum"):
        download.fetch("cifar10", cache)
    (tmp_path / "site" / "cifar-10-python.tar.gz").unlink()
    with pytest.raises(DataError, match="cannot be fetched.*check the network") as caught:
        download.fetch("cifar10", cache)
    assert "\n" not in str(caught.value)
    assert [p.name for p in cache.iterdir()] == ["cifar10.npz"] and (cache / "cifar10.npz").read_bytes() == before


def test_imagenet_needs_the_users_archives_and_is_numbered_by_wordnet_id(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="ILSVRC2012_devkit_t12.tar.gz is missing: get it from image-net.org"):
        download.fetch("imagenet", tmp_path)
    from scipy.io import savemat

    synsets = np.array(
        [(1, "n20", 0), (2, "n10", 0), (3, "n05", 2)],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    root = "ILSVRC2012_devkit_t12/data/"
    devkit = tar_of({root + "meta.mat": meta.getvalue(), root + "ILSVRC2012_validation_ground_truth.txt": b"1\n2\n"})
    jpegs = {}
    for number, colour in ((2, (0, 0, 250)), (1, (250, 0, 0))):  # out of order in the archive
        file = io.BytesIO()
        Image.new("RGB", (300, 400), colour).save(file, "JPEG")
        jpegs[f"ILSVRC2012_val_0000000{number}.JPEG"] = file.getvalue()
    names = list(download.ARCHIVES["imagenet"][1])
    contents = dict(zip(names, (devkit, tar_of(jpegs, "w")), strict=True))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setitem(
        download.ARCHIVES, "imagenet", ("", {name: hashlib.md5(c).hexdigest() for name, c in contents.items()})
    )
    download.fetch("imagenet", tmp_path)
    imagenet = load("imagenet", tmp_path)
    assert imagenet.y_test.tolist() == [1, 0] and len(imagenet.x_train) == 0
    assert imagenet.x_test[0, :, 112, 112].tolist()[0] > 240 and imagenet.x_test[1, :, 112, 112].tolist()[2] > 240


def test_resize_crop_takes_the_centre():
    ramp = np.tile(np.linspace(0, 255, 512, dtype=np.uint8)[None, :, None], (256, 1, 3))
    image = download.resize_crop(Image.fromarray(ramp))
    assert image.shape == (224, 224, 3)
    np.testing.assert_array_equal(image, ramp[16:240, 144:368])
