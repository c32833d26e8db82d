"""The settings as the environment gives them: read, whether they fit together, and what follows from them.

`Settings.from_environment` reports every fault at once, by variable name.
"""

import hashlib
import ipaddress
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

from adapter import addresses
from adapter.declared import Declared
from adapter.errors import ConfigError
from adapter.values import SANDBOX

#: The sandbox's token when none is set: it guards nothing on loopback, but it must be said all the same.
SANDBOX_TOKEN = "sandbox"  # noqa: S105
REGIONS = {"api.mixpanel.com": "US", "api-eu.mixpanel.com": "EU", "api-in.mixpanel.com": "India"}
#: The region -> where its data deletions are requested (mixpanel.md 2.1).
DELETION_HOSTS = {"US": "mixpanel.com", "EU": "eu.mixpanel.com", "India": "in.mixpanel.com"}


@dataclass(frozen=True, kw_only=True)
class Settings(Declared):
    """How the adapter runs; what the environment does not set has the default."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read and check the settings. Raises ConfigError with every fault.

        An empty variable counts as not set, but for secrets, where it is a fault: a check would be off unnoticed.
        """
        settings, faults = cls.read(environ)
        faults = {**settings._conflicts(), **faults}
        if faults:
            raise ConfigError(faults)
        return settings

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> tuple["Settings", dict[str, str]]:
        """The settings, defaults for those that cannot be read, and why. Whether they fit together is not checked."""
        found, faults = {}, {}
        for declared in fields(cls):
            env = declared.metadata["env"]
            if not environ.get(env, "").strip():
                if env in environ and declared.metadata["secret"]:
                    faults[env] = "is set but empty: a secret that is no secret"
                continue
            try:
                found[declared.name] = declared.metadata["read"](environ[env].strip())
            except ValueError as error:
                faults[env] = str(error)
        return cls(**found), faults

    @classmethod
    def of_store(cls) -> "Settings":
        """The same for a command that needs the store. Raises ConfigError where DATABASE_URL does not say which."""
        found, faults = cls.read()
        if fault := faults.get("DATABASE_URL"):
            raise ConfigError({"DATABASE_URL": fault})
        return found

    def _conflicts(self) -> dict[str, str]:
        faults = {}
        account = (self.service_account, self.service_secret, self.project_id)
        if any(account) and not all(account):
            faults["MIXPANEL_SERVICE_ACCOUNT"] = (
                "a service account needs MIXPANEL_SERVICE_SECRET and MIXPANEL_PROJECT_ID beside it"
            )
        if not self.uses_sandbox and self.mixpanel_token is None:
            faults["MIXPANEL_TOKEN"] = "required to send to INGESTION_URL"  # noqa: S105 no secret
        if self.deletion_token is not None and self.deletion_address is None:
            faults["DELETION_URL"] = "required with MIXPANEL_DELETION_TOKEN: INGESTION_URL is no host of Mixpanel's"
        for variable, url in (("INGESTION_URL", self.ingestion_url), ("DELETION_URL", self.deletion_url)):
            with suppress(ValueError):  # of a name it is known when it is connected to
                if not self.may_reach(urlsplit(url or "").hostname or ""):
                    faults[variable] = "is no address of the internet: INGESTION_PRIVATE=yes if that is meant"
        if not self.on_loopback:
            faults |= self._conflicts_off_loopback()
        return faults

    def _conflicts_off_loopback(self) -> dict[str, str]:
        faults = {}
        if self.ingestion_url is None:
            faults["INGESTION_URL"] = "required off loopback: Mixpanel's address, or 'sandbox' if that is meant"
        if self.mixpanel_token is None:
            faults["MIXPANEL_TOKEN"] = "required off loopback"  # noqa: S105 no secret
        if not self.webhook_tokens and not (self.signature_only and self.shared_secrets):
            faults["WEBHOOK_TOKEN"] = "required off loopback, or SIGNATURE_ONLY=yes with SEGMENT_SHARED_SECRET"  # noqa: S105
        if self.platform is not None and self.uses_file and self.ephemeral_disk == "refuse":
            faults["DATABASE_URL"] = (
                "this platform erases its disk at every restart, and with it all messages that still wait;"
                " EPHEMERAL_DISK=accept if that may be"
            )
        return faults

    @property
    def on_loopback(self) -> bool:
        """True if only this machine can reach the server."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def on_every_address(self) -> bool:
        """True if the server listens on whatever addresses this machine has."""
        return ipaddress.ip_address(self.host).is_unspecified

    @property
    def url(self) -> str:
        """The server's own address, as this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 not a bind
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def delivers_to_loopback(self) -> bool:
        """True if the endpoint is on this machine."""
        host = urlsplit(self.ingestion_url or "").hostname or "localhost"
        try:
            return self.uses_sandbox or host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False  # a name

    def may_reach(self, address: str) -> bool:
        """Whether anything may be sent to an IP address. Raises ValueError for a name."""
        is_own = self.uses_sandbox or (self.on_loopback and addresses.is_loopback(address))
        return self.ingestion_private or is_own or addresses.is_public(address)

    @property
    def uses_file(self) -> bool:
        """True if the store is a file, for one process alone."""
        return self.database_url.startswith("sqlite:")

    @property
    def uses_sandbox(self) -> bool:
        return self.ingestion_url in (None, SANDBOX)

    @property
    def token(self) -> str:
        """The token that goes out; the sandbox has one of its own when none is set."""
        return self.mixpanel_token or SANDBOX_TOKEN

    @property
    def destination(self) -> dict[str, str]:
        """What links, held traits, waiting entries and seen messages belong to: a project of an ID system."""
        endpoint = SANDBOX if self.uses_sandbox else urlsplit(self.ingestion_url or "").netloc
        project = hashlib.blake2b(self.token.encode(), digest_size=8).hexdigest()
        return {"endpoint": endpoint, "project": project, "system": self.identity_api}

    @property
    def deletion_address(self) -> str | None:
        """Where data deletions are requested; None if it is not known."""
        found = DELETION_HOSTS.get(self.region)
        return self.deletion_url or (found and f"https://{found}")

    @property
    def region(self) -> str:
        """Where the endpoint stands: US, EU or India by Mixpanel's hosts, else the host itself."""
        host = SANDBOX if self.uses_sandbox else urlsplit(self.ingestion_url or "").hostname or ""
        return REGIONS.get(host, host)
