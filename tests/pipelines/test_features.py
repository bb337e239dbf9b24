"""Feature networks: the Inception glue on random weights, the small classifier, its cache, and raw values."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset

from indm_core.metrics import Moments, frechet_distance, inception_score, kernel_distance
from pipelines.data.card import Card, Shard, Split
from pipelines.evaluation.features import classifier as classifiers
from pipelines.evaluation.features import networks as features
from pipelines.evaluation.features.classifier import SmallClassifier, cached_classifier, classifier, classifier_features
from pipelines.evaluation.features.networks import INCEPTION_URL, FeatureNetwork, inception, raw, torchvision_operators
from pipelines.evaluation.features.reference import feature_key

torchvision_operators()


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels of a training split of 1437 and a test split of 360."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.images).to(torch.uint8).unsqueeze(1), torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor, Tensor, Tensor]) -> SmallClassifier:
    return classifier(digits[0], digits[1], levels=17, num_classes=10)


def card(sha256: str = "aa", num_classes: int = 10, kind: str = "image") -> Card:
    shard = Shard(file="train-0.parquet", rows=1437, size=1, sha256=sha256)
    return Card(
        name="digits",
        source="digits",
        kind=kind,
        shape=(1, 8, 8) if kind == "image" else (2,),
        levels=17 if kind == "image" else 0,
        num_classes=num_classes,
        splits={"train": Split(count=1437, skipped=0, shards=(shard,))},
    )


def equal(a: SmallClassifier, b: SmallClassifier) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# The small classifier.


def test_classifier_reads_digits_it_has_not_seen(
    digits: tuple[Tensor, Tensor, Tensor, Tensor], trained: SmallClassifier
):
    network = classifier_features(trained, "digits")
    values, logits = network.evaluate(digits[2])
    assert network.name == "digits-cnn"
    assert values.shape == (360, network.num_features) == (360, 64)
    assert torch.equal(values, network(digits[2]))
    assert not values.requires_grad
    assert float((logits.argmax(1) == digits[3]).double().mean()) > 0.97
    # Its distances see what they should: the same law is close, inverted ink is far.
    a, b, c = (Moments().update(network(x)) for x in (digits[0], digits[2], 16 - digits[2]))
    near, far = (frechet_distance(m.mean, m.cov, a.mean, a.cov) for m in (b, c))
    assert 20 * near < far


def test_classifier_is_decided_by_its_seed_alone(digits: tuple[Tensor, Tensor, Tensor, Tensor]):
    def train(seed: int) -> SmallClassifier:
        return classifier(digits[0][:200], digits[1][:200], levels=17, num_classes=10, seed=seed, max_steps=12)

    state = torch.get_rng_state()
    first = train(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert equal(first, train(0))
    assert not equal(first, train(1))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 5, 9)])
def test_classifier_takes_small_images_of_any_shape(shape: tuple[int, ...]):
    images = torch.randint(256, (10, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(10) % 2
    network = classifier(images, labels, levels=256, num_classes=2, num_epochs=1)
    values, logits = network(images)
    assert values.shape == (10, 64)
    assert logits.shape == (10, 2)
    torch.testing.assert_close(network(images[3:4])[0], values[3:4])


def test_classifier_refuses_what_it_cannot_learn():
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, -1])
    with pytest.raises(ValueError, match=r"labels: values -1\.\.2, but num_classes=3"):
        classifier(images, labels, levels=17, num_classes=3)
    with pytest.raises(ValueError, match="labels: 3 for 4 images"):
        classifier(images, labels[:3], levels=17, num_classes=3)
    with pytest.raises(ValueError, match=r"images: values 17\.\.17 are not all in 0\.\.16"):
        classifier(images + 17, labels.abs(), levels=17, num_classes=3)
    with pytest.raises(ValueError, match=r"images: dtype torch\.float32"):
        classifier(images.float(), labels.abs(), levels=17, num_classes=3)


# The cache.


def test_cached_classifier_is_trained_once_and_read_back(
    tmp_path: Path, digits: tuple[Tensor, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    loads = []

    def load() -> tuple[Tensor, Tensor]:
        loads.append(1)
        return digits[0][:100], digits[1][:100]

    directory = tmp_path / "not" / "yet"
    first = cached_classifier(directory, card(), load)
    again = cached_classifier(directory, card(), load)
    assert len(loads) == 1
    assert equal(first, again)
    assert equal(first, classifier(digits[0][:100], digits[1][:100], levels=17, num_classes=10))
    cached_classifier(directory, card(sha256="bb"), load)
    cached_classifier(directory, card(), load, seed=1)
    monkeypatch.setattr(classifiers, "VERSION", -1)
    cached_classifier(directory, card(), load)
    assert len(loads) == 4
    homes = sorted(directory.iterdir())
    assert len(homes) == 4
    assert all(home.name.startswith("digits-cnn-") for home in homes)
    assert sorted(file.name for file in homes[0].iterdir()) == ["classifier.json", "classifier.safetensors"]


def test_two_that_race_use_the_first(
    tmp_path: Path, digits: tuple[Tensor, Tensor, Tensor, Tensor], trained: SmallClassifier
):
    def load() -> tuple[Tensor, Tensor]:  # while this one loads, another finishes with other values
        other = tmp_path / "elsewhere"
        cached_classifier(other, card(), lambda: (digits[0][:80], digits[1][:80]))
        (home,) = other.iterdir()
        home.rename(tmp_path / home.name)
        other.rmdir()
        return digits[0][80:160], digits[1][80:160]

    network = cached_classifier(tmp_path, card(), load)
    (home,) = tmp_path.iterdir()
    kept = load_file(home / "classifier.safetensors")
    assert all(torch.equal(value, kept[key]) for key, value in network.state_dict().items())
    assert equal(network, classifier(digits[0][:80], digits[1][:80], levels=17, num_classes=10))


def test_damaged_cache_is_named(tmp_path: Path, digits: tuple[Tensor, Tensor, Tensor, Tensor]):
    def load() -> tuple[Tensor, Tensor]:
        return digits[0][:64], digits[1][:64]

    cached_classifier(tmp_path, card(), load)
    (home,) = tmp_path.iterdir()
    file = home / "classifier.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"not a readable classifier .* delete it") as caught:
        cached_classifier(tmp_path, card(), load)
    assert "\n" not in str(caught.value)


def test_cache_needs_labels(tmp_path: Path):
    def load() -> tuple[Tensor, Tensor]:
        raise AssertionError

    with pytest.raises(ValueError, match="num_classes=0"):
        cached_classifier(tmp_path, card(num_classes=0), load)
    with pytest.raises(ValueError, match="kind='vector'"):
        cached_classifier(tmp_path, card(kind="vector"), load)


# Raw values.


def test_raw_features_are_the_values():
    network = raw(2)
    x = torch.randn(5, 2, dtype=torch.float64)
    assert network.name == "raw"
    assert torch.equal(network(x), x)
    assert raw(12)(torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2))[1, 0] == 12.0
    with pytest.raises(ValueError, match="images: 3 values a sample, not num_features=2"):
        network(torch.zeros(5, 3))
    assert network.evaluate(x)[1].shape == (5, 0)  # it has no classes


# What identifies a network.


def test_the_hash_of_a_network_is_that_of_what_it_is_made_of(tmp_path: Path, trained: SmallClassifier):
    """Equal weights under another path hash alike, other weights, arguments or functions do not."""
    other = copy.deepcopy(trained)
    makes = [partial(classifier_features, network, "digits") for network in (trained, other)]
    assert feature_key(makes[0]) == feature_key(makes[1])
    with torch.no_grad():
        other.head.bias[0] += 1e-3
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, content in zip(files, (b"weights", b"weights", b"others"), strict=True):
        file.write_bytes(content)
    inceptions = [feature_key(partial(inception, file, levels=256)) for file in files]
    assert inceptions[0] == inceptions[1] != inceptions[2]
    keys = {*map(feature_key, makes), *inceptions, feature_key(partial(inception, files[0], levels=17))}
    keys |= {feature_key(partial(raw, d)) for d in (2, 3)}
    assert len(keys) == 7


# torch-fidelity, with a network of ours.


class Images(Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_metrics_equal_those_of_torch_fidelity_with_the_same_network(
    digits: tuple[Tensor, Tensor, Tensor, Tensor], trained: SmallClassifier
):
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Digits(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **options: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            values, logits = trained(images)
            both = {"features": values.double(), "logits": logits}
            return tuple(both[name] for name in self.features_list)

    a, b = digits[2], digits[0][:360]
    torch_fidelity.register_feature_extractor("digits-cnn", Digits)
    try:
        theirs = torch_fidelity.calculate_metrics(
            input1=Images(a),
            input2=Images(b),
            feature_extractor="digits-cnn",
            feature_layer_fid="features",
            feature_layer_kid="features",
            feature_layer_isc="logits",
            fid=True,
            kid=True,
            isc=True,
            kid_subsets=1,
            kid_subset_size=360,
            isc_splits=2,
            samples_shuffle=False,
            batch_size=360,
            cuda=False,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
        )
    finally:
        del FEATURE_EXTRACTORS_REGISTRY["digits-cnn"]
    network = classifier_features(trained, "digits")
    f_a, logits = network.evaluate(a)
    f_b = network(b)
    m_a, m_b = Moments().update(f_a), Moments().update(f_b)
    distance = frechet_distance(m_a.mean, m_a.cov, m_b.mean, m_b.cov)
    assert float(distance) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    kernel = kernel_distance(f_a, f_b).mean
    assert kernel == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    dealt = logits.reshape(2, 180, 10).transpose(0, 1).reshape(360, 10)  # our splits are strided, theirs contiguous
    assert inception_score(dealt, splits=2).mean == pytest.approx(theirs["inception_score_mean"], rel=1e-10)


# Inception-v3, with random weights.


def test_torchvision_operators_are_declared_once_and_only_where_absent():
    assert torchvision_operators() is torchvision_operators()
    assert torchvision_operators.__wrapped__() == ()  # another cache finds them there and declares nothing
    assert all(hasattr(torch.ops.torchvision, name) for name in ("nms", "qnms"))


def test_importing_this_module_imports_no_torch_fidelity():
    names = {"torch_fidelity", "torchvision", "ray", "mlflow"}
    modules = "pipelines.evaluation.features.networks, pipelines.evaluation.features.classifier"
    code = f"import sys, {modules}; sys.exit(', '.join({names} & set(sys.modules)) or None)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the published one's form with random values."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=empty)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=generator)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception_v3(weights: Path) -> FeatureNetwork:
    return inception(weights)


def test_inception_features_are_torch_fidelitys(weights: Path, inception_v3: FeatureNetwork):
    from torch_fidelity.utils import create_feature_extractor

    theirs = create_feature_extractor(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=str(weights),
    )
    images = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    values, logits = inception_v3.evaluate(images)
    assert values.shape == (2, inception_v3.num_features)
    assert logits.shape == (2, inception_v3.num_classes)
    for ours, their in zip((values, logits), theirs(images), strict=True):
        assert torch.equal(ours, their)
        assert float(ours.std()) > 1e-3  # the random network does not send everything to one point


def test_inception_takes_grey_images_and_any_levels(weights: Path, inception_v3: FeatureNetwork):
    grey = torch.randint(17, (2, 1, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    eight_bit = (grey.double() * 255 / 16).round().to(torch.uint8)
    expected = inception_v3(eight_bit.repeat(1, 3, 1, 1))
    assert torch.equal(inception_v3(eight_bit), expected)
    assert torch.equal(inception(weights, levels=17)(grey), expected)
    with pytest.raises(ValueError, match="images: 2 channels"):
        inception_v3(grey.repeat(1, 2, 1, 1))


def test_only_the_published_weights_are_called_inception_v3(
    weights: Path, inception_v3: FeatureNetwork, monkeypatch: pytest.MonkeyPatch
):
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert INCEPTION_URL == URL_INCEPTION_V3
    assert INCEPTION_URL.endswith(f"-{features._INCEPTION_SHA256}.pth")
    prefix = inception_v3.name.removeprefix("inception-v3-")
    assert len(prefix) == 8
    monkeypatch.setattr(features, "_INCEPTION_SHA256", prefix)
    assert inception(weights).name == "inception-v3"


class Payload:
    """Makes a directory when it is unpickled without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_inception_refuses_other_files_in_one_line(tmp_path: Path):
    def refused(path: Path | None, match: str) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            inception(path)
        message = str(caught.value)
        assert INCEPTION_URL in message
        assert "--inception-weights FILE" in message
        assert "\n" not in message

    refused(None, "weights=None")
    refused(tmp_path / "absent.pth", r"absent\.pth.*No such file")
    refused(tmp_path, "Is a directory")
    path = tmp_path / "file.pth"
    for content in (b"", b"<html>404</html>", pickle.dumps(Payload(tmp_path / "harm"))):
        path.write_bytes(content)
        refused(path, r"file\.pth': no file of tensors only")
    torch.save({"payload": Payload(tmp_path / "harm")}, path)
    refused(path, "no file of tensors only")
    assert not (tmp_path / "harm").exists()
    torch.save({"fc.weight": torch.zeros(2)}, path)
    refused(path, "not the weights of Inception-v3")
    torch.save([1, 2], path)
    refused(path, "not the weights of Inception-v3")
    torch.save({1: torch.zeros(2)}, path)
    refused(path, "not the weights of Inception-v3")
