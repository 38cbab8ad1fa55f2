"""How every process and command of the service begins: with settings that can be used."""

import difflib
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from app.logs import set_up_logging
from app.settings import OTHER_VARIABLES, PREFIX, Settings, SettingsError, read_settings

EXIT_SETTINGS = os.EX_CONFIG  # a setting cannot be used: starting again does not help

logger = logging.getLogger(__name__)


def settings_or_exit(**overrides: Any) -> Settings:
    """The settings of this process, without a word about unknown variables.

    Args:
        overrides: settings that the command line gives.

    Raises:
        SystemExit: with `EXIT_SETTINGS`, after a line on stderr, if they cannot be used.
    """
    try:
        return read_settings(**overrides)
    except SettingsError as error:
        refuse_settings(error)


def start(**overrides: Any) -> Settings:
    """The settings of a process of the service, once its log is set up.

    Args, Raises: as `settings_or_exit`.
    """
    settings = settings_or_exit(**overrides)
    set_up_logging(settings.log_format)
    _name_unknown_variables()
    return settings


def start_command(**overrides: Any) -> Settings:
    """The settings of a command, which has no log: warnings are plain lines on stderr.

    Args, Raises: as `settings_or_exit`.
    """
    settings = settings_or_exit(**overrides)
    _name_unknown_variables()
    return settings


def _name_unknown_variables() -> None:
    for sentence in unknown_variables(os.environ):
        logger.warning("%s", sentence)


def refuse_settings(error: SettingsError) -> NoReturn:
    """End this process with `EXIT_SETTINGS`, after a line on stderr."""
    sys.stderr.write(f"settings that cannot be used: {error}\n")
    sys.exit(EXIT_SETTINGS)


def unknown_variables(names: Iterable[str]) -> list[str]:
    """A sentence for each environment variable `TD3_...` that is no setting: a typo, perhaps."""
    settings = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    known = OTHER_VARIABLES.union(settings)
    sentences = []
    for name in sorted(names):
        # Names of settings may have letters of either case.
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), settings, n=1)
            meant = f"; is {near[0]} meant?" if near else " (docs/operations.md has all settings)"
            sentences.append(f"{name} is no setting and has no effect{meant}")
    return sentences
