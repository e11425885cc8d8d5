"""What the encoder of a run looks at: attention and tokens over training, neighbours, and a map of features."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dinowds.config import PatchConfig, RunConfig
from dinowds.data.dataset import Dataset
from dinowds.embed.features import backbone_features
from dinowds.embed.patches.stream import fit
from dinowds.errors import DinowdsError
from dinowds.eval.attention import look, principal_colours
from dinowds.eval.pictures import colour_map, enlarge, overlay
from dinowds.model.architecture import Architecture
from dinowds.model.dino import architecture_of
from dinowds.model.pixels import normalise
from dinowds.model.vit import ImageViT
from dinowds.model.weights import load_backbone, read_weights
from dinowds.report.page import Block, Matrix, Notice, Picture, Plot, Section, Sprite, Text
from dinowds.report.plots import map_figure
from dinowds.report.runfolder import RunFolder
from dinowds.report.samples import NAMES, NONE, Loaded, draw_ids, load_samples, unlike
from dinowds.train.devices import choose_device
from dinowds.train.learner import initial_models
from dinowds.world import World

FIXED = 6
"""Samples that are looked at over training, and whose neighbours are shown."""
NEIGHBOURS = 7
_NO_SPREAD = 1e-9
"""Standard deviation of features that are all the same, which t-SNE cannot begin with."""
_MOST_CHECKPOINTS = 6
MOST_POINTS, _LEAST_POINTS = 2000, 300
"""Of the map of features."""
_BUDGET = {"cpu": 4e12, "cuda": 4e15}
"""Floating-point operations that features of a map may take: half a minute of a few cores, seconds of a GPU."""
_LARGEST_SIDE = 256
"""px of the images that are looked at."""
UNTRAINED = "untrained"
"""Title of the stage before the first step."""
_SHOWN_SIDE, _THUMBNAIL = 128, 48
"""px of a picture on the page, and of one under the pointer."""


@dataclass(frozen=True)
class Stage:
    """A teacher of a run."""

    title: str
    backbone: ImageViT


def look_sections(run: RunFolder, data: str | None = None) -> list[Section]:
    """Sections of pictures, or one that says why there are none.

    Args:
        data: DATASET[:SUBSET]; None for what the run was trained on.
    """
    if run.config is None or not run.checkpoints:
        return [_without("There is no checkpoint yet." if run.config else "The configuration cannot be read.")]
    location = data or run.data
    if location is None:
        return [_without("The checkpoint does not say where its dataset lies; give it with --data.")]
    try:
        dataset = Dataset.open(location)
        if dataset.manifest.kind != run.config.kind:
            return [_without(f"{dataset.location} holds {dataset.manifest.kind}s, the run needs {run.config.kind}s.")]
        device = choose_device(World())
        side = max(_LARGEST_SIDE, run.config.crops.global_.size)
        loaded = load_samples(dataset, draw_ids(dataset, _num_points(run.config, device)), side)
        if not loaded.keys:
            return [_without(f"No sample of {dataset.location} can be read.")]
        return _sections(run, run.config, loaded, device)
    except (DinowdsError, OSError) as error:
        return [_without(f"{error}. Another copy of the dataset can be given with --data.")]
    except RuntimeError as error:  # of the device, such as a GPU whose memory the run needs, or of linear algebra
        return [_without(f"The encoder could not be run ({' '.join(str(error).split())[:200]}).")]


def _without(why: str) -> Section:
    return Section("What the encoder sees", "sees", [Notice("note", f"There are no pictures. {why}")])


def _sections(run: RunFolder, config: RunConfig, loaded: Loaded, device: torch.device) -> list[Section]:
    stages, notices = _stages(run, config)
    if not stages or stages[-1].title == UNTRAINED:
        return [_without("No checkpoint can be read.")]
    fixed = unlike(loaded, FIXED)
    blocks: list[Block] = [Notice("problem", notice) for notice in notices]
    sections = []
    if isinstance(config, PatchConfig):
        blocks += _over_training(stages, loaded.of(fixed), config.student.patch_size, config.crops.global_.size, device)
        sections.append(Section("What the encoder looks at", "looks", blocks))
    else:
        text = "Regions are grids of features: there are no images of them here, so attention is not drawn over any."
        sections.append(Section("What the encoder looks at", "looks", [*blocks, Text(text)]))
    features = features_of(stages[-1].backbone, config, loaded, device)
    sections.append(Section("What is near to what", "features", _near(stages[-1].title, features, loaded, fixed)))
    return sections


def _stages(run: RunFolder, config: RunConfig) -> tuple[list[Stage], list[str]]:
    """The teacher at the start and in the checkpoints that are kept, oldest first; and what could not be read."""
    stages, notices = [], []
    if config.student.init_from is None:
        with torch.random.fork_rng():
            stages.append(Stage(UNTRAINED, initial_models(config)[1].backbone))
    for path in evenly(run.checkpoints, _MOST_CHECKPOINTS):
        try:
            stages.append(Stage(f"step {int(path.stem.removeprefix('step-')):,}", load_backbone(read_weights(path))))
        except (DinowdsError, OSError) as error:
            notices.append(str(error))
    return stages, notices


def evenly(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count`, the first and the last among them."""
    if len(paths) <= count:
        return list(paths)
    return [paths[round(place)] for place in np.linspace(0, len(paths) - 1, count)]


def _over_training(
    stages: Sequence[Stage], fixed: Loaded, patch: int, trained: int, device: torch.device
) -> list[Block]:
    """Attention and colours of tokens of the fixed samples, a column a stage."""
    own = min(min(image.shape[:2]) for image in fixed.contents)
    side = max(trained, min(own, _LARGEST_SIDE)) // patch * patch
    images = as_images(fixed.contents, side)
    inputs = normalise(images.permute(0, 3, 1, 2).to(device))
    shown = [enlarged(image) for image in images.numpy()]
    colours = colour_map("inferno")
    attention: list[list[NDArray[np.uint8]]] = []
    tokens: list[list[NDArray[np.uint8]]] = []
    for stage in stages:
        seen = look(stage.backbone.to(device), inputs)
        stage.backbone.cpu()
        maps = seen.attention.mean(1).cpu().numpy()
        of_tokens = (255 * principal_colours(seen.tokens.cpu())).round().byte().numpy()
        attention.append([overlay(image, one, colours) for image, one in zip(shown, maps, strict=True)])
        tokens.append([enlarge(one, *image.shape[:2]) for image, one in zip(shown, of_tokens, strict=True)])
    head = ["image", *(stage.title for stage in stages)]

    def matrix(caption: str, note: str, what: str, pictures: Sequence[Sequence[NDArray[np.uint8]]]) -> Matrix:
        rows = []
        for place, image in enumerate(shown):
            title = fixed.title(place)
            cells = [Picture(webp(image), f"sample {fixed.keys[place]}, {title}")]
            for stage, column in zip(stages, pictures, strict=True):
                cells.append(Picture(webp(column[place]), f"{what} of sample {fixed.keys[place]}, {stage.title}"))
            rows.append((title, cells))
        return Matrix(caption, head, rows, note)

    return [
        matrix(
            "Attention of the class token over training",
            "Mean over the heads of the teacher's last block; each picture from its least (dark) to its most (light).",
            "attention",
            attention,
        ),
        matrix(
            "Patch tokens over training",
            "The first three principal components of a column's tokens as red, green and blue: what has one colour, "
            "the encoder takes for alike. Colours of different columns are not related.",
            "principal components",
            tokens,
        ),
    ]


def features_of(backbone: ImageViT, config: RunConfig, loaded: Loaded, device: torch.device) -> Tensor:
    """Class tokens, float32 [N, D]."""
    backbone = backbone.to(device)
    if isinstance(config, PatchConfig):
        side = config.tune.knn.image_size or config.crops.global_.size
        return backbone_features(backbone, as_images(loaded.contents, side))
    return torch.cat(
        [backbone_features(backbone, torch.from_numpy(np.array(grid))[None].float()) for grid in loaded.contents]
    )


def _near(stage: str, features: Tensor, loaded: Loaded, fixed: Sequence[int]) -> list[Block]:
    are_images = loaded.contents[0].dtype == np.uint8
    blocks: list[Block] = []
    if are_images and len(loaded.keys) > 1:
        blocks.append(_neighbours(stage, features, loaded, fixed))
    blocks.append(_map(stage, features, loaded, are_images))
    return blocks


def _neighbours(stage: str, features: Tensor, loaded: Loaded, fixed: Sequence[int]) -> Matrix:
    unit = torch.nn.functional.normalize(features, dim=1)
    cosines = unit[list(fixed)] @ unit.T
    cosines[torch.arange(len(fixed)), torch.tensor(fixed)] = -torch.inf
    found = cosines.topk(min(NEIGHBOURS, len(unit) - 1))
    rows = []
    for query, values, places in zip(fixed, found.values.tolist(), found.indices.tolist(), strict=True):
        cells = [_titled(loaded, query, "query")]
        cells += [_titled(loaded, place, f"{value:.2f}") for value, place in zip(values, places, strict=True)]
        rows.append((loaded.title(query), cells))
    head = ["query", *(str(number + 1) for number in range(len(found.indices[0])))]
    note = f"By the cosine of the teacher's features ({stage}), among {len(unit):,} samples drawn from the dataset."
    return Matrix("Nearest neighbours", head, rows, note)


def _titled(loaded: Loaded, place: int, value: str) -> Picture:
    title = loaded.title(place)
    alt = f"sample {loaded.keys[place]}, {title}, {value}"
    return Picture(webp(fit(_pixels(loaded, place), 96)), alt, f"{value} · {title}" if value != "query" else title)


def _pixels(loaded: Loaded, place: int) -> NDArray[np.uint8]:
    return loaded.contents[place].astype(np.uint8, copy=False)


def _map(stage: str, features: Tensor, loaded: Loaded, are_images: bool) -> Plot:
    places, how, titles, note = plane(features)
    groupings = {what: loaded.names[what] for what in reversed(NAMES) if len(set(loaded.names[what])) > 1}
    drawn = map_figure(
        places[:, 0].tolist(), places[:, 1].tolist(), groupings or {"cohort": loaded.names["cohort"]}, titles
    )
    groups = "; ".join(f"{len(set(names) - {NONE})} {what}s" for what, names in groupings.items())
    return Plot(
        f"Map of features ({how})",
        drawn.figure,
        f"{len(loaded.keys):,} samples as points in a plane, near where the teacher's features are alike. {groups}.",
        f"Of the teacher ({stage}). {note}" + (" Point at a sample to see it." if are_images else ""),
        height=620,
        choices=drawn.choices,
        sprite=_sprite(loaded) if are_images else None,
    )


def plane(features: Tensor) -> tuple[NDArray[np.float64], str, tuple[str, str], str]:
    """float [N, D] → float64 [N, 2], what it is, names of its axes, and how to read it. The same each time.

    t-SNE (van der Maaten and Hinton 2008) of the first 50 principal components, where scikit-learn is installed and
    there are samples enough; else the first two principal components.
    """
    unit = torch.nn.functional.normalize(features.double().nan_to_num(), dim=1)
    centred = unit - unit.mean(0)
    vectors, values, _ = torch.linalg.svd(centred, full_matrices=False)
    components = (vectors * values).numpy()
    shares = (values.square() / values.square().sum().clamp_min(1e-12)).tolist()
    tsne = _tsne()
    if tsne is not None and len(unit) >= 50 and components[:, 0].std() > _NO_SPREAD:
        embedded: NDArray[np.float64] = tsne(init="pca", perplexity=30, random_state=0).fit_transform(
            components[:, :50]
        )
        note = "Neighbours are alike; distances between far groups, and their sizes, mean little."
        return embedded.astype(np.float64), "t-SNE", ("", ""), note
    padded = np.pad(components, ((0, 0), (0, max(0, 2 - components.shape[1]))))[:, :2]
    names = tuple(f"component {n + 1} ({share:.0%} of the variance)" for n, share in enumerate([*shares, 0.0][:2]))
    return padded, "PCA", (names[0], names[1]), "Distances are those of the features, as far as two components show."


def _tsne() -> Callable[..., Any] | None:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return None
    found: Callable[..., Any] = TSNE
    return found


def _sprite(loaded: Loaded) -> Sprite:
    columns = int(np.ceil(np.sqrt(len(loaded.keys))))
    rows = -(-len(loaded.keys) // columns)
    sheet = np.zeros((rows, _THUMBNAIL, columns, _THUMBNAIL, 3), np.uint8)
    for place in range(len(loaded.keys)):
        sheet[place // columns, :, place % columns] = fit(_pixels(loaded, place), _THUMBNAIL)
    pixels = sheet.reshape(rows * _THUMBNAIL, columns * _THUMBNAIL, 3)
    return Sprite(webp(pixels, 70), _THUMBNAIL, columns)


def _num_points(config: RunConfig, device: torch.device) -> int:
    """Samples of the map: as many as the device can embed in a short time."""
    flops = _flops(architecture_of(config), config.crops.global_.size)
    return int(min(MOST_POINTS, max(_LEAST_POINTS, _BUDGET.get(device.type, _BUDGET["cpu"]) / flops)))


def _flops(architecture: Architecture, side: int) -> float:
    """Of the blocks of a forward pass of one sample, see `train.diagnostics.step_flops`."""
    tokens, width = (side // architecture.patch_size) ** 2 + 1, architecture.size.embed_dim
    return float(architecture.size.depth * (24 * tokens * width**2 + 4 * tokens**2 * width))


def as_images(contents: Sequence[NDArray[np.generic]], side: int) -> Tensor:
    """uint8 [N, side, side, 3]: the largest square in the middle of each."""
    return torch.from_numpy(np.stack([fit(content.astype(np.uint8, copy=False), side) for content in contents]))


def enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At least `_SHOWN_SIDE` px, by a whole factor: an overlay needs pixels for its squares."""
    factor = max(1, -(-_SHOWN_SIDE // image.shape[0]))
    return np.kron(image, np.ones((factor, factor, 1), np.uint8))


def webp(pixels: NDArray[np.uint8], quality: int = 80) -> bytes:
    """uint8 [H, W, 3] as a small file."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, "WEBP", quality=quality, method=4)
    return content.getvalue()
