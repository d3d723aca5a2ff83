"""Command lines that are wrong as a whole: commands, keys, options, quotes, words twice."""

import random
import shutil
from pathlib import Path

from mace_train.cli import COMMANDS
from tests.fuzz.case import Case
from tests.fuzz.fixtures import Fixtures
from tests.fuzz.settings_cases import TEXTS, all_settings

JUNK = (
    *("=", "==", "a", "a=", "=a", "-", "--", "---", "-x", "--x"),
    *("--x=y", "+", "++a=1", "+a=1", "~a"),
    *("~", "~model", "~data_dir", "+model=large", "model@=tiny"),
    *("model@x=tiny", "a.b.c.d=1", ".=1"),
    *("a..b=1", ".a=1", "a.=1", "@a=1", "a@b:c=1"),
    *("hydra.run.dir=x", "hydra/launcher=none", "null"),
    *("hydra.job.name=[", "hydra.verbose=true", "hydra.nope=1"),
    *("hydra/nope=x", "--cfg", "--cfg=x"),
    *("--cfg=job", "--cfg=all", "--cfg=hydra", "--package=x", "--resolve", "--info", "--info=x"),
    *("--info=defaults", "--config-name", "--config-name=nope"),
    *("--config-dir=nope", "-cp=x", "-cn=x"),
    *("--config-path=nope", "--shell-completion", "-sc=x"),
    *("--hydra-help", "--version", "--run", "-r"),
    *("--multirun=1", "--job", "--job=1", "-m", "--experimental-rerun=x", "--dry-run", "--trust"),
    *("", " ", "\t", "\n", "'", '"', "\\", "{", "[", "$", "${a}"),
    *("*", "?", "model", "train", "a=b=c"),
    *("'a=1'", '"a"=1', "a b=1", "ä=1", "日=1", "😀=1", "😀"),
    *("1=1", "1", "0=", "-1=2", "a=1,2", "a=\x01"),
    *("output", "output output", "seed=1 seed=2", "help"),
    *("--help=1", "-h=1", "a" * 3000, "a=" * 500),
)  # fmt: skip


def make(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A right command line, of which words are lost, doubled, misspelt or added."""
    command = rng.choice(list(COMMANDS))
    words = [command, *fixtures.base[command]]
    if command == "sweep":
        shutil.copytree(fixtures.folder / "sweep", work / "sweep")
    changes = [rng.choice(CHANGES) for _ in range(rng.choice((1, 1, 2)))]
    for change in changes:
        change(words, rng)
    names = "+".join(change.__name__ for change in changes)
    shown = " ".join(word[:40] for word in words[:1] + words[-2:])
    return Case(f"{names}: {shown}", words, runs_long=True)


def add_junk(words: list[str], rng: random.Random) -> None:
    words.insert(rng.randrange(len(words) + 1), rng.choice(JUNK))


def lose(words: list[str], rng: random.Random) -> None:
    if words:
        del words[rng.randrange(len(words))]


def lose_all_but_the_command(words: list[str], rng: random.Random) -> None:
    del words[1:]


def give_twice(words: list[str], rng: random.Random) -> None:
    if words:
        words.append(rng.choice(words))


def exchange(words: list[str], rng: random.Random) -> None:
    if words:
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        words[i], words[j] = words[j], words[i]


def misspell(words: list[str], rng: random.Random) -> None:
    if not words:
        return
    i = rng.randrange(len(words))
    letters = list(words[i]) or ["x"]
    k = rng.randrange(min(len(letters), words[i].find("=") % (len(letters) + 1) + 1))
    kind = rng.randrange(4)
    if kind == 0:
        letters[k : k + 1] = []
    elif kind == 1:
        letters.insert(k, rng.choice("aeiou_.-=[]{}'\"$ \\ä"))
    elif kind == 2:
        letters[k : k + 2] = reversed(letters[k : k + 2])
    else:
        letters[k] = letters[k].swapcase() if letters[k].isalpha() else "x"
    words[i] = "".join(letters)


def settings_of_another_command(words: list[str], rng: random.Random) -> None:
    words.append(f"{rng.choice(all_settings()).name}={rng.choice(TEXTS)}")


def another_command(words: list[str], rng: random.Random) -> None:
    if words:
        words[0] = rng.choice((*COMMANDS, "trian", "", "Train", "--train", "train.py", "ヘ"))


CHANGES = (
    *(add_junk, add_junk, add_junk, misspell, misspell, lose, lose_all_but_the_command),
    *(give_twice, exchange, settings_of_another_command, another_command),
)
