"""Networks for the trainers, by name."""

from __future__ import annotations

from brpg_lib.examples.training.networks.base import Segmenter

RESNETS = ("resnet50", "resnet101", "resnet152")
SEGFORMERS = tuple(f"segformer_b{size}" for size in range(6))
NAMES = ("compact", "efficientnet_lite0", *RESNETS, "xception65", *SEGFORMERS)


def build_network(
    name: str, num_classes: int, feature_dim: int | None, pretrained: bool = False, width: int = 32, stride: int = 4
) -> Segmenter:
    """A network with random weights, or with an encoder pretrained on ImageNet.

    Args:
        name: One of :data:`NAMES`; all but ``"compact"`` and the SegFormers are DeepLabV3+ on that encoder.
        num_classes: C.
        feature_dim: D of the representation branch; None builds none.
        pretrained: Whether the encoder starts from ImageNet weights, which are downloaded at the first time.
        width: Of the compact network.
        stride: Of the compact network.

    Raises:
        ValueError: No such network, or the weights cannot be had.
    """
    if name not in NAMES:
        raise ValueError(f"network: expected one of {', '.join(NAMES)}, found {name!r}")
    if name == "compact" and pretrained:
        raise ValueError("pretrained: there are no ImageNet weights of the compact network; expected false")
    try:
        return _build(name, num_classes, feature_dim, pretrained, width, stride)
    except OSError as error:  # of the download
        raise ValueError(
            f"network: the ImageNet weights of {name} could not be downloaded ({error}); "
            "put them into the cache of the library that has them, or train without (pretrained=false)"
        ) from error


def _build(
    name: str, num_classes: int, feature_dim: int | None, pretrained: bool, width: int, stride: int
) -> Segmenter:
    # each network imports a library of its own
    if name == "compact":
        from brpg_lib.examples.training.networks.compact import CompactNet

        return CompactNet(num_classes, feature_dim, width, stride)
    if name == "efficientnet_lite0":
        from brpg_lib.examples.training.networks.efficientnet import EfficientNetLite0

        return EfficientNetLite0(num_classes, feature_dim, pretrained)
    if name in SEGFORMERS:
        from brpg_lib.examples.training.networks.segformer import SegFormer

        return SegFormer(name.removeprefix("segformer_"), num_classes, feature_dim, pretrained)
    from brpg_lib.examples.training.networks.deeplab import DeepLabV3Plus, ResNetEncoder, TimmEncoder

    encoder = ResNetEncoder(name, pretrained) if name in RESNETS else TimmEncoder(name, pretrained)
    return DeepLabV3Plus(encoder, num_classes, feature_dim)
