"""Jobs of a study: processes that end with it, that can be stopped, and that go on after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from needs import needs
from paths import HELPERS, SOURCE
from processes import HANG_SECONDS, wait_until
from small_study import STUDY, quiet, run_here, write_study

from gsb_vit.errors import InputError
from gsb_vit.models.trained import load_model
from gsb_vit.study.jobs import LocalExecutor, SubmititExecutor
from gsb_vit.study.plan import load_study, run_folder
from gsb_vit.train.run import train


def alive(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return found


# Two processes load PyTorch before the kill; after it the study is trained twice, to compare.
@pytest.mark.slow
@needs("killed studies", "Linux, where children follow their parent", sys.platform.startswith("linux"))
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_study_leaves_no_process_and_goes_on(kind, tmp_path: Path, monkeypatch) -> None:
    text = STUDY[: STUDY.index("[variants.bit]")]
    file, out = write_study(tmp_path, text, 6), tmp_path / "out"
    command = [sys.executable, "-m", "gsb_vit", "study", str(file), "--out", str(out), "--jobs", "1"]
    process = subprocess.Popen(
        command,
        # Training is held after its first epoch, however long the signal takes.
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS / "hold_training"), str(SOURCE)])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )
    teachers = "runs/teacher-*/metrics.jsonl"
    wait_until(lambda: list(out.glob(teachers)) or process.poll() is not None, "the teacher's first epoch")
    process.send_signal(kind)
    assert process.wait(HANG_SECONDS) != 0
    wait_until(lambda: alive(out) == [], "the study's processes to end")
    (teacher,) = out.glob("runs/teacher-*")
    assert not (teacher / "summary.json").exists(), "the study ended before it was killed"
    errors, _ = run_here(monkeypatch, file, out)
    assert errors == {}
    (cell,) = load_study(file).cells
    alone = train(cell.recipe, "digits", tmp_path / "alone", console=quiet())
    own = load_model(tmp_path / "alone").model.state_dict()
    found = load_model(run_folder(out, cell.name)).model.state_dict()
    assert alone.final_stage == "stage2" and all(torch.equal(found[name], tensor) for name, tensor in own.items())


def wait(handle) -> str:
    wait_until(lambda: handle.poll() is not None, "a job to end")
    return handle.poll()


def test_a_child_says_what_went_wrong_and_can_be_stopped(tmp_path: Path) -> None:
    executor, log = LocalExecutor(), tmp_path / "log"
    assert wait(executor.start([sys.executable, "-c", "pass"], {}, log)) == ""
    failing = [sys.executable, "-c", "import os, sys; sys.exit('gsb-vit: ' + os.environ['WORDS'])"]
    assert wait(executor.start(failing, {"WORDS": "no such class"}, log)) == "no such class"
    sleeping = executor.start([sys.executable, "-c", "import threading; threading.Event().wait()"], {}, log)
    assert sleeping.poll() is None
    sleeping.stop()
    assert wait(sleeping) == "ended by signal SIGTERM"


def test_the_same_jobs_through_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    executor = SubmititExecutor(tmp_path / "submitit", "local", {"timeout_min": 60})
    log = tmp_path / "log"
    writing = [sys.executable, "-c", f"import os; open({str(tmp_path / 'out')!r}, 'w').write(os.environ['WORDS'])"]
    assert wait(executor.start(writing, {"WORDS": "two words"}, log)) == ""
    assert (tmp_path / "out").read_text() == "two words"
    assert "no such class" in wait(executor.start([sys.executable, "-c", "raise SystemExit('no such class')"], {}, log))
    with pytest.raises(InputError, match="--cluster-set"):
        SubmititExecutor(tmp_path / "submitit", "local", {"timeout_mim": 60})
