"""Processes that serve a WSGI application, each on the WSGI server that is asked for.

gunicorn and waitress come with the extra `bench`: pip install '.[bench]'.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: name -> command, with {threads}, {port} and {target} (module:factory, called without arguments)
COMMANDS = {
    "granian": "-m granian --interface wsgi --blocking-threads {threads} --no-log --port {port} --factory {target}",
    "gunicorn": "-m gunicorn -w 1 -k gthread --threads {threads} --log-level error -b 127.0.0.1:{port} {target}()",
    "waitress": "-m waitress --threads={threads} --listen=127.0.0.1:{port} --call {target}",
}


def both():
    """The adapter's application with the bare view beside it, so that both stand on the very same server."""
    import orjson
    from flask import request

    from adapter.app import serve

    app = serve()

    @app.application.post("/bare")
    def view():
        orjson.loads(request.get_data())
        return {"success": True}

    return app


@contextmanager
def running(server: str, threads: int, database_url: str) -> Iterator[tuple[int, int]]:
    """Serve `both` from a fresh store; yields the port and a process. Delivery finds nobody at its endpoint."""
    with socket.socket() as probe, socket.socket() as nobody:
        probe.bind(("127.0.0.1", 0))
        nobody.bind(("127.0.0.1", 0))
        port, closed_port = probe.getsockname()[1], nobody.getsockname()[1]
    command = COMMANDS[server].format(threads=threads, port=port, target="tests.benchmarks.servers:both")
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "INGESTION_URL": f"http://127.0.0.1:{closed_port}",
        "MIXPANEL_TOKEN": "token",
        "PORT": str(port),
    }
    process = subprocess.Popen(
        [sys.executable, *command.split()], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(port, process)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(30)


def peak_mb(pid: int) -> int:
    """The most memory that a process has taken, or one that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    own = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024
    return max([own, *map(peak_mb, map(int, children))])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {process.args}")
