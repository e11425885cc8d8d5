"""Tables of the pages against the code that they are of."""

from __future__ import annotations

import re

import yaml

from dinowds.config import CONFIGS, FREE_TO_CHANGE, Kind, flatten, to_dict
from dinowds.config.earlier import EARLIER_NAMES, OF_COMMANDS
from dinowds.config.keys import unflatten
from dinowds.config.reference import translate
from dinowds.train.watch import ADVICE
from tests.docs.pages import ROOT, prose
from tests.faults.page import read_result, with_figures
from tests.test_reference_yaml import PATCH, REGION

_THEIRS = flatten(yaml.safe_load(PATCH)) | flatten(yaml.safe_load(REGION))
_KINDS: tuple[Kind, ...] = ("image", "region")


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def reference_keys() -> dict[str, str]:
    """Key → what the page says that it is here."""
    return dict(re.findall(r"^\| `([a-z]+\.[a-z0-9_.]+)` \| (.*) \|$", text_of("reference.md"), re.MULTILINE))


def test_reference__every_key_is_in_the_table() -> None:
    known = {*_THEIRS, *OF_COMMANDS, *(key for kind in _KINDS for key in EARLIER_NAMES[kind])}
    assert set(reference_keys()) == known | {"wandb.key"}


def test_reference__says_what_becomes_of_a_key() -> None:
    for key, said in reference_keys().items():
        ours = [kind for kind in _KINDS if key in flatten(to_dict(CONFIGS[kind]()))]
        names = {EARLIER_NAMES[kind][key] for kind in _KINDS if key in EARLIER_NAMES[kind]}
        if said.startswith("same"):
            assert ours, key
            assert not names, key
        elif said.startswith("`"):
            assert names, key
            assert all(f"`{name}`" in said for name in names), key
        elif said.startswith("not used"):
            content = unflatten({"train.output_dir": "x", key: 2})
            assert key == "train.resume" or key in " ".join(translate(content, "image", "file", 1).unused), key
        else:
            assert key in ("train.dataset_path", "train.output_dir", "student.region_size")


def test_alarms__every_finding_has_its_advice() -> None:
    text = text_of("alarms.md")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for name, advice in ADVICE.items():
        section = sections[name]
        keys = {key for option in advice.options for key in re.findall(r"[a-z]+\.[a-z_]+", option)}
        assert keys <= set(re.findall(r"[a-z]+\.[a-z_]+", section)), name
        assert all(cause in " ".join(section.split()) for cause in advice.causes), name
        assert f"alarms.md#{name}" in text_of("training.md")
    assert set(ADVICE) <= set(sections)


def test_resume__names_the_keys_that_may_change() -> None:
    text = text_of("resume.md")
    said = text[text.index("## What may change") : text.index("(With `student.use_bn_in_head`")]
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", said)) == FREE_TO_CHANGE


def test_pages__keys_that_they_name_exist() -> None:
    """`section.key` in code is one of a configuration, wherever the section is one's."""
    known = {key for kind in _KINDS for key in flatten(to_dict(CONFIGS[kind]()))}
    sections = {key.partition(".")[0] for key in known} - {"wandb", "mlflow"}
    for page in sorted((ROOT / "docs").glob("*.md")):
        if page.name in ("reference.md", "experiments.md", "library.md"):
            continue
        for key in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", prose(page)):
            if key.partition(".")[0] in sections:
                is_section = any(name.startswith(f"{key}.") for name in known)
                assert key in known or is_section or key == "train.log", f"{page.name}: {key}"


def test_reliability__every_test_that_it_names_exists() -> None:
    tests = ROOT / "tests"
    named = re.findall(r"`([a-z_/]+\.py)(?:::(test_\w+))?`", text_of("reliability.md"))
    assert len(named) > 50
    for name, function in named:
        path = tests / name if (tests / name).is_file() else tests / "faults" / name
        assert not function or f"def {function}(" in path.read_text(), f"{name}::{function}"


def test_reliability__names_every_room_s_tests() -> None:
    text = text_of("reliability.md")
    for path in sorted((ROOT / "tests" / "faults").glob("*/test_*.py")):
        for function in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE):
            is_of_the_suite = path.name == "test_linter.py" or function.endswith("seeds_are_no_findings")
            assert f"`{path.parent.name}/{path.name}::{function}`" in text or is_of_the_suite, function


def test_reliability__figures_are_those_of_the_last_full_run() -> None:
    text = text_of("reliability.md")
    assert with_figures(text, read_result()) == text
