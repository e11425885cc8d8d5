from __future__ import annotations

import pytest

from dinowds.errors import ConfigError
from dinowds.model.architecture import SIZES, Size, size_of


def test_size_of__names_and_changes() -> None:
    assert size_of("image", "vit_small") == Size(384, 12, 6)
    assert size_of("region", "hvit_xs") == Size(192, 6, 6)
    assert size_of("region", "hvit_xs", embed_dim=64, depth=2) == Size(64, 2, 2)
    assert size_of("image", "vit_huge", embed_dim=640) == Size(640, 32, 8)


def test_sizes__heads_share_the_width() -> None:
    for sizes in SIZES.values():
        for name, size in sizes.items():
            assert size.embed_dim % size.num_heads == 0, name


@pytest.mark.parametrize(
    ("kind", "arch", "embed_dim", "message"),
    [
        ("image", "vit_small", 100, r"student\.embed_dim is 100, expected a multiple of 64"),
        ("region", "hvit_xs", 100, r"student\.embed_dim is 100, expected a multiple of 32"),
        ("region", "vit_small", None, r"student\.arch is vit_small, expected one of hvit_xs, hvit_s, hvit_b"),
    ],
)
def test_size_of__what_cannot_be(kind: str, arch: str, embed_dim: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        size_of(kind, arch, embed_dim)  # type: ignore[arg-type]
