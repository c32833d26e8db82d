"""Ask what is known to be vulnerable among the pins of requirements.txt, of pip-audit, which asks PyPI.

python -m tests.audit

Exits 1 if a pin is. Where nobody could be asked it says so, and exits 0: pip-audit itself would say that nothing is
known, for what PyPI does not answer it leaves out.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.processes import ROOT

#: How pip-audit says that no answer came.
NO_ANSWER = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Could not connect")


def pins() -> str:
    """Of requirements.txt, without the last line, which is the adapter itself."""
    return "\n".join(line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)


def judge(report: str, errors: str) -> tuple[int, str]:
    """The exit code, and a sentence."""
    if not report.strip():
        if any(one in errors for one in NO_ANSWER):
            return 0, "not audited: the list of vulnerabilities cannot be reached from here"
        return 1, f"pip-audit failed: {errors[-2000:]}"
    found = json.loads(report)["dependencies"]
    bad = [f"{one['name']} {one['version']}: {fault['id']}" for one in found for fault in one.get("vulns", ())]
    if bad:
        return 1, f"vulnerable: {'; '.join(bad)}"
    left_out = [one["name"] for one in found if "skip_reason" in one]
    if len(left_out) == len(found):
        return 0, f"not audited: of none of the {len(found)} pins could be asked what is known"
    said = f"{len(found) - len(left_out)} pins audited, nothing known against them"
    return 0, f"{said}; not audited: {', '.join(left_out)}" if left_out else said


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        (asked := Path(folder, "requirements.txt")).write_text(pins())
        how = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "-r", str(asked), *how], capture_output=True, text=True, check=False
        )
    code, text = judge(done.stdout, done.stderr)
    print(f"audit: {text}")
    return code


if __name__ == "__main__":
    sys.exit(main())
