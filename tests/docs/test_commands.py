"""Every command of the pages is run in a small world; what cannot run there is in `NOT_RUN`, and is parsed at least."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dinowds.config import Kind, load_config
from tests.docs.pages import PAGES, blocks
from tests.docs.world import SHRINK_PATCH, SHRINK_REGION, call

NOT_RUN = {
    "make demo": "takes minutes; tests/test_demo.py makes a smaller one",
    "make test": "is what runs this",
    "make faults": "takes hours; each of its tests has a short form",
    "make docs": "tests/docs/test_site.py builds the site",
    "pip install": "needs a network",
    "dinowds demo": "takes minutes; tests/test_demo.py makes a smaller one",
    "dinowds train patch --config patch.yaml --nproc 8 --out runs/b optim.epochs=100": "eight processes at once",
}
"""How a command begins → why it is not run."""

SLURM = "#SBATCH"
"""Scripts with such lines are for Slurm: their syntax is checked, and the `dinowds` commands in them are parsed."""

ADDED = {
    ("order",): ("train.batch_size=12",),
    ("train", "patch"): SHRINK_PATCH,
    ("train", "region"): SHRINK_REGION,
    ("embed", "patch"): ("--workers", "0"),
    ("embed", "region"): ("--workers", "0", "--min-filled", "0.01"),
}
"""What is added to commands, so that they take a second or two and a region of 20 patches is enough."""

GOES_ON = ("--append", "--overwrite")
"""Options of commands that need what lies at their --out."""

CODES = {"dinowds doctor": (0, 1)}
"""Exit codes of commands whose answer is the machine's."""


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands_of(page: Path) -> Iterator[Command]:
    """Each line of its blocks of commands; scripts for Slurm have none."""
    for language, text in blocks(page, "sh", "bash", "console"):
        if SLURM in text:
            continue
        for line in text.replace("\\\n", " ").splitlines():
            is_command = language != "console" or line.startswith("$ ")
            if is_command and (words := shlex.split(line.removeprefix("$ "), comments=True)):
                yield Command(page.name, tuple(words))


def scripts() -> list[str]:
    return [text for page in PAGES for _, text in blocks(page, "sh", "bash") if SLURM in text]


COMMANDS = [command for page in PAGES for command in commands_of(page)]


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Values of a command's options, as Typer reads them; overrides have to be known keys with fitting values.

    Raises:
        click.UsageError: no such command or option.
        ConfigError: no such key.
    """
    from dinowds.cli.main import app
    from typer.main import get_command

    command: Any = get_command(app)
    place = 0
    while hasattr(command, "commands"):
        place += 1
        assert words[place] in command.commands, words
        command = command.commands[words[place]]
    values: dict[str, Any] = command.make_context(words[place], list(words[place + 1 :])).params
    if overrides := values.get("overrides"):
        kind: Kind = "region" if words[1:3] == ("train", "region") else "image"
        load_config(None, list(overrides), kind)
    return values


def is_not_run(command: str) -> bool:
    return any(f"{command} ".startswith(f"{start} ") for start in NOT_RUN)


def shrunk(words: Sequence[str]) -> list[str]:
    """With what `ADDED` says, but for keys that the command gives."""
    given = {word.partition("=")[0] for word in words}
    more = next((added for start, added in ADDED.items() if tuple(words[1 : 1 + len(start)]) == start), ())
    return [*words, *(word for word in more if word.partition("=")[0] not in given)]


def in_world(words: Sequence[str], world: Path) -> list[str]:
    """As the shell hands it over in `world`, where `/data` lies too."""
    found: list[str] = []
    for word in words:
        found += sorted(map(str, Path().glob(word))) if "/*." in word else [word]
    return [word.replace("root=/data", f"root={world / 'root'}") for word in found]


def make_room(words: Sequence[str]) -> None:
    """Remove what another command has made at --out, and a subset that is to be made."""
    if set(GOES_ON) & set(words):
        return
    for option in ("--out", "-o"):
        if option in words:
            path = Path(words[words.index(option) + 1])
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
    if words[1] == "subset" and "--name" in words:
        for path in Path(words[2].partition(":")[0]).glob(f"subsets/{words[words.index('--name') + 1]}.*"):
            path.unlink()


def first_on(page: Path) -> list[Command]:
    """The commands of a page that no earlier one has."""
    found = {command.words: command for command in reversed(COMMANDS)}
    return [command for command in COMMANDS if command.page == page.name and found[command.words] is command]


@pytest.mark.parametrize("page", [page for page in PAGES if first_on(page)], ids=lambda page: page.name)
def test_commands__run(page: Path, own_world: Path, request: pytest.FixtureRequest) -> None:
    """Those of a page one after the other; one that earlier pages have is not run again."""
    commands = [command for command in first_on(page) if not is_not_run(str(command))]
    if any("s3://" in word for command in commands for word in command.words):
        request.getfixturevalue("lab")
    for command in commands:
        assert command.words[0] == "dinowds", f"{command}: no command of dinowds; say in NOT_RUN why it is not run"
        words = in_world(shrunk(command.words), own_world)
        make_room(words)
        done = call(words[1:])
        assert done.code in CODES.get(str(command), (0,)), f"{command}: {done.err}"


@pytest.mark.parametrize("command", dict.fromkeys(map(str, COMMANDS)))
def test_commands__are_understood(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "dinowds" or is_not_run(command)
    if words[0] == "dinowds":
        parse(words)


def test_commands_of__a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\ndinowds a 'b c' \\\n  --d  # e\n\n# f\n    ```\n```\n1.\n\n    ```sh\n    g h\n    ```\n"
        "```console\n$ i\nanswer\n```\n```bash\n#SBATCH\nsrun j\n```\n```python\nk\n```\n"
    )
    words = [command.words for command in commands_of(page)]
    assert words == [("dinowds", "a", "b c", "--d"), ("```",), ("g", "h"), ("i",)]


def test_not_run__names_commands_of_the_pages() -> None:
    for start in NOT_RUN:
        assert any(f"{command} ".startswith(f"{start} ") for command in COMMANDS), start


def test_pages__commands_are_marked_as_such() -> None:
    for page in PAGES:
        for language, text in blocks(page):
            if language not in ("sh", "bash", "console"):
                assert not re.search(r"^(\$ )?dinowds ", text, re.MULTILINE), (page.name, text)


def test_scripts__are_of_bash_and_their_commands_are_understood() -> None:
    assert len(scripts()) >= 5
    for text in scripts():
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        found = re.findall(r"^.*?\b(dinowds .*)$", text.replace("\\\n", " "), re.MULTILINE)
        commands = [words for line in found if (words := shlex.split(line, comments=True)) and "job-name" not in line]
        assert commands
        for words in commands:
            parse(words)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("dinowds nothing", AssertionError),
        ("dinowds train patch --date x", Exception),
        ("dinowds train patch optim.lrr=1", Exception),
        ("dinowds train patch optim.lr=fast", Exception),
    ],
)
def test_parse__refuses_what_is_wrong(words: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse(words.split())
