"""Jobs of submitit; its local executor starts real processes."""

from pathlib import Path

import pytest

from stillroom.runs.executor import check_executor, submit_all


@pytest.mark.slow
def test_each_call_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("submitit")

    def write(name: str) -> None:
        import os

        (tmp_path / name).write_text(str(os.getpid()))

    submit_all({name: lambda name=name: write(name) for name in ("a", "b")}, tmp_path / "jobs", ("cluster=local",))
    import os

    assert len({(tmp_path / name).read_text() for name in ("a", "b")} | {str(os.getpid())}) == 3


def test_a_failed_job_ends_in_its_sentence_and_the_others_are_done(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    calls = {
        "bad": lambda: (tmp_path / "missing" / "file").write_text(""),
        "good": lambda: (tmp_path / "good").write_text(""),
    }
    with pytest.raises(ValueError, match=r"1 of 2 jobs failed, see .*jobs; the first is bad: .*No such file"):
        submit_all(calls, tmp_path / "jobs", ("cluster=local",))
    assert (tmp_path / "good").exists()


def test_flags_of_jobs_that_cannot_work_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--executor-options timeout_min=5 is for submitit: pass --executor submitit"):
        check_executor("local", ("timeout_min=5",))
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match="--executor-options holds timeout: pass NAME=VALUE, such as timeout_min=600"):
        check_executor("submitit", ("timeout",))
    with pytest.raises(ValueError, match="submitit refuses colour=red: "):
        submit_all({}, tmp_path / "jobs", ("colour=red",))


def test_a_missing_submitit_is_asked_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillroom.runs.executor.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"--executor submitit needs submitit: pip install 'stillroom-runs\[submitit\]'"
    ):
        check_executor("submitit", ())
