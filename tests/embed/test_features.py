from __future__ import annotations

import torch
from torch import Tensor, nn

from dinowds.embed.features import backbone_features


class Means(nn.Module):
    """In the place of a backbone: the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixels: Tensor) -> Tensor:
        assert not self.training
        return self.scale * pixels.mean((2, 3))


def test_backbone_features__are_of_each_image_in_order() -> None:
    images = torch.randint(0, 256, (7, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone = Means().train()
    features = backbone_features(backbone, images, batch_size=3)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    expected = (images.float().mean((1, 2)) / 255 - mean) / std
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert backbone.training
