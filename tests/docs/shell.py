"""Bash in which ``bayestune`` is this process: blocks run as written, nothing is imported twice.

On PATH stands a ``bayestune`` that hands its arguments, folder and standard input to a socket; the
test runs the command line and hands back what it printed and its exit status.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

#: A gate failed: which way it goes depends on the model, and here that is a tiny one.
GATE = 3
_CLIENT = f"""#!{sys.executable} -SE
import json, os, socket, sys
said = [sys.argv[1:], os.getcwd(), sys.stdin.read()]  # of a pipe, the end comes before the turn
with socket.socket(socket.AF_UNIX) as line:
    line.connect(os.environ["BAYESTUNE_SOCKET"])
    line.sendall(json.dumps(said).encode())
    line.shutdown(socket.SHUT_WR)
    code, out, err = json.loads(b"".join(iter(lambda: line.recv(65536), b"")))
sys.stdout.write(out), sys.stderr.write(err)
sys.exit(code)
"""


class Shell:
    """Runs scripts one after the other, as a terminal does: one begins where the last one stood.

    Args:
        folder: for the command and the socket.
    """

    def __init__(self, folder: Path) -> None:
        command = folder / "bayestune"
        command.write_text(_CLIENT, encoding="utf-8")
        command.chmod(0o755)
        self.stood = folder / "stood"
        self.environment = os.environ | {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "BAYESTUNE_SOCKET": str(folder / "socket"),
        }
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.environment["BAYESTUNE_SOCKET"])
        self.server.listen()
        self.server.settimeout(0.02)

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script here, and go where it went; it stops at the first command that fails."""
        with (
            TemporaryFile("w+", encoding="utf-8") as out,  # a pipe that nobody reads fills up
            TemporaryFile("w+", encoding="utf-8") as err,
            subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", f"{script}\npwd > {self.stood}"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            ) as shell,
        ):
            while shell.poll() is None:
                try:
                    connection, _ = self.server.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(60)
                    connection.sendall(json.dumps(_answer(connection)).encode())
            said = [(file.seek(0), file.read())[1] for file in (out, err)]
        if shell.returncode == 0:
            os.chdir(self.stood.read_text(encoding="utf-8").strip())
        return subprocess.CompletedProcess(script, shell.returncode, *said)


def _answer(connection: socket.socket) -> tuple[int, str, str]:
    from typer.testing import CliRunner

    from bayestune.cli.app import app

    said: list[Any] = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    arguments, folder, given = said
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(app, arguments, input=given)
    finally:
        os.chdir(before)
    code = 0 if result.exit_code == GATE else result.exit_code
    return code, result.stdout, result.stderr
