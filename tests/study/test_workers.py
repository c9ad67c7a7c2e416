"""Workers are started where no Ctrl-C reaches them, and none is lost meanwhile."""

import os
import signal
import subprocess
import sys

import pytest

from slabnorm.interrupt import held
from slabnorm.study.workers import starting


def test_ctrl_c_while_workers_start_is_kept_to_the_end():
    done = []

    def pressed_in_the_middle():
        with held(), starting():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        pressed_in_the_middle()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_process_ignores_ctrl_c_and_the_current_folder_from_its_first_moment(tmp_path, monkeypatch):
    (tmp_path / "socket.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    code = "import os, signal, socket; os.kill(os.getpid(), signal.SIGINT); print('alive')"
    with starting():
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (out.returncode, out.stdout) == (0, "alive\n")
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_what_is_ignored_stays_so_in_workers_and_an_error_loses_no_signal():
    def ignored() -> int:
        command = ["grep", "SigIgn", "/proc/self/status"]
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(line.split()[1], 16) >> (signal.SIGHUP - 1) & 1

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held(), starting():
            assert ignored()
    finally:
        signal.signal(signal.SIGHUP, before)

    def broken():
        with held():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        broken()
