"""Settings: declared once, every fault named at once, secrets never shown."""

import pytest

from adapter import doubts
from adapter.config import Settings
from adapter.declared import describe
from adapter.errors import ConfigError

REMOTE = {"INGESTION_URL": "https://api.mixpanel.com", "MIXPANEL_TOKEN": "t"}
PUBLIC = {**REMOTE, "HOST": "0.0.0.0", "WEBHOOK_TOKEN": "w"}  # noqa: S104 never bound


def faults(**variables: str) -> set[str]:
    with pytest.raises(ConfigError) as refused:
        Settings.from_environment(variables)
    return set(refused.value.faults)


def test_nothing_is_needed_on_loopback() -> None:
    settings = Settings.from_environment({})
    assert settings.uses_sandbox
    assert settings.on_loopback
    assert settings.token == "sandbox"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOST": "my.host"}, {"HOST"}),
        ({"PORT": "http"}, {"PORT"}),
        ({"PORT": "0"}, {"PORT"}),
        ({"PORT": "65536"}, {"PORT"}),
        ({"DATABASE_URL": "mysql://x"}, {"DATABASE_URL"}),
        ({"DATABASE_URL": "postgres://"}, {"DATABASE_URL"}),
        ({"DATABASE_URL": "sqlite://adapter.db"}, {"DATABASE_URL"}),
        ({"DATABASE_URL": "sqlite:///"}, {"DATABASE_URL"}),
        ({"DATABASE_URL": "sqlite:///:memory:"}, {"DATABASE_URL"}),
        ({"INGESTION_URL": "ftp://x", "MIXPANEL_TOKEN": "t"}, {"INGESTION_URL"}),
        ({"INGESTION_URL": "https://user:pass@x", "MIXPANEL_TOKEN": "t"}, {"INGESTION_URL"}),
        ({"INGESTION_URL": "https://api.mixpanel.com"}, {"MIXPANEL_TOKEN"}),
        ({"INGESTION_URL": "https://api.mixpanel.com/import/", "MIXPANEL_TOKEN": "t"}, {"INGESTION_URL"}),
        ({**REMOTE, "DELETION_URL": "mixpanel.com"}, {"DELETION_URL"}),
        ({"MIXPANEL_DELETION_TOKEN": "d"}, {"DELETION_URL"}),
        ({**REMOTE, "MIXPANEL_DELETION_TOKEN": ""}, {"MIXPANEL_DELETION_TOKEN"}),
        ({"IDENTITY_API": "modern"}, {"IDENTITY_API"}),
        ({"SIGNATURE_ONLY": "true"}, {"SIGNATURE_ONLY"}),
        ({"LINK_EVENT": "$identify"}, {"LINK_EVENT"}),
        ({"INSERT_ID": "random"}, {"INSERT_ID"}),
        ({"VIEW_NAMES": "loaded"}, {"VIEW_NAMES"}),
        ({"VIEW_NAMES": "Viewed {nme}"}, {"VIEW_NAMES"}),
        ({"VIEW_NAMES": "{type} {name"}, {"VIEW_NAMES"}),
        ({"PRODUCT_EVENTS": "1"}, {"PRODUCT_EVENTS"}),
        ({"GROUP_KEYS": "a,=b"}, {"GROUP_KEYS"}),
        ({"GROUP_KEYS": "a="}, {"GROUP_KEYS"}),
        ({"GROUP_KEYS": "a=b=c"}, {"GROUP_KEYS"}),
        ({"TRAIT_OPERATIONS": "logins=remove"}, {"TRAIT_OPERATIONS"}),
        ({"TRAIT_OPERATIONS": "plan"}, {"TRAIT_OPERATIONS"}),
        ({"COUNTERS": "exactly-once"}, {"COUNTERS"}),
        ({"DROP_TYPES": "track,tracks"}, {"DROP_TYPES"}),
        ({"INTEGRATION_NAMES": "Mixpanel,All"}, {"INTEGRATION_NAMES"}),
        ({"CONSENT_MISSING": "maybe"}, {"CONSENT_MISSING"}),
        ({"WEBHOOK_TOKEN": "a,,b"}, {"WEBHOOK_TOKEN"}),
        ({"WEBHOOK_TOKEN": ""}, {"WEBHOOK_TOKEN"}),
        ({"SEGMENT_SHARED_SECRET": " "}, {"SEGMENT_SHARED_SECRET"}),
        ({"MIXPANEL_SERVICE_ACCOUNT": "a"}, {"MIXPANEL_SERVICE_ACCOUNT"}),
        ({"MIXPANEL_PROJECT_ID": "1", "PORT": "x"}, {"MIXPANEL_SERVICE_ACCOUNT", "PORT"}),
        ({"HOST": "0.0.0.0"}, {"INGESTION_URL", "MIXPANEL_TOKEN", "WEBHOOK_TOKEN"}),  # noqa: S104 never bound
        ({**PUBLIC, "DYNO": "web.1"}, {"DATABASE_URL"}),
        ({**REMOTE, "HOST": "10.0.0.1", "SIGNATURE_ONLY": "yes"}, {"WEBHOOK_TOKEN"}),
    ],
)
def test_every_fault_is_named_by_its_variable(variables: dict[str, str], expected: set[str]) -> None:
    assert faults(**variables) == expected


def test_a_store_that_is_only_the_name_of_a_file_is_told_how_to_name_it() -> None:
    with pytest.raises(ConfigError, match="expected sqlite:/// and the path of a file, or postgresql://"):
        Settings.from_environment({"DATABASE_URL": "adapter.db"})


def test_a_variable_that_all_but_has_the_name_of_a_setting_is_named() -> None:
    slips = {"MIXPANEL_TOKN": "MIXPANEL_TOKEN", "IDENTITY_APi": "IDENTITY_API", "DROP_EVENT": "DROP_EVENTS"}
    others = {"DATABASE_URI": "x", "HOSTNAME": "x", "PATH": "x", "WEBHOOK_TOKEN": "x", "WEBHOOK_TOKENS": "x"}
    assert doubts.misspelt({**slips, **others}) == slips


def test_what_a_disk_that_does_not_last_would_lose_is_said_before_the_start() -> None:
    with pytest.raises(ConfigError, match="at every restart, and with it all messages that still wait"):
        Settings.from_environment({**PUBLIC, "DYNO": "web.1"})


@pytest.mark.parametrize("platform", doubts.PLATFORMS)
def test_where_a_disk_may_not_last_what_would_be_lost_is_said(platform: str) -> None:
    there = {**PUBLIC, platform: "x"}
    assert f"{platform} is set" in (doubts.of_disk(Settings.from_environment(there), there) or "")
    for known in ({"EPHEMERAL_DISK": "accept"}, {"DATABASE_URL": "postgres://u:p@h/d"}, {platform: ""}):
        assert doubts.of_disk(Settings.from_environment(there | known), there | known) is None


@pytest.mark.parametrize(
    "variables",
    [
        PUBLIC,
        {**PUBLIC, "DYNO": "web.1", "EPHEMERAL_DISK": "accept"},
        {**REMOTE, "HOST": "::", "SIGNATURE_ONLY": "yes", "SEGMENT_SHARED_SECRET": "s"},
        {**PUBLIC, "INGESTION_URL": "sandbox"},
        {"HOST": "::1"},
        {"HOST": "localhost"},
        {"HOST": "127.8.8.8", "DYNO": "web.1"},
        {**REMOTE, "MIXPANEL_SERVICE_ACCOUNT": "a", "MIXPANEL_SERVICE_SECRET": "s", "MIXPANEL_PROJECT_ID": "1"},
    ],
)
def test_what_is_enough_to_start(variables: dict[str, str]) -> None:
    assert Settings.from_environment(variables) is not None


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://api.mixpanel.com", "US"),
        ("https://api-eu.mixpanel.com/", "EU"),
        ("https://api-in.mixpanel.com", "India"),
        ("http://8.8.4.4:9000/mp", "8.8.4.4"),
        ("sandbox", "sandbox"),
    ],
)
def test_the_region_is_told_by_the_host(url: str, region: str) -> None:
    assert Settings.from_environment({"INGESTION_URL": url, "MIXPANEL_TOKEN": "t"}).region == region


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        (None, True),
        ("sandbox", True),
        ("http://localhost:9000", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:9000", True),
        ("http://10.0.0.7", False),
        ("https://api.mixpanel.com", False),
    ],
)
def test_an_endpoint_on_this_machine_is_known_by_its_address(url: str | None, is_here: bool) -> None:
    assert Settings(ingestion_url=url).delivers_to_loopback is is_here


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:8080"), ("::", "http://[::1]:8080")])  # noqa: S104 never bound
def test_a_server_on_every_address_reaches_its_own_sandbox(host: str, url: str) -> None:
    settings = Settings.from_environment({**PUBLIC, "HOST": host, "INGESTION_URL": "sandbox"})
    assert settings.url == url
    assert settings.may_reach(url.split("//")[1].rpartition(":")[0].strip("[]"))


def test_secrets_show_neither_in_a_repr_nor_in_the_description() -> None:
    secrets = {
        "WEBHOOK_TOKEN": "canary-1,canary-2",
        "SEGMENT_SHARED_SECRET": "canary-3",
        "MIXPANEL_TOKEN": "canary-4",
        "MIXPANEL_SERVICE_ACCOUNT": "robot",
        "MIXPANEL_SERVICE_SECRET": "canary-5",
        "MIXPANEL_PROJECT_ID": "1",
        "MIXPANEL_DELETION_TOKEN": "canary-6",
        "DELETION_URL": "https://proxy.example",
    }
    settings = Settings.from_environment(secrets)
    assert settings.webhook_tokens == ("canary-1", "canary-2")
    assert "canary" not in repr(settings) + str(describe(settings)) + str(settings.destination)
    shown = {row["variable"]: row["value"] for row in describe(settings)}
    assert shown["WEBHOOK_TOKEN"] == "(set)"
    assert shown["MIXPANEL_SERVICE_ACCOUNT"] == "robot"


def test_group_keys_are_shown_as_they_are_written() -> None:
    settings = Settings.from_environment({"GROUP_KEYS": "company, workspace = space"})
    assert settings.group_keys == (("company", None), ("workspace", "space"))
    shown = {row["variable"]: (row["default"], row["value"]) for row in describe(settings)}
    assert shown["GROUP_KEYS"] == ("$group_id", "company,workspace=space")


def test_another_token_or_host_is_another_destination() -> None:
    destinations = [
        Settings.from_environment(variables).destination
        for variables in (
            *({}, REMOTE, {**REMOTE, "MIXPANEL_TOKEN": "u"}, {**REMOTE, "INGESTION_URL": "https://x"}),
            {**REMOTE, "IDENTITY_API": "original"},
        )
    ]
    assert len({tuple(one.items()) for one in destinations}) == 5


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_a_database_may_be_named_as_a_paas_does_and_its_password_is_never_shown(scheme: str) -> None:
    settings = Settings.from_environment(
        {"DATABASE_URL": f"{scheme}://ada:canary@db.example:5432/store?sslmode=require"}
    )
    assert settings.database_url == "postgresql://ada:canary@db.example:5432/store?sslmode=require"
    shown = str(describe(settings))
    assert "postgresql://ada:***@db.example:5432/store?sslmode=require" in shown
    assert "canary" not in shown + repr(settings)


@pytest.mark.parametrize(
    "rest",
    [
        "ada:p@canary@db.example/store",
        "ada:p@canary/word@db.example/store",
        "ada:p@canary?word@db.example/store",
        "ada:p@canary:word@db.example/store",
        "ada:canary/store",
    ],
)
def test_a_password_that_would_be_read_as_the_host_is_refused_and_not_shown(rest: str) -> None:
    with pytest.raises(ConfigError, match="^DATABASE_URL: .*write @ in a password as %40$") as refused:
        Settings.from_environment({"DATABASE_URL": f"postgres://{rest}"})
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("rest", "shown"),
    [
        ("ada:c%40n/a:r#y?@db.example/store", "ada:***@db.example/store"),
        ("ada@server:canary@db.example/store", "ada@server:***@db.example/store"),
        ("db.example/store?user=ada&password=canary&a=b", "db.example/store?user=ada&password=***&a=b"),
        ("/store?host=/run/postgresql", "/store?host=/run/postgresql"),
    ],
)
def test_an_address_of_a_database_is_shown_without_its_password(rest: str, shown: str) -> None:
    settings = Settings.from_environment({"DATABASE_URL": f"postgres://{rest}"})
    assert settings.database_url == f"postgresql://{rest}"
    [row] = [one for one in describe(settings) if one["variable"] == "DATABASE_URL"]
    assert row["value"] == f"postgresql://{shown}"


def test_a_database_on_a_server_needs_no_lasting_disk_here() -> None:
    settings = Settings.from_environment({**PUBLIC, "DYNO": "web.1", "DATABASE_URL": "postgres://u:p@h/d"})
    assert not settings.uses_file
