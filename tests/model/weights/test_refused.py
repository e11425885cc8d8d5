"""What does not fit by name, shape or dtype is refused by name; what is no weights runs nothing."""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import pickle
import re
import struct
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinowds.errors import CheckpointError
from dinowds.model.weights import read_weights
from tests.model.weights.files import head_state, image_state, original_dino, reference, region_state, save

pytestmark = pytest.mark.usefixtures("tiny")


def _refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


# --- names and shapes ---


def test_read_weights__missing_tensor(tmp_path: Path) -> None:
    state = image_state()
    del state["blocks.1.attn.qkv.bias"]
    _refused(save(tmp_path / "a.pth", state), r"1 missing: blocks\.1\.attn\.qkv\.bias$")


def test_read_weights__extra_tensor(tmp_path: Path) -> None:
    state = region_state() | {"fc.weight": torch.zeros(2, 2)}
    _refused(save(tmp_path / "a.pth", state), r"1 unexpected: fc\.weight$")


def test_read_weights__renamed_tensor_is_never_matched_by_its_shape(tmp_path: Path) -> None:
    state = image_state()
    state["blocks.0.norm3.weight"] = state.pop("blocks.0.norm2.weight")
    _refused(
        save(tmp_path / "a.pth", state),
        r"1 missing: blocks\.0\.norm2\.weight; 1 unexpected: blocks\.0\.norm3\.weight$",
    )


def test_read_weights__swapped_tensors_of_other_shapes(tmp_path: Path) -> None:
    state = image_state()
    first, second = "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"
    state[first], state[second] = state[second], state[first]
    _refused(
        save(tmp_path / "a.pth", state),
        r"2 of another shape: blocks\.0\.mlp\.fc1\.weight \[12, 48\] in place of \[48, 12\], blocks",
    )


def test_read_weights__order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    state = image_state()
    first = read_weights(save(tmp_path / "a.pth", state))
    assert first.fingerprint == read_weights(save(tmp_path / "b.pth", dict(reversed(state.items())))).fingerprint


def test_read_weights__many_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    state = {name: value for name, value in image_state().items() if ".attn." not in name}
    _refused(save(tmp_path / "a.pth", state), r"8 missing: blocks\.0\.attn\.proj\.bias, .*, …$")


def test_read_weights__a_name_that_is_there_twice(tmp_path: Path) -> None:
    state = image_state() | {"module.norm.bias": torch.zeros(12)}
    _refused(save(tmp_path / "a.pth", state), r"holds norm\.bias twice, as norm\.bias, module\.norm\.bias")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("pos_embed", (1, 9, 12), r"pos_embed is \[1, 9, 12\], expected \[1, n² \+ 1, D\]"),
        ("pos_embed", (1, 1, 12), r"pos_embed is \[1, 1, 12\]"),
        ("pos_embed", (10, 12), r"pos_embed is \[10, 12\]"),
        ("patch_embed.proj.weight", (12, 4, 4, 4), r"expected \[D, 3, P, P\]"),
        ("patch_embed.proj.weight", (12, 3, 4, 5), r"expected \[D, 3, P, P\]"),
        ("patch_embed.proj.weight", (12, 48), r"expected \[D, 3, P, P\]"),
        ("patch_embed.proj.weight", (13, 3, 4, 4), r"width 13 with depth 2 is none of vit_tiny \(192, 12\)"),
    ],
)
def test_read_weights__shape_of_no_vit(tmp_path: Path, name: str, shape: tuple[int, ...], message: str) -> None:
    _refused(save(tmp_path / "a.pth", image_state() | {name: torch.zeros(shape)}), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reg_token": (2, 12)}, r"reg_token is \[2, 12\], expected \[1, R, D\]"),
        ({"reg_token": (1, 2, 13)}, r"1 of another shape: reg_token \[1, 2, 13\] in place of \[1, 2, 12\]"),
        ({"reg_token": (1, 2, 12), "pos_embed": (1, 12, 12)}, r"pos_embed is \[1, 12, 12\]"),  # a place for each
        ({"blocks.1.ls1.gamma": (12,)}, r"3 missing: blocks\.0\.ls1\.gamma, blocks\.0\.ls2\.gamma, blocks\.1\.ls2"),
        ({"blocks.1.ls2.gamma": (12,)}, r"1 unexpected: blocks\.1\.ls2\.gamma"),
        ({"register_tokens": (1, 2, 12)}, r"1 unexpected: register_tokens"),
    ],
)
def test_read_weights__later_options_that_do_not_fit(
    tmp_path: Path, changes: dict[str, tuple[int, ...]], message: str
) -> None:
    state = image_state() | {name: torch.zeros(shape) for name, shape in changes.items()}
    _refused(save(tmp_path / "a.pth", state), message)


def test_read_weights__no_vit_at_all(tmp_path: Path) -> None:
    _refused(save(tmp_path / "a.pth", {"conv1.weight": torch.zeros(3)}), r"1 tensors \(conv1\.weight\)")
    _refused(save(tmp_path / "b.pth", {}), "0 tensors")


@pytest.mark.parametrize("lost", ["mlp.2.bias", "last_layer.weight_g", "last_layer.weight_v"])
def test_read_weights__missing_in_the_head(tmp_path: Path, lost: str) -> None:
    head = {f"head.{name}": value for name, value in head_state(12).items() if name != lost}
    _refused(save(tmp_path / "a.pth", image_state() | head), rf"the head does not fit.*1 missing: head\.{lost}")


def test_read_weights__extra_in_the_head(tmp_path: Path) -> None:
    head = {f"head.{name}": value for name, value in (head_state(12) | {"mlp.8.bias": torch.zeros(3)}).items()}
    _refused(save(tmp_path / "a.pth", image_state() | head), r"1 unexpected: head\.mlp\.8\.bias$")


# --- values ---


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bool, torch.complex64])
def test_read_weights__other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    state = image_state() | {"norm.bias": torch.zeros(12, dtype=dtype)}
    _refused(save(tmp_path / "a.pth", state), rf"norm\.bias is {str(dtype)[6:]}, expected float32, float16 or bfloat16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_read_weights__values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    state = image_state()
    state["blocks.0.attn.proj.bias"][3] = value
    _refused(save(tmp_path / "a.pth", state), r"blocks\.0\.attn\.proj\.bias has values that are not finite")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(12),  # 4 bytes that could as well be of any size
        torch.zeros(12).to_sparse(),
        torch.zeros(12, device="meta"),
        torch.zeros(0),
        [0.0] * 12,
        None,
    ],
)
def test_read_weights__entries_that_are_no_plain_tensors(tmp_path: Path, value: Any) -> None:
    _refused(save(tmp_path / "a.pth", image_state() | {"norm.bias": value}), r"1 entries are not plain.*: 'norm\.bias'")


def test_read_weights__tensors_that_share_their_values(tmp_path: Path) -> None:
    """A small file of many names for one tensor could fill any memory."""
    state = image_state()
    state["blocks.1.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"]
    _refused(save(tmp_path / "a.pth", state), "its tensors share their values")
    parts = torch.arange(24.0)
    read_weights(save(tmp_path / "b.pth", image_state() | {"norm.bias": parts[:12], "norm.weight": parts[12:]}))


def test_read_weights__prototypes_of_no_shape(tmp_path: Path) -> None:
    head = {f"head.{name}": value for name, value in head_state(12).items()}
    head["head.last_layer.weight_v"] = torch.tensor(1.0)
    _refused(save(tmp_path / "a.pth", image_state() | head), r"head\.last_layer\.weight_v \[\] in place of \[1, 6\]")


def test_read_weights__names_are_shown_on_one_line(tmp_path: Path) -> None:
    state = image_state() | {"\x1b[31mfc\n" + "x" * 200: torch.zeros(1)}
    _refused(save(tmp_path / "a.pth", state), r"1 unexpected: \?\[31mfc\?x{72}$")


# --- files ---


class _Evil:
    """Makes the file `mark` when it is unpickled by a reader that runs what a file says."""

    def __init__(self, mark: Path, how: str) -> None:
        self.mark, self.how = mark, how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "eval":
            return eval, (f"open({str(self.mark)!r}, 'w')",)
        return os.system, (f"touch {self.mark}",)


class _Reduced:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _hide(evil: Any, place: str) -> Any:
    state: dict[Any, Any] = dict(image_state())
    return {
        "weight": state | {"norm.bias": evil},
        "args": original_dino(state, state) | {"args": argparse.Namespace(lr=evil)},
        "optimizer": reference(state, state) | {"optimizer": [[{"lr": evil}]]},
        "all": evil,
    }[place]


@pytest.mark.parametrize("how", ["system", "eval"])
@pytest.mark.parametrize("place", ["weight", "args", "optimizer", "all"])
@pytest.mark.parametrize("zipped", [True, False])
def test_read_weights__code_is_refused_and_not_run(tmp_path: Path, how: str, place: str, zipped: bool) -> None:
    mark = tmp_path / "mark"
    content = _hide(_Evil(mark, how), place)
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    _refused(tmp_path / "a.pth", f"holds .*({how}), which is code or an object, not weights; nothing of it was run")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(_Evil(mark, how), protocol=2))
    _refused(tmp_path / "b.pth", "damaged|which is code")
    assert not mark.exists()


_scalar = np.float64(1).__reduce__()[0]


@pytest.mark.parametrize(
    "value",
    [
        _Reduced(_scalar, np.dtype("O"), b"12345678"),
        _Reduced(_scalar, np.dtype([("a", "O")]), b"12345678"),
        _Reduced(_scalar, np.dtype("V8"), b"12345678"),
        _Reduced(_scalar, np.dtype("U2"), b"12345678"),
        _Reduced(_scalar, np.dtype("f8"), "text"),
        _Reduced(_scalar, "f8", b"12345678"),
        _Reduced(np.dtype, "O"),
        np.zeros(3),
        np.array([print]),
        np.datetime64("2020-01-01"),
    ],
)
def test_read_weights__of_numpy_only_plain_numbers(tmp_path: Path, value: Any) -> None:
    state = image_state()
    content = reference(state, state) | {"optimizer": {"lr": value}}
    _refused(save(tmp_path / "a.pth", content), r"holds .*(numpy|print)")


def test_read_weights__numpy_dtype_with_another_state(tmp_path: Path) -> None:
    """`f8` whose state makes its bytes a pointer."""

    class Sly:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("f8", False, True), (3, "|", None, ("a",), {"a": ("O", 0)}, 8, 1, 63)

    state = image_state()
    content = reference(state, state) | {"optimizer": {"lr": Sly()}}
    _refused(save(tmp_path / "a.pth", content), "holds a numpy type that is no plain number's")


def test_read_weights__numpy_scalars_of_either_byte_order(tmp_path: Path) -> None:
    state = image_state()
    values = [np.float64(0.5), np.float32(0.5), np.int64(5), np.float16(2), np.dtype(">f8").type(3), np.uint8(1)]
    content = reference(state, state) | {"optimizer": {"lr": values}}
    read_weights(save(tmp_path / "a.pth", content))
    torch.save(content, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    named = (tmp_path / "b.pth").read_bytes()
    assert b"numpy._core.multiarray\n" in named
    (tmp_path / "b.pth").write_bytes(named.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))  # before 2
    read_weights(tmp_path / "b.pth")


def test_read_weights__leaves_torch_as_strict_as_it_was(tmp_path: Path) -> None:
    state = image_state()
    path = save(tmp_path / "a.pth", original_dino(state, state))
    with torch.serialization.safe_globals([collections.deque]):
        before = set(torch.serialization.get_safe_globals())
        read_weights(path)
        assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_read_weights__threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    state = image_state()
    path = save(tmp_path / "a.pth", original_dino(state, state))
    failed: list[Exception] = []

    def read() -> None:
        try:
            for _ in range(15):
                read_weights(path)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_read_weights__no_such_file(tmp_path: Path) -> None:
    _refused(tmp_path / "a.pth", "no such file of weights")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "neither a run's folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a file of torch.save nor safetensors"),
        (b"\n<!DOCTYPE html><html>404</html>", "HTML"),
        (b"<?xml version='1.0'?><Error/>", "HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "pointer of Git LFS"),
        (b"PK\x03\x04 and no more", "damaged"),
        (b"\x80\x02 and no more", "damaged"),
        (b"x" * 100, "damaged at its start"),
    ],
)
def test_read_weights__what_is_no_weights(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    _refused(tmp_path / "a.pth", message)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_read_weights__truncated(tmp_path: Path, share: float) -> None:
    content = save(tmp_path / "a.pth", image_state()).read_bytes()
    (tmp_path / "b.pth").write_bytes(content[: int(share * len(content))])
    _refused(tmp_path / "b.pth", "damaged")


def test_read_weights__a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("a.txt", "text")
    _refused(tmp_path / "a.pth", "damaged, or no file of torch.save")


def test_read_weights__a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", image_state() | {"fc": torch.zeros(1_000_000)})
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as other:
        for name in file.namelist():
            other.writestr(name, file.read(name))
    _refused(tmp_path / "b.pth", "holds compressed entries, which torch.save does not write")


def test_read_weights__not_a_dict(tmp_path: Path) -> None:
    _refused(save(tmp_path / "a.pth", [1, 2]), "holds a list, expected a dict of tensors")


def _safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        _safetensors(b"{" + b"x" * 20),
        _safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"short"),
        _safetensors({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        _safetensors({"a": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 4]}}, b"1234"),
        struct.pack("<Q", 1 << 60) + b"{}",
    ],
)
def test_read_weights__damaged_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    _refused(tmp_path / "a.safetensors", "damaged safetensors file")


@pytest.mark.parametrize("notes", ["{", "[]", '{"architecture": 3}', "[" * 100_000])
def test_read_weights__metadata_that_cannot_be(tmp_path: Path, notes: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(_safetensors({"__metadata__": {"dinowds": notes}}))
    _refused(tmp_path / "a.safetensors", "metadata 'dinowds' is not|is not an object|neither patch_embed")


def test_read_weights__a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(OSError, match="Not a regular file"):
        read_weights(tmp_path / "a.pth")


def test_read_weights__reads_what_torch_saves_to_memory(tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save(image_state(), content)
    (tmp_path / "a.bin").write_bytes(content.getvalue())
    assert read_weights(tmp_path / "a.bin").family == "dino"
