"""A plan is arithmetic on what was measured: worked by hand, and checked against a short run."""

import statistics
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from stillroom.images.labels import Columns

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import plan
from pack import Pack
from plan import Measured, Settings, check, measure, predict, report

ONE = Measured(
    teacher=1000, student=500, loader=100, file_bytes=1e5, fixed_bytes=2**30, image_bytes=2**20, row_bytes=4097
)
RUN = Settings(teacher="t", student="s", data=Path("d"), images=36_000, epochs=10, batch_size=64, cores=10)


def test_a_live_epoch_costs_teacher_and_student() -> None:
    found = predict(ONE, RUN)
    assert found.rate == pytest.approx(1000 / 3) and found.limit == "devices"
    assert found.hours["epochs"] == pytest.approx(360_000 / (1000 / 3) / 3600)
    assert found.hours["alignment"] == pytest.approx(36_000 / 1000 / 3600)
    assert found.cores_needed == 4
    assert found.device_bytes == 2**30 + 64 * 2**20
    assert found.read_bytes == pytest.approx(1000 / 3 * 1e5)
    assert found.cache_bytes == found.cost == 0


def test_a_cache_is_filled_once_and_spares_the_teacher() -> None:
    found = predict(ONE, replace(RUN, cache_views=2))
    assert found.rate == 500
    assert found.hours["cache"] == pytest.approx(2 * 36_000 / 1000 / 3600)
    assert found.cache_bytes == 2 * 36_000 * 4097


def test_devices_scale_by_their_efficiency_until_cores_or_disk_limit_them() -> None:
    large = replace(RUN, devices=8, nodes=4, cores=1000, batch_size=1024, price=2.0)
    found = predict(ONE, large)
    assert found.rate == pytest.approx(32 * 0.9 * 1000 / 3) and found.limit == "devices"
    assert found.device_bytes == 2**30 + 32 * 2**20
    assert found.cost == pytest.approx(sum(found.hours.values()) * 32 * 2)
    assert predict(ONE, replace(large, cores=10)).limit == "cores"
    assert predict(ONE, replace(large, cores=10)).rate == 4 * 10 * 100
    slow = predict(ONE, replace(large, bandwidth=0.1))
    assert slow.limit == "disk" and slow.rate == pytest.approx(4 * 0.1e9 / 1e5)


def test_an_alignment_is_fitted_on_so_many_images_and_simreg_fits_none() -> None:
    many = replace(RUN, images=10**9)
    assert predict(ONE, many).hours["alignment"] == pytest.approx(500_000 / 1000 / 3600)
    assert predict(ONE, replace(many, method="simreg")).hours["alignment"] == 0


def test_this_machine_is_measured_and_the_plan_is_printed(unlabelled: Path) -> None:
    settings = Settings(
        teacher="random:cifar/resnet20",
        student="cifar/resnet20",
        data=unlabelled,
        teacher_size=16,
        student_size=16,
        batch_size=8,
        device="cpu",
        seconds=0.01,
        cores=1,
    )
    one, count = measure(settings)
    assert count == 96 and min(one.teacher, one.student, one.loader) > 0
    assert one.fixed_bytes >= 4 * 268_000 * 4  # the teacher, its norms folded, and three times the student
    assert one.image_bytes > 19 * 16 * 16 * 16  # a byte for each activation at least
    text = report(predict(one, replace(settings, images=count)), one, settings)
    assert "rate of the epochs" in text and "memory of each device" in text


def test_any_source_of_images_is_measured(unlabelled: Path, tmp_path: Path) -> None:
    Pack(data=unlabelled, out=tmp_path / "shards", labels=False).run()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in unlabelled.iterdir():
            archive.write(file, file.name)
    (tmp_path / "images.tsv").write_text("\n".join(["picture", *map(str, unlabelled.iterdir())]) + "\n")
    expected = statistics.mean(file.stat().st_size for file in unlabelled.iterdir())
    for data in ("shards", "images.tsv", f"file://{tmp_path}/images.zip"):
        settings = Settings(
            teacher="random:cifar/resnet20",
            student="cifar/resnet20",
            data=tmp_path / data if "://" not in data else Path(data),
            columns=Columns(image="picture"),
            student_size=16,
            device="cpu",
            seconds=0.01,
            teacher_rate=1.0,
            student_rate=1.0,
        )
        one, count = measure(settings)
        assert count == 96 and one.loader > 0 and one.file_bytes == pytest.approx(expected, rel=0.1)


def test_rates_that_are_known_are_taken(unlabelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        teacher="random:cifar/resnet20",
        student="cifar/resnet20",
        data=unlabelled,
        method="simreg",
        teacher_size=16,
        student_size=16,
        device="cpu",
        seconds=0.01,
        teacher_rate=1.0,
        student_rate=2.0,
        loader_rate=3.0,
    )
    monkeypatch.setattr(plan, "seconds_of", None)
    one, _ = measure(settings)
    assert (one.teacher, one.student, one.loader) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"devices": 0}, "--devices is 0: it must be at least 1"),
        ({"efficiency": 1.5}, r"--efficiency is 1.5: it must lie in \(0, 1\]"),
        ({"data": Path("/nowhere")}, "there is no .*/nowhere"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict, sentence: str, unlabelled: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        check(replace(Settings(teacher="random:a", student="b", data=unlabelled), **changes))
