"""The parser of the command line, whose errors say what the writer may have meant."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from hvd_async.system.nearest import meant

EXIT_STATUS = """\
exit status:
  0  done                          4  the machine, launcher or a package does not fit
  1  unexpected failure            5  checkpoint missing, damaged, or of another run
  2  configuration or arguments    6  another rank failed or stopped responding
  3  data, model files, output     7  a replay differs from the recorded run
                                   8  a run has diverged
                                   129, 130, 138, 143  stopped by SIGHUP, Ctrl-C, SIGUSR1, SIGTERM; train,
                                   launch and compare save everything first, other verbs end at once
"""


# Flags of earlier versions, and their present names.
_RENAMED = {
    "--starter": "--launcher",
    "--target-loss": "--target loss=VALUE",
    "--target-bleu": "--target bleu=VALUE",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the nearest valid word and print the usage of the given verb. Flags are written in full, so
    that a wrong one is not taken for the beginning of another."""

    def __init__(self, **settings: Any) -> None:
        """Take the named arguments of `ArgumentParser`, but for `allow_abbrev`."""
        super().__init__(**{**settings, "allow_abbrev": False})

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]  # less strict
        """Return the parsed arguments; what follows `--` is `program`, for a verb that takes one.

        Unknown arguments end the process with an error of the verb's own parser.
        """
        words = sys.argv[1:] if args is None else list(args)
        program = words[words.index("--") + 1 :] if "--" in words else None
        own = words[: words.index("--")] if "--" in words else words
        parsed, unknown = self.parse_known_args(own, namespace)
        if program is not None and not hasattr(parsed, "program"):
            parsed.parser.error(f"got -- {' '.join(program)}, expected nothing after --: only launch starts a program")
        if program is not None:
            parsed.program = program
        if unknown:
            parser: Parser = parsed.parser
            flags = [flag for action in parser._actions for flag in action.option_strings]
            hints = [_meant(word.partition("=")[0], flags) for word in unknown if word.startswith("-")]
            hint = next(
                filter(None, [_settings(unknown, words, program) if hasattr(parsed, "overrides") else "", *hints]), ""
            )
            if hasattr(parsed, "program") and program is None and any(word.endswith(".py") for word in unknown):
                hint = f"; to start a script, put -- before it: -- python {' '.join(unknown)}"
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        _refuse_empty(getattr(parsed, "parser", self), own)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print the usage and `message`, for an invalid choice with the nearest valid one, and exit with status 2."""
        if found := re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message):
            message += _meant(found[1], re.findall(r"[\w-]+", found[2]))
            if os.path.isfile(found[1]):  # a flag whose value may be left out has taken the next argument
                message += f"; write {found[1]} before the flag"
        super().error(message)


def _refuse_empty(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """End the process if a flag among `words` has an empty value, as from a variable of the shell that is not set."""
    actions = {flag: action for action in parser._actions for flag in action.option_strings if action.nargs != 0}
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        given = value if equals else next(iter(words[number + 1 : number + 2]), None)
        if flag in actions and given == "":
            expected = actions[flag].metavar or actions[flag].dest.upper()
            parser.error(f"{flag}: got an empty value, expected {expected}; is a variable of the shell not set?")


def _settings(unknown: Sequence[str], words: Sequence[str], program: Sequence[str] | None) -> str:
    """Return the `--set` that say what `unknown` arguments among `words`, such as `--seed 3`, say of keys; empty if they say
    nothing of a key. For keys that a `program` decides, what to do instead.

    A value is given again only for a key of the same name: other tools count batches and warmup in other units.
    """
    from hvd_async.config.script_keys import hint_for_script
    from hvd_async.config.unknown_keys import keys_of_word

    found = []
    for word in unknown:
        name, equals, value = word.partition("=")
        keys = keys_of_word(name.removeprefix("--")) if equals or name.startswith("--") else []
        if not equals:
            value = next(iter(words[words.index(word) + 1 :]), "")
        if program is not None and (hint := next(filter(None, map(hint_for_script, keys)), "")):
            return f"; {hint}"
        alike = name.rpartition(".")[2].lstrip("-").replace("-", "_")
        options = []
        for key in keys:
            is_same = alike in (key.rpartition(".")[2], key.partition(".")[0])
            options.append(f"--set {key}={shlex.quote(value) if is_same and value and value[:2] != '--' else '...'}")
        found += [" or ".join(options)] if options else []
    page = "docs/configuration.md explains the key" if len(found) == 1 else "docs/configuration.md explains the keys"
    return f"; write {' '.join(found)}; {page}" if found else ""


def _meant(word: str, choices: Sequence[str]) -> str:
    if word in _RENAMED:
        return f"; {word} is now called {_RENAMED[word]}"
    near = meant(word, choices)
    return f"; {near}" if near else ""
