"""Settings of earlier releases that have been removed. Imports no torch.

Configurations outlive releases: in manifests, in queued jobs, in users' scripts. A configuration
with a removed setting is still valid. The setting has no effect, and `DistillConfig.ignored` lists
it.
"""

from dataclasses import dataclass
from typing import Any, Literal

RetiredSetting = Literal["outer.compiled", "outer.vectorised"]


@dataclass(frozen=True)
class Retirement:
    """Why a setting was removed.

    Attributes:
        default: its former default; a configuration with this value needs no note.
        reason: for a user who has set it to another value.
    """

    default: Any
    reason: str


RETIRED: dict[RetiredSetting, Retirement] = {
    "outer.compiled": Retirement(
        False, "inner steps are not compiled any more: at the presets' sizes nothing was gained"
    ),
    "outer.vectorised": Retirement(
        False,
        "a step's learners are unrolled one after another: side by side they took longer on a "
        "processor and gave no better summary in equal time",
    ),
}


def drop_retired(settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration's settings without the retired ones; the argument is not changed.

    Args:
        settings: nested dictionaries, as parsed from JSON.

    Returns:
        The settings. `ignored` lists the retired ones whose value was not their default.
    """
    remaining, ignored = dict(settings), list(settings.get("ignored", ()))
    for setting, retirement in RETIRED.items():
        part, name = setting.split(".")
        section = remaining.get(part)
        if not isinstance(section, dict) or name not in section:
            continue
        remaining[part] = {key: value for key, value in section.items() if key != name}
        if section[name] != retirement.default and setting not in ignored:
            ignored.append(setting)
    return remaining | {"ignored": ignored} if ignored else remaining


def retired_note(setting: RetiredSetting) -> str:
    """The note for a user whose configuration has this setting."""
    return f"{setting} is ignored: {RETIRED[setting].reason}"
