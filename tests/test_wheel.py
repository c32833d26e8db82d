"""The wheel holds all of it: both packages, every data file, and the main job runs from it."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from tests.processes import ROOT, environment


def test_the_demo_runs_from_the_installed_wheel(tmp_path: Path) -> None:
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
    venv.create(tmp_path / "fresh", with_pip=True)
    python = tmp_path / "fresh" / "bin" / "python"
    (libraries,) = (tmp_path / "fresh" / "lib").glob("*/site-packages")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True, capture_output=True
    )
    # The libraries come from this environment: the wheel's own files are what is tried here.
    (libraries / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = environment(tmp_path)
    del variables["PYTHONPATH"]
    demo = subprocess.run(
        [tmp_path / "fresh" / "bin" / "adapter", "demo"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert demo.returncode == 0, demo.stderr
    assert "  4 of 8: 50.0%" in demo.stdout
    where = subprocess.run(
        [python, "-c", "import adapter; print(adapter.__file__)"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(libraries))
