"""What an address or a user agent says."""

from urllib.parse import urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import derived

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Chrome/141.0.0.0 Safari/537.36",
            ("Chrome", "141.0.0.0", "Mac OS X", "10.15.7", None),
        ),
        (
            f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0",
            ("Microsoft Edge", "141.0.0.0", "Windows", "10", None),
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:144.0) Gecko/20100101 Firefox/144.0",
            ("Firefox", "144.0", "Windows", "10", None),
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
            " CriOS/141.0.7390.41 Mobile/15E148 Safari/604.1",
            ("Chrome iOS", "141.0.7390.41", "iOS", "18.6", "iPhone"),
        ),
        (
            f"Mozilla/5.0 (Linux; Android 14; SM-S918B) {WEBKIT} SamsungBrowser/25.0 Chrome/121.0.0.0 Mobile"
            " Safari/537.36",
            ("Samsung Internet", "25.0", "Android", "14", "Samsung SM-S918B"),
        ),
        ("curl/8.5.0", ("curl", "8.5.0", None, None, None)),
        ("", (None, None, None, None, None)),
        ("no agent at all", (None, None, None, None, None)),
    ],
)
def test_an_agent_has_the_names_that_mixpanel_uses(text: str, expected: tuple[str | None, ...]) -> None:
    assert msgspec.structs.astuple(derived.agent(text)) == expected


@pytest.mark.parametrize(
    ("address", "domain", "engine"),
    [
        ("https://www.google.com/search?q=x", "www.google.com", "google"),
        ("https://duckduckgo.com/", "duckduckgo.com", "duckduckgo"),
        ("https://uk.search.yahoo.com/", "uk.search.yahoo.com", "yahoo"),
        ("https://notgoogle.example/", "notgoogle.example", None),
        ("https://www.bing.com:443/", "www.bing.com", "bing"),
        ("android-app://com.google.android.gm/", "com.google.android.gm", "google"),
        ("$direct", None, None),
        ("", None, None),
        ("http://[broken", None, None),
    ],
)
def test_a_referrer_has_a_domain_and_may_be_a_search_engine(address, domain, engine) -> None:
    assert msgspec.structs.astuple(derived.referrer(address)) == (domain, engine)


@given(
    st.builds(
        "".join,
        st.lists(
            st.sampled_from(
                [*"aZ09.-_:/?#@[]%\\ \t\n", "é", "http", "https", "://", "www.a.example", ":80", "x" * 254]
            ),
            max_size=8,
        ),
    )
    | st.text()
)
def test_the_host_is_what_the_library_says(rest: str) -> None:
    for address in (rest, f"https://{rest}", f"http://a.example{rest}"):
        try:
            expected = urlsplit(address[: derived.MAX_CHARS]).hostname
        except ValueError:
            expected = None
        assert derived.host(address) == expected


@pytest.mark.parametrize("name", ["utm_source", "utm_content2", "utm_Foo", "utm_ad-id", "utm_source_platform"])
def test_a_campaign_may_have_any_suffix(name: str) -> None:
    assert derived.campaign(f"https://a.example/?x=1&{name}=a+b#{name}=no") == {name: "a b"}
    assert derived.campaign(f"https://a.example/?{name}=&x_{name}=1&utm_=2&utm_a.b=3") == {}


@given(st.text())
def test_no_text_is_a_fault(text: str) -> None:
    derived.agent(text)
    derived.referrer(f"https://{text}")
    assert all(isinstance(value, str) for value in derived.campaign(f"https://x/?utm_source={text}").values())


def test_a_text_of_any_length_costs_little_memory() -> None:
    """What is remembered is cut: otherwise some thousand long agents would fill the machine."""
    before = derived._agent.cache_info().currsize
    long = "x" * derived.MAX_CHARS
    for tail in range(50):
        derived.agent(long + "y" * 100_000 + str(tail))
    assert derived._agent.cache_info().currsize <= before + 1
