"""The jobs of a sweep: every combination of the values that the command line lists.

``a=1,2 b=x,y`` are the jobs a=1 b=x, a=1 b=y, a=2 b=x, a=2 b=y, in Hydra's order, so job K is the
same training whether ``--multirun`` runs all of them or a task of a job array runs it alone.
"""

import itertools

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from mace_train.errors import InputError


def parsed(words: list[str]) -> list[Override]:
    """The ``key=value`` words of a command line as Hydra reads them."""
    return OverridesParser.create().parse_overrides(words)


def combinations(words: list[str]) -> list[list[str]]:
    """The overrides of every job.

    Raises ``InputError`` for a range of values, which only ``mace-train tune`` searches.
    """
    choices = {}
    for override in parsed(words):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise InputError(
                f"{override.input_line}: a sweep needs single values, such as {key}=1,2; "
                "`mace-train tune` searches ranges"
            )
    return [list(job) for job in itertools.product(*choices.values())]


def single_job(words: list[str], default_output: str) -> list[str]:
    """The words of job K alone, from those of a sweep with ``--job K`` among them.

    Raises ``InputError`` if there is no such job.
    """
    words = [word for word in words if word not in ("-m", "--multirun")]
    at = words.index("--job")
    text = words[at + 1] if at + 1 < len(words) else ""
    rest = words[:at] + words[at + 2 :]
    flags = [i for i, word in enumerate(rest) if word.startswith("-")]
    taken = {i for flag in flags for i in ((flag,) if "=" in rest[flag] else (flag, flag + 1))}
    options = [word for i, word in enumerate(rest) if i in taken]
    jobs = combinations([word for i, word in enumerate(rest) if i not in taken])
    if not text.isdigit() or int(text) >= len(jobs):
        raise InputError(
            f"--job {text}: the sweep has {len(jobs)} jobs, 0 to {len(jobs) - 1}; submit it with "
            f"sbatch --array=0-{len(jobs) - 1}"
        )
    outputs = [word.partition("=")[2] for word in jobs[0] if word.startswith("output=")]
    output = (outputs or [default_output])[-1].strip("'\"")
    job = [word for word in jobs[int(text)] if not word.startswith("output=")]
    return [*options, *job, f"output='{output}/{int(text)}'"]


def words_behind(words: list[str], setting: str) -> list[str]:
    """``key=value ... -- words``: what follows ``--`` as setting=[...]."""
    if "--" not in words:
        return words
    at = words.index("--")
    return [*words[:at], f"{setting}={quoted_list(words[at + 1 :])}"]


def quoted_list(words: list[str]) -> str:
    """A list of words in Hydra's grammar."""
    return "[" + ",".join("'" + word.replace("'", "\\'") + "'" for word in words) + "]"
