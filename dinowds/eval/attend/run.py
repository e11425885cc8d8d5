"""`dinowds attend`: sources and weights → PNG files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dinowds.data.decode import decode_image
from dinowds.data.grids import decode_grid
from dinowds.errors import ConfigError, OutputError, SampleError
from dinowds.eval.attend.draw import Style, rows_of
from dinowds.eval.attend.inputs import Input, find_inputs
from dinowds.eval.attend.models import DEFAULT_PATCH_SIZE, Model, see_grid, see_image, see_region
from dinowds.eval.attend.seen import Seen, colours_of
from dinowds.eval.attention import mass_mask
from dinowds.eval.pictures import Bar, Pixels, Row, colour_map, panel_sheet
from dinowds.files import write_atomic
from dinowds.model.weights import Weights, read_weights
from dinowds.model.weights.weights import Which
from dinowds.train.devices import choose_device
from dinowds.world import World

_CANVAS, _LARGE_CANVAS = 1024, 2048  # px of the longer side, at most: of what sheets show, and of panels' own files


@dataclass(frozen=True)
class AttendOptions:
    """What `dinowds attend` is asked for."""

    checkpoint: str
    """As for `model.weights.read_weights`; of images or of regions."""
    patch_checkpoint: str | None = None
    """Of images, for images of whole regions."""
    which: Which = "teacher"
    size: int | None = None
    """That the shorter side of an image is resized to, px; None: as it is."""
    patch_size: int | None = None
    """Side of a region's patches, px; None: what the region's model says, or 256."""
    drop_blank: bool = False
    """Blank patches of a region are missing cells."""
    mass: float = 0.6
    """Share of the attention that the mask holds. (Caron et al. 2021.)"""
    colours: str = "inferno"
    """One of `pictures.COLOUR_MAPS`."""
    alpha: float = 0.6
    """Share of the colours over an image."""
    is_smooth: bool = False
    """Interpolate between tokens."""
    only_foreground: bool = False
    """Principal components of the foreground alone."""
    is_joint: bool = False
    """Principal components of all inputs together; their tokens are kept in memory."""
    panels: bool = False
    """Each panel in a file of its own too."""
    overwrite: bool = False


@dataclass(frozen=True)
class Drawn:
    """One sheet."""

    source: str
    """Image file, or key of a sample."""
    picture: Path
    panels: int
    """Files of panels beside it."""
    details: list[str]
    """What was done with its size, and other remarks."""
    tokens: int
    """That attention was drawn for."""
    attention_on_tokens: float
    """Of all attention, 0 … 1; the mean of the heads."""
    tokens_in_mask: int


def attend(
    sources: Sequence[str],
    out: Path,
    options: AttendOptions,
    keys: Sequence[str] = (),
    samples: int | None = None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Drawn]:
    """Draw a sheet for each input into the folder `out`: NAME.png.

    Args:
        sources, keys, samples: as `inputs.find_inputs`.
        report: is given the number of sheets that are done, and of all.

    Raises:
        DinowdsError: what was asked for cannot be; a picture is there already. Checked before any is drawn, but for
            inputs that cannot be decoded or have no fitting size.
    """
    style = Style(colour_map(options.colours), options.alpha, options.is_smooth, options.mass, options.only_foreground)
    _check_numbers(options)
    inputs = find_inputs(sources, keys, samples)
    _check_out(out, inputs, options)
    models, see = _choose_way(options, inputs)
    drawn: list[Drawn] = []
    seen = (_see(see, one) for one in inputs)
    for one, (found, colours) in zip(inputs, _coloured(seen, options), strict=True):
        rows = rows_of(found, colours, style)
        drawn.append(_write(out, one, found, rows, models, style, options))
        report(len(drawn), len(inputs))
    return drawn


_See = Callable[[bytes], Seen]


def _choose_way(options: AttendOptions, inputs: Sequence[Input]) -> tuple[list[Model], _See]:
    """The models, and how they look at a payload."""
    weights, device = read_weights(options.checkpoint, options.which), choose_device(World())
    kind, of_inputs = weights.architecture.kind, inputs[0].kind
    most_px = _LARGE_CANVAS if options.panels else _CANVAS
    model = Model(weights, device)
    if options.patch_checkpoint is not None:
        patch_weights = read_weights(options.patch_checkpoint, options.which)
        if (kind, patch_weights.architecture.kind, of_inputs) != ("region", "image", "image"):
            raise ConfigError(
                f"--patch-checkpoint: is of {patch_weights.architecture.kind}s, --checkpoint of {kind}s, and "
                f"{inputs[0].source} is of {of_inputs}s; expected a model of images, one of regions, and images of "
                "regions"
            )
        patch_model, side = Model(patch_weights, device), _patch_size(options, weights, patch_weights)

        def see_whole(payload: bytes) -> Seen:
            image = decode_image(payload)
            return see_region(model, patch_model, image, options.size, side, options.drop_blank, most_px)

        return [model, patch_model], see_whole
    _check_alone(options, weights, inputs[0])
    if kind == "region":
        return [model], lambda payload: see_grid(model, decode_grid(payload))
    return [model], lambda payload: see_image(model, decode_image(payload), options.size, most_px)


def _check_alone(options: AttendOptions, weights: Weights, first: Input) -> None:
    """Whether one model suits the inputs and the options."""
    kind = weights.architecture.kind
    for name, is_given in (("--patch-size", options.patch_size is not None), ("--drop-blank", options.drop_blank)):
        if is_given:
            raise ConfigError(f"{name}: is for images of whole regions; give --patch-checkpoint, or leave it out")
    if kind == "region" and first.kind == "image":
        raise ConfigError(
            f"{options.checkpoint}: is a model of regions, but {first.source} is an image; give --patch-checkpoint, "
            "the model of its patches"
        )
    if kind != first.kind:
        raise ConfigError(f"{options.checkpoint}: is a model of {kind}s, but {first.source} is a {first.kind}")
    if kind == "region" and options.size is not None:
        raise ConfigError("--size: is for images, but this is a dataset of regions; leave it out")


def _check_numbers(options: AttendOptions) -> None:
    for name, value in (("--mass", options.mass), ("--alpha", options.alpha)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}: is {value:g}, expected a share from 0 to 1")
    for name, number in (("--size", options.size), ("--patch-size", options.patch_size)):
        if number is not None and number < 1:
            raise ConfigError(f"{name}: is {number}, expected at least 1 px")


def _patch_size(options: AttendOptions, weights: Weights, patch_weights: Weights) -> int:
    """Of a region's patches, px."""
    metadata = weights.about.get("metadata")
    said = metadata.get("patch_size") if isinstance(metadata, dict) else None
    side = options.patch_size or (said if type(said) is int and said > 0 else DEFAULT_PATCH_SIZE)
    own = patch_weights.architecture.patch_size
    if side % own:
        raise ConfigError(
            f"--patch-size: is {side} px, expected a multiple of {own}, the side of a token of "
            f"{options.patch_checkpoint}"
        )
    return side


def _check_out(out: Path, inputs: Sequence[Input], options: AttendOptions) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder for pictures; give another --out")
    if options.overwrite:
        return
    for one in inputs:
        for path in (_picture(out, one), *([_folder(out, one)] if options.panels else [])):
            if path.exists():
                raise OutputError(f"{path}: exists; give another --out, or --overwrite to replace it")


def _picture(out: Path, one: Input) -> Path:
    return out / f"{one.name}.png"


def _folder(out: Path, one: Input) -> Path:
    """Of its panels."""
    return out / one.name


def _see(see: _See, one: Input) -> Seen:
    try:
        return see(one.read())
    except SampleError as error:
        raise SampleError(f"{one.where}: {str(error).removeprefix(f'{one.where}: ')}") from None
    except ConfigError as error:
        raise ConfigError(f"{one.where}: {error}") from None


def _coloured(seen: Iterable[Seen], options: AttendOptions) -> Iterator[tuple[Seen, dict[str, Pixels]]]:
    """Each with the colours of its levels' tokens."""
    if not options.is_joint:
        for one in seen:
            levels = one.levels.items()
            yield one, {name: colours_of([level], options.only_foreground)[0] for name, level in levels}
        return
    kept = list(seen)
    together = {
        name: colours_of([one.levels[name] for one in kept], options.only_foreground) for name in kept[0].levels
    }
    for number, one in enumerate(kept):
        yield one, {name: colours[number] for name, colours in together.items()}


def _write(
    out: Path,
    one: Input,
    seen: Seen,
    rows: Sequence[Row],
    models: Sequence[Model],
    style: Style,
    options: AttendOptions,
) -> Drawn:
    bar = Bar(style.colours, "least", "most attention within a picture")
    details = [*(model.description for model in models), *seen.details]
    sheet = panel_sheet(_printable(one.title), [_printable(line) for line in details], rows, bar)
    panels = [panel for row in rows for panel in row.panels] if options.panels else []
    (_folder(out, one) if panels else out).mkdir(parents=True, exist_ok=True)
    for panel in panels:
        write_atomic(_folder(out, one) / f"{panel.name}.png", _png(Image.fromarray(panel.pixels)))
    write_atomic(_picture(out, one), _png(sheet))
    mask = mass_mask(seen.main.mean, style.mass)
    return Drawn(
        source=one.source,
        picture=_picture(out, one),
        panels=len(panels),
        details=seen.details,
        tokens=int(seen.main.exists.sum()),
        attention_on_tokens=float(seen.main.mean.sum()),
        tokens_in_mask=int(mask.sum()),
    )


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _printable(text: str) -> str:
    """Names come from files: a line stays a line."""
    return "".join(c if c.isprintable() else "?" for c in text)
