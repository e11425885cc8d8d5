"""Images → features, by a trained Vision Transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinowds.errors import ConfigError
from dinowds.model.pixels import normalise
from dinowds.model.weights import Weights, load_backbone
from dinowds.train.devices import resolve_precision

PRECISIONS = ("auto", "bf16", "fp32")


@dataclass
class Pending:
    """Tokens of a batch that the device may still be at: float32 [N, 1 + T, D], or [N, 1, D] without patch tokens."""

    _tokens: Tensor
    _copied: torch.cuda.Event | None

    def get(self) -> Tensor:
        """Wait for it. On the CPU."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tokens


class Encoder:
    """A backbone on a device, with the normalisation of its weights.

    What it gives for an image may depend in the last digits on the batch that the image is in.
    """

    def __init__(self, weights: Weights, device: torch.device, precision: str = "auto", batch_size: int = 256) -> None:
        """
        Args:
            precision: `fp32`; `bf16` (autocast); `auto`: bf16 where the device has units for it.
            batch_size: images that go through the device at once.

        Raises:
            ConfigError: the weights are of a region model, or there is no such precision or batch size.
        """
        if weights.architecture.kind != "image":
            raise ConfigError(f"{weights.path}: a model of regions, expected one of images")
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
        if batch_size < 1:
            raise ConfigError(f"batch size is {batch_size}, expected at least 1")
        self.dim = weights.architecture.size.embed_dim
        """D."""
        self.patch_size = weights.architecture.patch_size
        """Side of a patch token, px."""
        self.precision = resolve_precision(precision, device)
        """`bf16` or `fp32`."""
        self.device, self.batch_size = device, batch_size
        self._mean, self._std = weights.mean, weights.std
        self._backbone = load_backbone(weights).to(device)

    def features(self, images: Tensor) -> Tensor:
        """Class tokens of uint8 [N, H, W, 3] images, whose sides the patch size divides: float32 [N, D], on the CPU."""
        return self._all(images, with_patches=False)[:, 0]

    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens of such images, row by row: float32 [N, T, D], on the CPU."""
        return self._all(images, with_patches=True)[:, 1:]

    @torch.inference_mode()
    def start(self, images: Tensor, with_patches: bool) -> Pending:
        """Begin with one batch, uint8 [N, H, W, 3]. A GPU computes while the caller does something else."""
        is_gpu = self.device.type == "cuda"
        # [N, 3, H, W] in channels-last order, without a copy
        pixels = images.to(self.device, non_blocking=is_gpu).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            inputs = normalise(pixels, torch.float32, self._mean, self._std)
            tokens = self._backbone.forward_features(inputs) if with_patches else self._backbone(inputs)[:, None]
        tokens = tokens.float()
        if not is_gpu:
            return Pending(tokens, None)
        arrived = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        arrived.copy_(tokens, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return Pending(arrived, copied)

    def _all(self, images: Tensor, with_patches: bool) -> Tensor:
        parts = [self.start(part, with_patches).get() for part in torch.split(images, self.batch_size)]
        if parts:
            return torch.cat(parts)
        rows, columns = images.shape[1] // self.patch_size, images.shape[2] // self.patch_size
        return torch.empty(0, 1 + (rows * columns if with_patches else 0), self.dim)
