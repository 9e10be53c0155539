from pathlib import Path

import pytest

from stillroom.runs.sweep import refuse_taken


@pytest.mark.parametrize("alone", [True, False])
def test_a_run_or_a_sweep_that_could_not_be_created_is_refused_before_the_work(tmp_path: Path, alone: bool) -> None:
    (tmp_path / "file").write_text("")
    refuse_taken(tmp_path / "new" / "deep" / "out", alone=alone)
    with pytest.raises(ValueError, match=r"file/a/out cannot be created: .*/file is not a folder that can be wr"):
        refuse_taken(tmp_path / "file" / "a" / "out", alone=alone)


def test_the_folder_of_a_sweep_may_exist(tmp_path: Path) -> None:
    refuse_taken(tmp_path, alone=False)
