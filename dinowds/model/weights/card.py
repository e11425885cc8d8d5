"""What goes with exported weights: timm's configuration, the model card, the calls that load them."""

from __future__ import annotations

from typing import Any

import timm

from dinowds.model.architecture import SIZES, Architecture
from dinowds.model.weights.weights import Weights

_FALLBACK = "vit_small_patch16_224"
_SIDE = 224


def timm_call(architecture: Architecture) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments for `timm.create_model` that build this ViT for any size of image."""
    name = _closest(architecture)
    _, size_name, patch, _ = name.split("_")
    defaults = {
        "patch_size": int(patch.removeprefix("patch")),
        "img_size": _SIDE,
        **SIZES["image"][f"vit_{size_name}"]._asdict(),
    }
    wanted = {
        "patch_size": architecture.patch_size,
        "img_size": architecture.grid * architecture.patch_size,
        **architecture.size._asdict(),
    }
    return name, {"dynamic_img_size": True} | {k: v for k, v in wanted.items() if v != defaults[k]}


def _closest(architecture: Architecture) -> str:
    size_name = next((name for name, size in SIZES["image"].items() if size == architecture.size), None)
    patches = (architecture.patch_size, 16, 14)
    names = (f"{size_name}_patch{patch}_{_SIDE}" for patch in patches)
    return next((name for name in names if timm.is_model(name)), _FALLBACK)


def timm_config(weights: Weights) -> dict[str, Any]:
    """The content of `config.json`. Images are taken whole, resized to the size that `pos_embed` is made for."""
    name, arguments = timm_call(weights.architecture)
    side = weights.architecture.grid * weights.architecture.patch_size
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": weights.architecture.size.embed_dim,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "dinowds",
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(weights.mean),
            "std": list(weights.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def how_to_load(weights: Weights, to: str, path: str, with_head: bool) -> list[str]:
    """The consumers' calls, in Python."""
    if to == "timm":
        name, arguments = timm_call(weights.architecture)
        written = "".join(f", {key}={value!r}" for key, value in arguments.items())
        return [
            f'timm.create_model("local-dir:{path}", pretrained=True)',
            f'timm.create_model("{name}", num_classes=0, checkpoint_path="{path}/model.safetensors"{written})',
        ]
    if to == "hipt":
        return [f'get_vit4k(pretrained_weights="{path}")']
    if with_head:
        return [f'utils.load_pretrained_weights(model, "{path}", "teacher", None, None)']
    return [f'model.load_state_dict(torch.load("{path}", weights_only=True))']


def model_card(weights: Weights) -> str:
    """README.md for the Hub. The license is the user's to add."""
    side = weights.architecture.grid * weights.architecture.patch_size
    name, arguments = timm_call(weights.architecture)
    extra = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- image-feature-extraction
- dino
---

# {_plain(weights.about.get("name", "Vision Transformer"))}

A Vision Transformer pretrained with DINO (the {weights.which}), written by dinowds. Its feature is the class token,
{weights.architecture.size.embed_dim} numbers. No license is stated: add `license:` at the top before you publish it.

## Model

{_table(_model_rows(weights))}

Give it images of {side} × {side} px, RGB, scaled to 0…1, then normalised with the mean and std above.
{_note_on_positions(weights.architecture, side)}
## Data

{_table(_data_rows(weights.about))}

## Use

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
features = model(transform(image)[None])  # [1, {weights.architecture.size.embed_dim}]
```

From the file of weights alone (eva, TRIDENT), where the mean and std are yours to set:

```python
timm.create_model("{name}", num_classes=0, checkpoint_path="FOLDER/model.safetensors"{extra})
```
"""


def _model_rows(weights: Weights) -> list[tuple[str, object]]:
    size = weights.architecture.size
    return [
        ("width, depth, heads", f"{size.embed_dim}, {size.depth}, {size.num_heads}"),
        ("patch", f"{weights.architecture.patch_size} px"),
        ("parameters", f"{sum(value.numel() for value in weights.backbone.values()):,}"),
        ("mean", ", ".join(map(str, weights.mean))),
        ("std", ", ".join(map(str, weights.std))),
        ("position interpolation", weights.architecture.pos_interpolation),
        ("fingerprint", weights.fingerprint),
    ]


def _data_rows(about: dict[str, Any]) -> list[tuple[str, object]]:
    said = _dict_in(_dict_in(about, "metadata"), "cohorts")  # by tilers: mpp, tile_size
    cohorts = [
        (f"cohort {name}", "; ".join([f"{count} images", *(f"{k} {v}" for k, v in _dict_in(said, name).items())]))
        for name, count in _dict_in(about, "cohorts").items()
    ]
    return [
        ("dataset", about.get("name", "not recorded")),
        ("images", about.get("samples", "not recorded")),
        ("resolution", f"{about['mpp']} µm per px" if "mpp" in about else "as its cohorts say, or not recorded"),
        *cohorts,
    ]


def _dict_in(content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _note_on_positions(architecture: Architecture, side: int) -> str:
    if architecture.pos_interpolation == "timm":
        return ""
    return f"""
On images of another size timm interpolates the positions antialiased, this model was used with
`{architecture.pos_interpolation}`: features then differ. At {side} × {side} px they are the same.
"""


def _table(rows: list[tuple[str, object]]) -> str:
    lines = [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _plain(value: object) -> str:
    """Names come from files: nothing in them is to be read as Markdown or HTML."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return "".join(f"&#{ord(character)};" if character in "|<>&`*_[]\\#!" else character for character in text)
