"""SegFormer (Xie et al., 2021) of Hugging Face Transformers, with a representation branch."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from brpg_lib import ProjectionHead
from brpg_lib.examples.training.networks.base import Segmenter
from brpg_lib.examples.training.networks.normalize import ImageNetNormalize

SIZES: dict[str, dict[str, object]] = {
    "b0": {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256], "decoder_hidden_size": 256},
    "b1": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 256},
    "b2": {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
    "b3": {"depths": [3, 4, 18, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
    "b4": {"depths": [3, 8, 27, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
    "b5": {"depths": [3, 6, 40, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
}


class SegFormer(Segmenter):
    """Transformer encoder and all-MLP decoder; features at 1/4 of the image.

    Args:
        size: ``"b0"`` to ``"b5"``.
        num_classes: C.
        feature_dim: D of the representation branch; None builds none.
        pretrained: Whether the encoder starts from NVIDIA's ImageNet weights.
    """

    def __init__(self, size: str, num_classes: int, feature_dim: int | None, pretrained: bool) -> None:
        super().__init__()
        config = SegformerConfig(num_labels=num_classes, **SIZES[size])
        if pretrained:
            network = SegformerForSemanticSegmentation.from_pretrained(f"nvidia/mit-{size}", config=config)
        else:
            network = SegformerForSemanticSegmentation(config)
        self.normalize = ImageNetNormalize()
        self.encoder = network.segformer
        self.decoder = network.decode_head
        self.classifier = self.decoder.classifier
        self.decoder.classifier = nn.Identity()
        channels = config.decoder_hidden_size
        self.projection = None if feature_dim is None else ProjectionHead(channels, feature_dim)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Maps at 1/4, 1/8, 1/16 and 1/32."""
        return list(self.encoder(self.normalize(images), output_hidden_states=True).hidden_states)

    def decode(self, maps: list[Tensor]) -> Tensor:
        """All scales fused, at 1/4 of the image."""
        fused: Tensor = self.decoder(maps)
        return fused
