"""A recommendation as a federation.toml, with comments that say where its numbers come from."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from wardround import __version__
from wardround.errors import ConfigError
from wardround.experience.advice import Advice, in_words
from wardround.experience.asked import Asked
from wardround.experience.row import Described, nested
from wardround.toml import loads

_HEADER = re.compile(r"\s*\[\[?\s*([A-Za-z0-9_\"'-]+)")
_QUORUM = 2


def federation_toml(found: Asked, text: str, task: Described, advice: Advice) -> str:
    """The file's own [task], as its author wrote it, and all else as recommended.

    text: of the file that holds the task. Raises: ConfigError, for a task that cannot be cut out of it.
    """
    tables = nested(advice.settings)
    model, privacy = tables.pop("model"), tables.pop("privacy", {})
    if found.model.encoder != "builtin":
        model |= {"encoder": found.model.encoder, "encoder_sha256": found.model.encoder_sha256}
    rounds = tables.pop("rounds") | {"quorum": min(_QUORUM, len(task.hospitals)), "evaluate_every": 0}
    parts = [
        "# The agreement. Every hospital reads it and approves it as a whole; each number below is then fixed.\n"
        f'name = "{found.name}"\n',
        _task_of(text, found),
        "".join(f"# {line}\n" for line in _why(task, advice)) + _table("model", model),
        *(_table(name, values) for name, values in tables.items()),
        "# Of the whole run, for each patient of each hospital.\n"
        + _table("privacy", {"epsilon": task.epsilon, **privacy}),
        "# 10 for evaluate_every judges the model every 10 rounds, from private counts that cost epsilon.\n"
        + _table("rounds", rounds),
    ]
    return "\n".join(parts)


def _why(task: Described, advice: Advice) -> Sequence[str]:
    if not advice.known:
        return (
            f"wardround {__version__} does not know what is good for {in_words(task)}:",
            f"{advice.why_not}. This is FedAvg by a public rule.",
        )
    nearest = "; ".join(f"{each.source or 'your own'} ({each.alike:.2f})" for each in advice.nearest)
    learned = f"{advice.runs:,} runs on {advice.tasks} tasks, the nearest: {nearest}"
    score = f"{100 * advice.score:.0f} +- {100 * advice.spread:.0f} % {advice.metric}"
    return (
        f"What follows is recommended by wardround {__version__} for {in_words(task)}:",
        f"learned from {learned}.",
        f"Expected at a new hospital with {advice.shots} patients a class: {score},",
        f"{100 * advice.ahead:+.0f} +- {100 * advice.ahead_spread:.0f} points of the default.",
        "No patient was asked, so nothing of it is charged to anybody's epsilon.",
    )


def _task_of(text: str, found: Asked) -> str:
    """The lines of [task] and of the tables below it."""
    kept, inside = [], False
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            inside = header[1].strip("\"'") == "task"
        if inside:
            kept.append(line)
    task = "\n".join(kept).rstrip() + "\n"
    try:
        same = loads(task, Asked).task == found.task
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            "the task cannot be cut out of its file", do="write it as a table [task], without strings of many lines"
        )
    return task


def _table(name: str, values: dict[str, object]) -> str:
    """Of numbers, words, yes and no, which TOML writes as JSON does."""
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
