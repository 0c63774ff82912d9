"""The loaders, on tiny files in each official format, and the batches."""

import hashlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from l2lkit.data import batches, default_data_dir, digits
from l2lkit.data import load as load_dataset
from l2lkit.data.batches import crop_and_flip, places
from l2lkit.data.dataset import CIFAR10_CLASSES
from l2lkit.errors import InputError

RNG = np.random.default_rng(7)


def pixels(*shape):
    return RNG.integers(256, size=shape, dtype=np.uint8)


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def picture(array, kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def tree(root: Path, classes=("cat", "dog"), count=3, test="test", kind="PNG", shape=(6, 5, 3)):
    """Write split/class/image files; returns the pixels by path."""
    made = {}
    for split in ("train", test):
        for label in classes:
            for i in range(count):
                path = f"{split}/{label}/{i:04d}.{kind.lower()}"
                made[path] = pixels(*shape)
                write(root / path, picture(made[path], kind))
    return made


def zipped(root: Path, top: str = "") -> Path:
    archive = root.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in root.rglob("*"):
            file.write(path, f"{top}{path.relative_to(root)}")
    return archive


def fake_cifar(monkeypatch, root: Path, kind, label_key: str, labels):
    """CIFAR's pickled batches of two images each, registered as the official ones."""
    folder, blocks = root / kind.base_folder, {}

    def entry(name):
        blocks[name] = pixels(2, 3 * 32 * 32), [labels.pop(0) for _ in range(2)]
        content = {"data": blocks[name][0], label_key: blocks[name][1]}
        return [name, write(folder / name, pickle.dumps(content))]

    monkeypatch.setattr(kind, "train_list", [entry(name) for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [entry(name) for name, _ in kind.test_list])
    names = [f"class {i}" for i in range(10 if kind is datasets.CIFAR10 else 100)]
    meta = dict(kind.meta)
    meta["md5"] = write(folder / meta["filename"], pickle.dumps({meta["key"]: names}))
    monkeypatch.setattr(kind, "meta", meta)
    return blocks, tuple(names)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_batches(monkeypatch, tmp_path, name):
    kind, key = {
        "cifar10": (datasets.CIFAR10, "labels"),
        "cifar100": (datasets.CIFAR100, "fine_labels"),
    }[name]
    blocks, names = fake_cifar(
        monkeypatch, tmp_path, kind, key, [1, 0, 9, 3, 2, 2, 7, 5, 4, 8, 6, 0]
    )
    data = load_dataset(name, tmp_path)
    train = [blocks[file] for file, _ in kind.train_list]
    assert data.class_names == names and data.augment
    # a row holds the red plane, then green, then blue, each row by row
    assert data.train_images[1, 2, 4, 5] == train[0][0][1, 2 * 1024 + 4 * 32 + 5]
    assert data.train_images.flatten(1).tolist() == np.concatenate([b[0] for b in train]).tolist()
    assert data.train_labels.tolist() == sum((b[1] for b in train), [])
    assert data.test_labels.tolist() == blocks[kind.test_list[0][0]][1]

    (tmp_path / kind.base_folder / kind.test_list[0][0]).write_bytes(b"damaged")
    with pytest.raises(InputError, match=f"{kind.test_list[0][0]} is damaged"):
        load_dataset(name, tmp_path)


def fake_svhn(monkeypatch, root: Path, train=(10, 1, 9), test=(5, 10)) -> dict[str, np.ndarray]:
    splits, arrays = dict(datasets.SVHN.split_list), {}
    for split, labels in (("train", train), ("test", test)):
        arrays[split] = pixels(32, 32, 3, len(labels))
        file = root / splits[split][1]
        savemat(file, {"X": arrays[split], "y": np.array(labels, np.uint8)[:, None]})
        splits[split] = [*splits[split][:2], hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    return arrays


def test_svhn_mat(monkeypatch, tmp_path):
    arrays = fake_svhn(monkeypatch, tmp_path)
    data = load_dataset("svhn", tmp_path)
    assert data.train_labels.tolist() == [0, 1, 9] and data.test_labels.tolist() == [5, 0]
    assert data.train_images[2, 1, 30, 4] == arrays["train"][30, 4, 1, 2]
    assert not data.augment and data.title == "SVHN"


def fake_mnist(root: Path, labels=(3, 9, 0)) -> np.ndarray:
    images = pixels(len(labels), 28, 28)
    for split in ("train", "t10k"):
        raw = root / "MNIST" / "raw"
        header = struct.pack(">iiii", 2051, *images.shape)
        write(raw / f"{split}-images-idx3-ubyte", header + images.tobytes())
        write(raw / f"{split}-labels-idx1-ubyte", struct.pack(">ii", 2049, 3) + bytes(labels))
    return images


def test_mnist_idx(tmp_path):
    images = fake_mnist(tmp_path)
    data = load_dataset("mnist", tmp_path)
    assert data.train_images.tolist() == images[:, None].tolist() and data.channels == 1
    assert data.test_labels.tolist() == [3, 9, 0] and data.test_labels.dtype == torch.int64

    fake_mnist(tmp_path, labels=(3, 10, 0))
    with pytest.raises(InputError, match="labels run from 0 to 10, outside 0 to 9"):
        load_dataset("mnist", tmp_path)
    broken = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    for content in (broken.read_bytes()[:-1], b""):
        broken.write_bytes(content)
        with pytest.raises(InputError, match="t10k-images-idx3-ubyte is damaged"):
            load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a top folder"])
@pytest.mark.parametrize("test", ["test", "val", "valid"])
def test_image_tree(tmp_path, form, test):
    made = tree(tmp_path / "pets", test=test)
    write(tmp_path / "pets" / "README.txt", b"not read")
    write(tmp_path / "pets" / "train" / "cat" / ".DS_Store", b"not read")
    place = tmp_path / "pets"
    if form != "folder":
        place = zipped(place, top="pets/" if "top" in form else "")
    data = load_dataset("pets", place)
    assert (data.title, data.class_names, data.augment) == ("pets", ("cat", "dog"), True)
    for split, images, labels in (
        ("train", data.train_images, data.train_labels),
        (test, data.test_images, data.test_labels),
    ):
        got = {
            (data.class_names[y], x.permute(1, 2, 0).numpy().tobytes())
            for x, y in zip(images, labels, strict=True)
        }
        assert got == {
            (p.split("/")[1], a.tobytes()) for p, a in made.items() if p.startswith(split)
        }


def test_order_is_a_fixed_mix_of_the_classes(tmp_path):
    tree(tmp_path / "a", count=20)
    first, again = load_dataset("a", tmp_path / "a"), load_dataset("a", zipped(tmp_path / "a"))
    assert first.fingerprint == again.fingerprint
    part = first.subset(10, 50)
    assert part.train_labels.unique().tolist() == [0, 1]
    assert part.title == "a (first 10 training, 40 test images)"
    assert part.subset(5).title == "a (first 5 training, 40 test images)"
    assert torch.equal(part.train_images, first.train_images[:10])
    assert part.fingerprint != first.fingerprint and first.subset(99) is first
    with pytest.raises(InputError):
        first.subset(0)


def test_cifar10_copies_are_told_apart(tmp_path):
    for kind in ("PNG", "JPEG"):
        tree(tmp_path / kind, classes=CIFAR10_CLASSES, count=1, kind=kind)
    png, jpeg = (load_dataset("cifar10", tmp_path / kind) for kind in ("PNG", "JPEG"))
    assert png.title == "CIFAR-10, 10 training and 10 test images (PNG)"
    assert jpeg.title.startswith("CIFAR-10, JPEG copy")
    tree(tmp_path / "pets", count=1)
    with pytest.raises(InputError, match="not CIFAR-10's"):
        load_dataset("cifar10", tmp_path / "pets")


def test_grey_only_if_all_are_grey(tmp_path):
    made = tree(tmp_path, shape=(6, 5))
    assert load_dataset("x", tmp_path).channels == 1
    write(tmp_path / "train/cat/0000.png", picture(pixels(6, 5, 3)))
    data = load_dataset("x", tmp_path)
    grey = made["train/dog/0001.png"]
    assert data.channels == 3
    assert any((x.numpy() == grey).all() for x in data.train_images)


WHOLE = picture(pixels(6, 5, 3))


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("train/cat/bad.png", WHOLE[: len(WHOLE) // 2]),
        ("test/dog/bad.png", b"plain text"),
        ("test/dog/bad.png", b""),
        ("train/dog/bad.png", picture(pixels(6, 6, 3))),
        ("train/dog/bad.png", picture(pixels(6, 5).astype(np.uint16))),
        ("train/dog/bad.csv", b"1,2"),
        ("train/dog/more/bad.png", WHOLE),
        ("test/bird/bad.png", WHOLE),
    ],
)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_bad_files_are_named(tmp_path, path, content, form):
    tree(tmp_path / "pets", count=1)
    write(tmp_path / "pets" / path, content)
    with pytest.raises(InputError, match="bird" if "bird" in path else path):
        load_dataset("pets", tmp_path / "pets" if form == "folder" else zipped(tmp_path / "pets"))


def test_empty_folders_and_broken_zip(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no image in train"):
        load_dataset("pets", tmp_path)
    tree(tmp_path, count=1)
    (tmp_path / "train" / "bird").mkdir()
    with pytest.raises(InputError, match="no image in train/bird"):
        load_dataset("pets", tmp_path)
    (tmp_path / "cut.zip").write_bytes(zipped(tmp_path / "train").read_bytes()[:-30])
    with pytest.raises(InputError, match="no intact zip"):
        load_dataset("pets", tmp_path / "cut.zip")


def pictures(data):
    """Every image with its split and class name."""
    return {
        (split, data.class_names[y], x.permute(1, 2, 0).numpy().tobytes())
        for split, images, labels in (
            ("train", data.train_images, data.train_labels),
            ("test", data.test_images, data.test_labels),
        )
        for x, y in zip(images, labels, strict=True)
    }


def links(place):
    """Classes that are links to folders elsewhere, and a link that goes round in circles."""
    store = place.parent / "store"
    (place / "train").rename(store)
    (place / "train").mkdir()
    for label in ("cat", "dog"):
        (place / "train" / label).symlink_to(store / label)
    (place / "again").symlink_to(place)


def rename(split, other):
    return lambda place: (place / split).rename(place / other)


def junk(place):
    for name in ("desktop.ini", "Thumbs.db", ".DS_Store", "@eaDir/SYNO.png", "._0000.png"):
        write(place / "train" / "cat" / name, b"not read")
    write(place / "@eaDir" / "train" / "fish" / "1.png", b"not read")
    write(place / "train" / ".ipynb_checkpoints" / "1.png", b"not read")
    (place / "train" / "@eaDir").mkdir()


def deeper(place):
    inner = place / "pets-1.0" / "data"
    inner.mkdir(parents=True)
    for split in ("train", "test"):
        (place / split).rename(inner / split)
    write(place / "README.txt", b"not read")
    write(place / "__MACOSX" / "train" / "fish" / "1.png", b"not read")


AS_PEOPLE_HAVE_THEM = {
    "as documented": lambda place: None,
    "links": links,
    "training": rename("train", "Training"),
    "testing": rename("test", "testing"),
    "validation": rename("test", "validation"),
    "VAL": rename("test", "VAL"),
    "junk": junk,
    "one folder above": deeper,
}


@pytest.mark.parametrize(
    ("kind", "form"),  # a zip has the files that the links lead to
    [(k, f) for k in AS_PEOPLE_HAVE_THEM for f in ("folder", "zip") if (k, f) != ("links", "zip")],
)
def test_folders_and_zips_as_people_have_them(tmp_path, kind, form):
    made = tree(tmp_path / "pets")
    expected = {(*path.split("/")[:2], array.tobytes()) for path, array in made.items()}
    AS_PEOPLE_HAVE_THEM[kind](tmp_path / "pets")
    place = tmp_path / "pets" if form == "folder" else zipped(tmp_path / "pets")
    assert pictures(load_dataset("pets", place)) == expected


def test_backslashes_in_a_zip_and_letters_with_accents(tmp_path):
    made = tree(tmp_path / "pets", classes=("caf\u00e9", "dog"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        for path in made:
            name = path.replace("caf\u00e9", "cafe\u0301") if "test" in path else path
            content = (tmp_path / "pets" / path).read_bytes()
            file.writestr(zipfile.ZipInfo(name.replace("/", "\\")), content)
    assert load_dataset("pets", tmp_path / "other.zip").class_names == ("caf\u00e9", "dog")


def test_a_picture_that_says_how_it_is_turned(tmp_path):
    tree(tmp_path, count=1, shape=(6, 5, 3))
    turned = Image.fromarray(pixels(5, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise to be shown
    turned.save(tmp_path / "train/cat/0000.png", exif=exif)
    data = load_dataset("x", tmp_path)
    expected = np.rot90(np.asarray(turned), -1)
    assert any(np.array_equal(x.permute(1, 2, 0), expected) for x in data.train_images)


def with_a_password(path):
    """The zip with its entries marked as encrypted, as in the format's general purpose flag."""
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(mark)
        while place >= 0:
            content[place + at] |= 1
            place = content.find(mark, place + 1)
    path.write_bytes(content)


def test_a_zip_with_a_password_or_with_links(tmp_path):
    tree(tmp_path / "pets", count=1)
    place = zipped(tmp_path / "pets")
    with_a_password(place)
    with pytest.raises(InputError, match="locked with a password"):
        load_dataset("pets", place)
    place = zipped(tmp_path / "pets")
    with zipfile.ZipFile(place, "a") as file:
        link = zipfile.ZipInfo("train/bird")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "../store/bird")
    with pytest.raises(InputError, match="train/bird in .* is a link"):
        load_dataset("pets", place)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "digits", "pets"])
@pytest.mark.parametrize("place", ["nowhere", "nowhere.zip", "no/where", "\0", "x" * 5000])
def test_a_place_that_is_named_and_not_there(tmp_path, monkeypatch, name, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="There is no "):
        load_dataset(name, place, download=True)
    monkeypatch.setenv("L2LKIT_DATA", str(tmp_path / "nowhere.zip"))
    with pytest.raises(InputError, match="There is no .*nowhere.zip"):
        load_dataset(name, download=True)
    assert not list(tmp_path.iterdir())


def test_what_a_folder_lacks_is_said(tmp_path):
    with pytest.raises(InputError, match="no image in train/CLASS/"):
        load_dataset("pets", tmp_path)
    tree(tmp_path / "one", classes=("cat",))
    with pytest.raises(InputError, match="the class 'cat' alone"):
        load_dataset("pets", tmp_path / "one")
    tree(tmp_path / "both")
    tree(tmp_path / "both" / "other")
    (tmp_path / "both" / "other" / "train").rename(tmp_path / "both" / "TRAIN")
    with pytest.raises(InputError, match="TRAIN and train: which one"):
        load_dataset("pets", tmp_path / "both")


def test_the_default_folder_is_not_searched(tmp_path, monkeypatch):
    """Somebody's pets in data/ are not CIFAR-10."""
    monkeypatch.setenv("L2LKIT_DATA", str(tmp_path))
    tree(tmp_path / "pets")
    with pytest.raises(InputError, match="CIFAR-10 is not in"):
        load_dataset("cifar10")


def test_missing_data_and_unknown_name(monkeypatch, tmp_path):
    monkeypatch.setenv("L2LKIT_DATA", str(tmp_path / "none"))
    for name, file in (
        ("cifar10", "cifar-10-batches-py/"),
        ("cifar100", "cifar-100-python/"),
        ("svhn", "train_32x32.mat"),
        ("mnist", "MNIST/raw/"),
    ):
        with pytest.raises(InputError, match=f"(?s){file}.*--data.*--dataset digits"):
            load_dataset(name)
    with pytest.raises(InputError, match="'imagenet'.*digits, cifar10, cifar100, svhn, mnist"):
        load_dataset("imagenet")

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(InputError, match="download failed .*no network.*--dataset digits"):
        load_dataset("cifar10", download=True)


def test_default_data_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("L2LKIT_DATA", raising=False)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert default_data_dir() == tmp_path / "data"


def test_digits_depend_on_the_seed_alone():
    images, labels = digits.make_digits(40, 3)
    again, _ = digits.make_digits(40, 3)
    other, _ = digits.make_digits(40, 4)
    assert images.shape == (40, 3, 32, 32) and images.dtype == np.uint8
    assert np.array_equal(images, again) and not np.array_equal(images, other)
    assert np.bincount(labels).tolist() == [4] * 10 and labels.tolist() != sorted(labels)


@pytest.mark.parametrize("name", digits.FONTS)
def test_fonts_have_ten_different_digits(name):
    drawn = {bytes(digits.font(name, 40).getmask(d)) for d in "0123456789"}
    missing = bytes(digits.font(name, 40).getmask("\uffff"))
    assert len(drawn - {missing}) == 10


def test_digits_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "TRAIN", (20, 0))
    monkeypatch.setattr(digits, "TEST", (10, 1))
    first = load_dataset("digits", tmp_path)
    (cache,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(digits, "make_digits", None)  # now only the cache can answer
        assert load_dataset("digits", tmp_path).fingerprint == first.fingerprint
    cache.write_bytes(cache.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="damaged"):
        assert load_dataset("digits", tmp_path).fingerprint == first.fingerprint
    assert not torch.equal(first.train_images[:10], first.test_images)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0))
def test_crop_and_flip_image_by_image(n, c, h, w, seed):
    seed %= 2**63
    images = torch.arange(n * c * h * w, dtype=torch.float32).view(n, c, h, w) + 1
    got = crop_and_flip(images, *places(n, h, w, torch.Generator().manual_seed(seed)))
    generator = torch.Generator().manual_seed(seed)
    down, across = torch.randint(9, (2, n, 1), generator=generator).squeeze(2).tolist()
    mirror = torch.randint(2, (n,), generator=generator).tolist()
    for i in range(n):
        wide = np.pad(images[i].numpy(), ((0, 0), (4, 4), (4, 4)))
        crop = wide[:, down[i] : down[i] + h, across[i] : across[i] + w]
        assert np.array_equal(got[i].numpy(), crop[:, :, ::-1] if mirror[i] else crop)


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(7, 3, [3, 4]), (8, 3, [3, 3, 2]), (3, 1, [1, 1, 1]), (1, 4, [1])]
)
def test_batches_give_every_image_once(n, size, sizes):
    images, labels = torch.from_numpy(pixels(n, 3, 4, 4)), torch.arange(n)

    def epoch(seed, augment):
        return list(batches(images, labels, size, torch.Generator().manual_seed(seed), augment))

    plain = epoch(0, False)
    assert [len(y) for _, y in plain] == sizes
    order = torch.cat([y for _, y in plain])
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(torch.cat([x for x, _ in plain]), images[order].float() / 255)
    for (x, y), (x2, y2) in zip(epoch(5, True), epoch(5, True), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2) and x.max() <= 1
    draw = torch.Generator().manual_seed(5)
    torch.randperm(n, generator=draw)
    for x, y in epoch(5, True):  # crops are drawn batch by batch, after the order
        expected = crop_and_flip(images[y], *places(len(y), 4, 4, draw))
        assert torch.equal(x, expected.float() / 255)
