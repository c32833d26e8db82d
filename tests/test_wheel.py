"""The wheel holds all of it: both packages, every data file, and the main job runs from it."""

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from tests.processes import ROOT, environment

#: README's first command, and what it shows of its output.
FIRST_COMMAND = re.compile(r"## Try it\n.*?```sh\n(.*?)\n```\n.*?```\n(.*?)```", re.DOTALL)


def test_the_demo_runs_from_the_installed_wheel(tmp_path: Path) -> None:
    """As README's first command does, but with the libraries of this environment in place of downloaded ones."""
    found = FIRST_COMMAND.search((ROOT / "README.md").read_text())
    assert found is not None
    command, shown = found.groups()
    makes, installs, runs = command.split(" && ")
    assert makes == "python3 -m venv .venv"
    assert installs == ".venv/bin/pip install -q -r requirements.txt"
    assert (ROOT / "requirements.txt").read_text().splitlines()[-1] == ".", "which is this project"
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for top in ("adapter", "schemas"):
        for path in (ROOT / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in packed
    venv.create(tmp_path / ".venv", with_pip=True)
    python = tmp_path / ".venv" / "bin" / "python"
    (libraries,) = (tmp_path / ".venv" / "lib").glob("*/site-packages")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True, capture_output=True
    )
    # The libraries come from this environment: the wheel's own files are what is tried here.
    (libraries / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = environment(tmp_path)
    del variables["PYTHONPATH"]
    demo = subprocess.run(
        runs.split(),
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert demo.returncode == 0, demo.stderr
    assert shown in demo.stdout, "what README shows of it"
    where = subprocess.run(
        [python, "-c", "import adapter; print(adapter.__file__)"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(libraries))
