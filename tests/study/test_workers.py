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
