"""What an audit of the pins says, by what pip-audit said."""

import json
from typing import Any

import pytest

from tests.audit import judge

KNOWN = {"id": "PYSEC-2018-28", "fix_versions": ["2.20.0"], "aliases": [], "description": "..."}
GOOD = {"name": "flask", "version": "3.1.3", "vulns": []}
BAD = {"name": "requests", "version": "2.19.0", "vulns": [KNOWN]}
LEFT_OUT = {"name": "isal", "skip_reason": "Dependency not found on PyPI and could not be audited: isal (1.9.1)"}
AWAY = "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='127.0.0.1', port=443): Max retries exceeded"


def report(*found: dict[str, Any]) -> str:
    return json.dumps({"dependencies": found, "fixes": []})


@pytest.mark.parametrize(
    ("said", "errors", "code", "text"),
    [
        (report(GOOD), "", 0, "1 pins audited, nothing known against them"),
        (report(GOOD, LEFT_OUT), "", 0, "1 pins audited, nothing known against them; not audited: isal"),
        (report(GOOD, BAD, LEFT_OUT), "", 1, "vulnerable: requests 2.19.0: PYSEC-2018-28"),
        (report(LEFT_OUT), "", 0, "not audited: of none of the 1 pins could be asked what is known"),
        ("", AWAY, 0, "not audited: the list of vulnerabilities cannot be reached from here"),
        ("", "invalid choice: --forma", 1, "pip-audit failed: invalid choice: --forma"),
    ],
)
def test_a_vulnerable_pin_fails_and_an_audit_that_nobody_answers_says_so(
    said: str, errors: str, code: int, text: str
) -> None:
    assert judge(said, errors) == (code, text)
