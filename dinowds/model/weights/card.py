"""What goes with exported weights: timm's configuration, the model card, the calls that load them."""

from __future__ import annotations

import json
from typing import Any

import timm

from dinowds.model.architecture import SIZES, Architecture
from dinowds.model.vit import INITIAL_SCALE
from dinowds.model.weights.facts import cohort_facts
from dinowds.model.weights.weights import Weights

_FALLBACK = "vit_small_patch16_224"
_SIDE = 224
_INTERPOLATION = {"timm": "timm", "dino": "dino", "hipt": "dino"}
"""Of positions, by each consumer."""


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
    changed = {key: value for key, value in wanted.items() if value != defaults[key]}
    return name, {"dynamic_img_size": True} | changed | _options(architecture)


def _options(architecture: Architecture) -> dict[str, Any]:
    registers = {"reg_tokens": architecture.registers, "no_embed_class": True} if architecture.registers else {}
    return registers | ({"init_values": INITIAL_SCALE} if architecture.layer_scale else {})


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
        return [
            f"timm.create_model({_quoted(f'local-dir:{path}')}, pretrained=True)",
            _call_for_the_file(weights.architecture, path),
        ]
    if to == "hipt":
        return _calls_of_hipt(weights.architecture, path)
    if with_head:
        return [f'utils.load_pretrained_weights(model, {_quoted(path)}, "teacher", None, None)']
    return [f"model.load_state_dict(torch.load({_quoted(path)}, weights_only=True))"]


def _call_for_the_file(architecture: Architecture, folder: str) -> str:
    name, arguments = timm_call(architecture)
    place = _quoted(f"{folder}/model.safetensors")
    written = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f'timm.create_model("{name}", num_classes=0, checkpoint_path={place}{written})'


def _calls_of_hipt(architecture: Architecture, path: str) -> list[str]:
    """`get_vit4k` builds vit4k_xs alone, and would load the first blocks of a deeper model without a word."""
    size = architecture.size
    if (size, architecture.in_dim, architecture.grid) == (SIZES["region"]["hvit_xs"], 384, 14):
        return [f"get_vit4k(pretrained_weights={_quoted(path)})"]
    return [
        f"model = VisionTransformer4K(img_size=[{16 * architecture.grid}], input_embed_dim={architecture.in_dim}, "
        f"output_embed_dim={size.embed_dim}, depth={size.depth}, num_heads={size.num_heads}, qkv_bias=True, "
        "norm_layer=partial(nn.LayerNorm, eps=1e-6))",
        f'load_pretrained_weights(model, {_quoted(path)}, "teacher", None, None)',
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def note_on_positions(architecture: Architecture, to: str) -> str:
    """What a consumer does otherwise on another grid; '' where it does the same."""
    theirs, ours, grid = _INTERPOLATION[to], architecture.pos_interpolation, architecture.grid
    if theirs == ours:
        return ""
    return (
        f"on another grid than {grid} × {grid} tokens features differ: {to} interpolates positions as '{theirs}', "
        f"this model as '{ours}'"
    )


def model_card(weights: Weights) -> str:
    """README.md for the Hub. The license is the user's to add."""
    side = weights.architecture.grid * weights.architecture.patch_size
    note = note_on_positions(weights.architecture, "timm")
    warning = f"\nMind: {note}.\n" if note else ""
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
{warning}
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
{_call_for_the_file(weights.architecture, "FOLDER")}
```
"""


def _model_rows(weights: Weights) -> list[tuple[str, object]]:
    size = weights.architecture.size
    return [
        ("width, depth, heads", f"{size.embed_dim}, {size.depth}, {size.num_heads}"),
        ("patch", f"{weights.architecture.patch_size} px"),
        ("parameters", f"{sum(value.numel() for value in weights.backbone.values()):,}"),
        ("register tokens", weights.architecture.registers),
        ("LayerScale", "yes" if weights.architecture.layer_scale else "no"),
        ("mean", ", ".join(map(str, weights.mean))),
        ("std", ", ".join(map(str, weights.std))),
        ("position interpolation", weights.architecture.pos_interpolation),
        ("fingerprint", weights.fingerprint),
    ]


def _data_rows(about: dict[str, Any]) -> list[tuple[str, object]]:
    cohorts = [
        (f"cohort {name}", "; ".join([f"{about['cohorts'][name]} images", *(f"{k} {v}" for k, v in said.items())]))
        for name, said in cohort_facts(about).items()
    ]
    return [
        ("dataset", about.get("name", "not recorded")),
        ("images", about.get("samples", "not recorded")),
        ("resolution", f"{about['mpp']} µm per px" if "mpp" in about else "as its cohorts say, or not recorded"),
        *cohorts,
    ]


def _table(rows: list[tuple[str, object]]) -> str:
    lines = [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _plain(value: object) -> str:
    """Names come from files: nothing in them is to be read as Markdown or HTML."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    return "".join(f"&#{ord(character)};" if character in "|<>&`*_[]\\#!" else character for character in text)
