"""Makes .venv and installs vitok into it, saying in one line what happens and how far it is.

    python3 .ci/environment.py fraud dev     # vitok with these extras, as pinned in constraints.txt
    python3 .ci/environment.py torch ...     # the tested torch alone; what follows is passed on to pip
    python3 .ci/environment.py spark         # .venv/spark, for the tests on Spark; likewise flink, triton
    python3 .ci/environment.py libraries     # .venv/libraries, what models come from and vitok is asked by

It runs before anything is installed, so it needs the standard library only; its syntax stays readable for old
Pythons, so that they can be told what is missing instead of failing on a line they do not understand.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
LOG = os.path.join(VENV, "install.log")
CONSTRAINTS = os.path.join(ROOT, "constraints.txt")
# Engines for tests that cannot live among vitok's own packages: where Python may be at most so new, and disk space.
ENGINES = {"spark": ((3, 13), "1.3 GB"), "flink": ((3, 12), "0.9 GB"), "triton": ((3, 13), "0.3 GB")}
NEEDED = (3, 11)
CANDIDATES = ("python3.11", "python3.12", "python3.13", "python3.14")
CUDA = re.compile(r"^Would install .*\b(nvidia-|cuda-|triton)", re.MULTILINE)


def say(text):
    """Writes one line to the person who waits."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stop(text):
    """Ends with a message that says what to do."""
    sys.exit("vitok: " + text)


def restart_with_newer_python():
    """Hands over to a Python that is new enough, or says what to install."""
    for name in CANDIDATES:
        path = shutil.which(name)
        probe = "import sys; sys.exit(sys.version_info < (3, 11))"
        # A version manager may leave a name on the path that answers with an error, hence the probe.
        if path and subprocess.call([path, "-c", probe], stderr=subprocess.DEVNULL) == 0:
            os.execv(path, [path, os.path.abspath(__file__), *sys.argv[1:]])
    stop(
        "needs Python 3.11 or newer; {} is {}.{}. On Debian 12 or newer and Ubuntu 24.04 or newer: "
        "sudo apt-get install python3 python3-venv. A Python elsewhere: make ... PYTHON=/path/to/python3".format(
            sys.executable, sys.version_info[0], sys.version_info[1]
        )
    )


def make_venv(folder=VENV):
    """Makes an environment unless there is a working one."""
    python = os.path.join(folder, "bin", "python")
    if os.path.exists(python) and subprocess.call([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL) == 0:
        return
    # Debian ships venv without the ensurepip that it needs.
    if find_spec("ensurepip") is None or find_spec("venv") is None:
        package = "python{}.{}-venv".format(*sys.version_info[:2])
        stop(
            f"{sys.executable} cannot make environments; on Debian and Ubuntu that is a package of its own: "
            f"sudo apt-get install {package}"
        )
    subprocess.check_call([sys.executable, "-m", "venv", "--clear", folder])


class Progress:
    """One line that is painted over on a terminal, and is silent elsewhere."""

    def __init__(self, total, folder):
        self.folder = folder
        self.total = max(total, 1)
        self.done = 0
        self.what = "asking the package index"
        self.began = time.monotonic()
        self.live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._finished = threading.Event()
        self._painter = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._installed_before = self._installed()
        self._painter.start()
        return self

    def __exit__(self, *error):
        self._finished.set()
        self._painter.join()
        if self.live:
            sys.stdout.write("\r\x1b[K")

    def read(self, line):
        """Learns from one line that pip wrote."""
        collecting = re.match(r"Collecting ([A-Za-z0-9._-]+)", line)
        downloading = re.match(r"\s+(?:Downloading|Using cached) ([A-Za-z0-9._]+)-.*?(\([\d.]+ [kMG]B\))?\s*$", line)
        installing = re.match(r"Installing collected packages: (.*)", line)
        if collecting:
            self.done += 1
            self.what = "collecting " + collecting.group(1)
        elif downloading:
            self.what = " ".join(part for part in ("downloading", *downloading.groups()) if part)
        elif installing:
            self.done = self.total
            self.what = "unpacking"

    def seconds(self):
        """Returns seconds since the start."""
        return time.monotonic() - self.began

    def _installed(self):
        # pip says nothing while it unpacks, but a finished package leaves its folder behind.
        count = 0
        for _, folders, _ in os.walk(os.path.join(self.folder, "lib")):
            count += sum(name.endswith(".dist-info") for name in folders)
            folders[:] = [name for name in folders if name.startswith("python") or name == "site-packages"]
        return count

    def _run(self):
        while self.live and not self._finished.wait(0.2):
            unpacked = self._installed() - self._installed_before if self.what == "unpacking" else 0
            share = min((min(self.done, self.total) + unpacked) / (2.0 * self.total), 1.0)
            bar = "#" * int(24 * share)
            line = f"  [{bar:<24}] {share:4.0%}  {self.seconds():3.0f} s  {self.what}"
            sys.stdout.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
            sys.stdout.flush()


def pip(arguments, total, folder=VENV):
    """Runs pip, showing how far it is; its own words go to .venv/install.log, and their end is shown if it fails."""
    python = os.path.join(folder, "bin", "python")
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    lines = []
    with open(LOG, "w", encoding="utf-8") as log, Progress(total, folder) as progress:
        child = subprocess.Popen(
            command + arguments,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
        )
        for line in child.stdout:
            log.write(line)
            lines.append(line)
            progress.read(line)
        code = child.wait()
    if code != 0:
        sys.stdout.write("".join(lines[-20:]))
        stop(
            "pip could not install (all it said is in .venv/install.log). No network or a package index that does "
            "not answer: try again, it goes on where it stopped. No space: about 2 GB are needed."
        )
    return "".join(lines), progress.seconds()


def install(extras):
    """Installs vitok in place with its extras."""
    wanted = ".[{}]".format(",".join(extras))
    with open(CONSTRAINTS, encoding="utf-8") as pins:
        total = sum("==" in line for line in pins)
    say(f"vitok: installing {wanted} into .venv (one to two minutes the first time, 1.5 GB on disk)")
    _, seconds = pip(["-c", CONSTRAINTS, "-e", wanted], total)
    say(f"vitok: installed in {seconds:.0f} s")


def install_torch(arguments):
    """Installs the tested torch, unless that would bring CUDA along and nobody asked for it."""
    with open(CONSTRAINTS, encoding="utf-8") as pins:
        torch = next(line.strip() for line in pins if line.startswith("torch=="))
    wanted = [*arguments, "-c", CONSTRAINTS, torch]
    if not arguments:
        say(f"vitok: looking at what {torch} would bring along")
        # Before release 23.3 pip downloads even in a dry run, which is what this look is there to spare.
        pip(["--upgrade", "pip>=25"], 1)
        plan, _ = pip(["--dry-run", *wanted], 12)
        if CUDA.search(plan):
            stop(
                "the default package index gives torch with several gigabytes of CUDA. Name the index you want: "
                "make torch TORCH_ARGS='--index-url ADDRESS' (the CPU index, or a CUDA index if you mean it); "
                "the addresses are in torch's own installation guide."
            )
    say(f"vitok: installing {torch} into .venv (a few minutes)")
    _, seconds = pip(wanted, 12)
    say(f"vitok: installed in {seconds:.0f} s")


def install_engine(name):
    """Makes .venv/NAME with exactly what constraints-NAME.txt pins."""
    newest, space = ENGINES[name]
    if sys.version_info[:2] > newest:
        stop("{} runs on Python {}.{} at most; make ... PYTHON=/path/to/python".format(name, *newest))
    folder = os.path.join(VENV, name)
    pins = os.path.join(ROOT, f"constraints-{name}.txt")
    make_venv(folder)
    with open(pins, encoding="utf-8") as lines:
        total = sum("==" in line for line in lines)
    say(f"vitok: installing {name} into .venv/{name} (some minutes the first time, {space} on disk)")
    _, seconds = pip(["-r", pins], total, folder)
    say(f"vitok: installed in {seconds:.0f} s")


def install_libraries():
    """Fills .venv/libraries with what constraints-libraries.txt pins, and torch where that is its small build."""
    folder = os.path.join(VENV, "libraries")
    pins = os.path.join(ROOT, "constraints-libraries.txt")
    with open(pins, encoding="utf-8") as lines:
        total = sum("==" in line for line in lines)
    say("vitok: installing libraries into .venv/libraries (some minutes the first time, 1.5 GB on disk)")
    shutil.rmtree(folder, ignore_errors=True)
    into = ["--target", folder, "--no-deps"]
    _, seconds = pip([*into, "-r", pins], total)
    with open(CONSTRAINTS, encoding="utf-8") as lines:
        torch = next(line.strip() for line in lines if line.startswith("torch=="))
    plan, _ = pip(["--dry-run", "--ignore-installed", "-c", CONSTRAINTS, torch], 12)
    if CUDA.search(plan):
        say("vitok: torch is left out: the default package index gives it with several gigabytes of CUDA")
    else:
        _, more = pip([*into, torch], 1)
        seconds += more
    say(f"vitok: installed in {seconds:.0f} s")


def main():
    """Reads the command line."""
    if sys.version_info < NEEDED:
        restart_with_newer_python()
    if sys.argv[1:2] and sys.argv[1] in ENGINES:
        os.makedirs(VENV, exist_ok=True)
        install_engine(sys.argv[1])
        return
    make_venv()
    if sys.argv[1:2] == ["libraries"]:
        install_libraries()
    elif sys.argv[1:2] == ["torch"]:
        install_torch(sys.argv[2:])
    else:
        install(sys.argv[1:] or ["fraud", "dev"])


main()
