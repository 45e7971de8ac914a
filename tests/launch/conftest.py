"""Runs the scripts of launch/ with programs on the PATH that write down what they were given."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
# All that is on the PATH besides: a real gcloud of this machine must not be found.
TOOLS = ("bash cat cp date dirname env git gzip head hostname kill mkdir mktemp nohup rm "
         "sed setsid sh sleep tail tar").split()
RECORDER = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
"""


class Shell:
    """A folder with spaces in its name, programs in it, and scripts run there.

    Attributes:
      folder: working and home directory.
      environment: variables of the scripts.
    """

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for tool in TOOLS:
            if place := shutil.which(tool):  # a small system has no hostname
                (folder / "bin" / tool).symlink_to(place)
        self.environment = {"PATH": str(folder / "bin"), "HOME": str(folder),
                            "CALLS": str(folder / "calls"), "TMPDIR": str(folder)}

    def program(self, name, then=""):
        """A program that records its arguments, and then does some Python."""
        path = self.folder / name if "/" in name else self.folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORDER + then)
        path.chmod(0o755)
        return path

    def calls(self):
        """The recorded calls: name of the program and its arguments."""
        path = Path(self.environment["CALLS"])
        lines = path.read_text().splitlines() if path.exists() else []
        return [[os.path.basename(call[0]), *call[1:]] for call in map(json.loads, lines)]

    def start(self, script, *arguments, **variables):
        """Starts a script of launch/ and returns its process."""
        return subprocess.Popen(
            [LAUNCH / script, *arguments], cwd=self.folder, env=self.environment | variables,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, script, *arguments, **variables):
        """Runs a script; returns exit code, output and errors."""
        process = self.start(script, *arguments, **variables)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path / "a home")
