"""A command that is interrupted: soon over, with a shell's exit code, without a traceback or files left."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slabnorm import interrupt

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

# Forked from a process that has imported everything: a new one would take seconds to begin. It is a command
# as a real one, but for what it does.
SERVER = """
import os, sys
import slabnorm.cli as cli
from slabnorm import interrupt
from slabnorm.cli.shell import exits
from slabnorm.files import new_folder, replacing
for number, line in enumerate(sys.stdin):
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.dup2(os.open(f"stderr{number}", os.O_CREAT | os.O_WRONLY), 2)
    def app():
        with exits(str):
            exec(eval(line))
    cli.app = app
    cli.main()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run code as a command and send it a signal once it is ready; return exit code, stderr and seconds."""
    folder, numbers = tmp_path_factory.mktemp("command"), itertools.count()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment, cwd=folder,
    ) as server:  # fmt: skip

        def one(code, number):
            code = "import os, signal, time\nfrom pathlib import Path\n" + code
            print(repr(code), file=server.stdin, flush=True)
            ready = server.stdout.readline()
            assert ready.startswith("ready "), f"the command ended before it was ready, with {ready}"
            os.kill(int(ready.split()[1]), number)
            start = time.monotonic()
            exit_code = int(server.stdout.readline())
            error = folder / f"stderr{next(numbers)}"
            return exit_code, error.read_text(), time.monotonic() - start

        one.folder = folder
        yield one
        server.stdin.close()


READY = "print('ready', os.getpid(), flush=True)\n"
WRITING = f"""
with replacing(Path('out')) as file, new_folder(Path('out.zarr')) as folder:
    file.write(b'half')
    (folder / 'chunk').write_text('x')
    {READY}"""
UNWINDS = "    time.sleep(30)"
SWALLOWS = """
    while True:
        try: time.sleep(30)
        except BaseException: pass
"""
IN_C = "    import ctypes; ctypes.CDLL(None).usleep(30_000_000)"


@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGINT, UNWINDS), (signal.SIGTERM, UNWINDS), (signal.SIGHUP, SWALLOWS), (signal.SIGINT, IN_C)],
    ids=["it unwinds", "terminated", "it is swallowed", "a C library is at work"],
)
def test_a_signal_leaves_the_old_file_and_no_temporary_one(run, number, how):
    (run.folder / "out").write_text("old")
    exit_code, error, took = run(WRITING + how, number)
    assert exit_code == 128 + number
    assert error == "interrupted\n"
    assert {path.name for path in run.folder.iterdir() if "stderr" not in path.name} == {"out"}
    assert (run.folder / "out").read_text() == "old"
    assert took < 20  # of 30; how fast it is, nobody knows on a busy machine


def test_ctrl_c_while_importing_ends_without_a_traceback(tmp_path):
    # A module that is slow to import, and turns what interrupts it into an error of its own.
    (tmp_path / "torch.py").write_text(
        "import time\nprint('now', flush=True)\n"
        "try: time.sleep(30)\nexcept BaseException: raise ImportError('torn') from None\n"
    )
    command = [sys.executable, "-m", "slabnorm", "fit", "x.npy"]
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_ctrl_c_while_stderr_is_written_to_ends_with_its_code():
    # Importing, where nothing unwinds: the handler speaks within the write that it has interrupted.
    code = (
        "import os, signal, sys\nfrom slabnorm import interrupt\ninterrupt.catch()\n"
        "class Busy:\n def write(self, text): raise RuntimeError('reentrant call')\n flush = write\n"
        "sys.stderr = Busy()\nos.kill(os.getpid(), signal.SIGINT)"
    )
    path = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode == 130


def test_the_exit_code_is_the_signals_when_it_came_within_an_exec(tmp_path):
    # As in a NamedTuple or a compiler. `python -m` died of SIGINT itself, whatever the signal was.
    (tmp_path / "command.py").write_text(
        "import os, signal, time\nfrom slabnorm import interrupt\ninterrupt.catch()\n"
        "with interrupt.unwinding():\n"
        "    exec('os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)')\n"
    )
    command = [sys.executable, "-m", "command"]
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_must_not_be_left_half_done_is_waited_for(run, number):
    # Longer than the grace that a command has to unwind, as workers take to start on a busy machine.
    code = f"from slabnorm import interrupt\nwith interrupt.held():\n    {READY}    time.sleep(1.5)\n"
    code += "    Path('whole').write_text('whole')\ntime.sleep(30)"
    (run.folder / "whole").unlink(missing_ok=True)
    assert run(code, number)[:2] == (128 + number, "interrupted\n")
    assert (run.folder / "whole").read_text() == "whole"


def test_what_is_ignored_stays_ignored(run):
    # As nohup does; a signal that comes all the same changes nothing.
    before = "from slabnorm import interrupt\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    after = "interrupt.catch()\ntime.sleep(0.3)\nos.kill(os.getpid(), signal.SIGHUP)"
    assert run(before + READY + after, signal.SIGHUP)[:2] == (0, "")


def test_a_program_that_imports_slabnorm_keeps_its_own_signals(monkeypatch):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # other libraries here may have theirs
        assert getattr(signal.getsignal(number), "__module__", "") != interrupt.__name__
    assert not interrupt.started_as_command()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/slabnorm", "fit"])
    assert interrupt.started_as_command()
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "...", "--multiprocessing-fork"])
    assert not interrupt.started_as_command()
