"""What a kill leaves at the moments that chance hits seldom: the next run takes it away, and nothing of anyone else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinowds.embed.patches.embed import embed_patches
from dinowds.embed.patches.job import PatchOptions
from dinowds.embed.patches.reader import ABOUT_NAME, UNFINISHED_NAME
from dinowds.embed.regions.embed import embed_regions
from dinowds.embed.regions.ways import RegionOptions
from dinowds.errors import OutputError
from dinowds.files import atomic_write, remove_abandoned, temporary_path
from dinowds.model.weights import export_weights, read_weights
from tests.embed.support import make_coded_dataset, write_weights


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_remove_abandoned__spares_what_is_being_written_and_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    others = [".a.html.tmp", ".a.html.b.0123456789abcdef.tmp", ".b.html.0123456789abcdef.tmp", "a.html.tmp"]
    for name in others:
        (tmp_path / name).touch()
    left = temporary_path(path)
    left.write_bytes(b"half")
    with atomic_write(path) as file:
        living = Path(str(file.name))
        remove_abandoned(path)
        assert living.exists()
        assert not left.exists()
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == sorted([*others, "a.html"])


@pytest.mark.parametrize("moment", ["before the new one has its name", "after"])
def test_export__killed_while_it_replaces_a_folder_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr("dinowds.model.weights.export.check_export", lambda *_: 0.0)
    out = tmp_path / "export"
    weights = read_weights(write_weights(tmp_path / "weights.pt"))
    export_weights(weights, out, "timm")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    new, old = temporary_path(out), tmp_path / ".export.0123456789abcdef.old"
    if moment == "after":
        export_weights(weights, old, "timm")
    else:
        new.mkdir()
        (new / "model.safetensors").write_bytes(b"half")
        out.rename(new.with_name(new.name.removesuffix(".tmp") + ".old"))
    with pytest.raises(OutputError, match="exists"):  # it is there again
        export_weights(weights, out, "timm")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert names(tmp_path) == ["export", "weights.pt"]
    export_weights(weights, out, "timm", overwrite=True)
    assert names(tmp_path) == ["export", "weights.pt"]


def test_embed__killed_while_it_clears_features_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = make_coded_dataset(tmp_path / "coded"), tmp_path / "features"
    one, other = (str(write_weights(tmp_path / f"{seed}.pt", seed)) for seed in (0, 1))
    embed_patches(data, out, PatchOptions(one, workers=0))
    unlink = Path.unlink
    removed: list[Path] = []

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".parquet" and removed:
            raise KeyboardInterrupt
        removed.extend([path] * (path.suffix == ".parquet"))
        unlink(path, missing_ok=missing_ok)

    options = PatchOptions(other, workers=0, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            embed_patches(data, out, options)
    assert not (out / ABOUT_NAME).exists()
    assert list(out.glob("*.parquet"))
    embed_patches(data, out, options)
    assert not (out / UNFINISHED_NAME).exists()
    embed_patches(data, tmp_path / "whole", options)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


def test_embed_region__killed_while_it_first_writes_its_question(tmp_path: Path) -> None:
    data, out = make_coded_dataset(tmp_path / "coded"), tmp_path / "regions"
    work = tmp_path / "regions.unfinished"
    work.mkdir()
    (work / ".lock").touch()
    temporary_path(work / "question.json").write_text('{"made')
    weights = str(write_weights(tmp_path / "weights.pt"))
    options = RegionOptions(96, embedding=PatchOptions(weights, workers=0))
    assert embed_regions(data, out, options) is not None
    assert not work.exists()
