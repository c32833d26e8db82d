"""What is doubtful about settings that can be read: a name nearly spelt, a disk that may not last."""

import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches

from adapter.config import Settings

#: What platforms set whose disk lasts where one was attached, and else is lost: from here that cannot be seen.
PLATFORMS = ("RENDER", "RAILWAY_ENVIRONMENT", "FLY_APP_NAME", "K_SERVICE", "WEBSITE_INSTANCE_ID")
#: How alike a name is to a setting's that is taken for a slip: one letter of eleven. DATABASE_URI is another's.
ALIKE = 0.92


def of_disk(settings: Settings, environ: Mapping[str, str] = os.environ) -> str | None:
    """What would be lost if the disk does not last, where nothing says that it does."""
    platform = next((name for name in PLATFORMS if environ.get(name)), None)
    if platform is None or not settings.uses_file or settings.ephemeral_disk == "accept":
        return None
    return (
        f"{platform} is set: unless a disk that lasts is mounted where DATABASE_URL leads, every restart loses all"
        " messages that still wait, what was refused, and who is whose device; EPHEMERAL_DISK=accept if that may be"
    )


def misspelt(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that are no setting, each with the one that is not set and was probably meant."""
    settings = {declared.metadata["env"] for declared in fields(Settings)}
    unset = [name for name in settings if "_" in name and name not in environ]
    found = {name: get_close_matches(name.upper(), unset, 1, ALIKE) for name in environ.keys() - settings}
    return {name: meant[0] for name, meant in sorted(found.items()) if meant}
