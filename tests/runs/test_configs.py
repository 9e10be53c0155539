"""Configs to JSON and back."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stillroom.backbone.atomic import write_file
from stillroom.backbone.checks import at_least
from stillroom.backbone.flags import Workers
from stillroom.runs.configs import (
    ABSENT,
    config_from_json,
    config_to_dict,
    config_to_json,
    load_config,
    refuse_ignored,
)
from stillroom.runs.inputs import record_inputs
from stillroom.runs.run_files import CONFIG
from stillroom.runs.schedule import Cosine, Schedule, Step


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    out: Path | None = None
    schedule: Schedule = field(default_factory=Cosine)
    mean: tuple[float, float] = (0.5, 0.5)
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "config",
    [
        Config(data=Path("a/b")),
        Config(data=Path("/x"), out=Path("y"), schedule=Step(every=7), names=("p", "q")),
        Config(data=Path(), schedule=Cosine(warmup_epochs=0.1), mean=(0.1, 1 / 3)),
        Config(data=Path(), schedule=Step()),
    ],
)
def test_a_config_comes_back_equal(config: Config) -> None:
    text = config_to_json(config, (Schedule,))
    assert config_from_json(text, Config, (Schedule,)) == config
    assert text == json.dumps(config_to_dict(config, (Schedule,)), indent=2) + "\n"


def test_a_member_of_a_union_says_which_it_is() -> None:
    raw = config_to_dict(Config(data=Path("a/b"), schedule=Step(every=7)), (Schedule,))
    assert raw["schedule"] == {"kind": "Step", "every": 7, "gamma": 0.1, "warmup_epochs": 0.0}
    assert raw["data"] == "a/b"


def broken(**changes: object) -> str:
    raw = config_to_dict(Config(data=Path("a")), (Schedule,))
    return json.dumps({key: value for key, value in (raw | changes).items() if value != "absent"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (broken(colour="red"), "extra fields found .*colour"),
        (broken(data="absent"), r"required field missing @ \$\.data"),
        (broken(mean=["x", "y"]), r"\$\.mean\[0\]"),
        (broken(schedule={"kind": "Linear"}), r"\$\.schedule"),
        (broken(schedule={"kind": "Step", "every": 3, "warmup": 2}), "extra fields found .*warmup"),
        (broken(schedule={"every": 3}), r"\$\.schedule"),
        ("{", "Expecting property name"),
    ],
)
def test_a_config_of_another_version_is_refused_with_the_field(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"this config does not fit the installed version: .*{reason}"):
        config_from_json(text, Config, (Schedule,))


def test_a_field_that_an_older_version_did_not_have_means_what_its_metadata_say() -> None:
    @dataclass(frozen=True)
    class Newer:
        order: int = field(default=2, metadata={ABSENT: 1})

    assert config_from_json("{}", Newer) == Newer(order=1)
    assert config_from_json(config_to_json(Newer()), Newer) == Newer(order=2)


def test_addresses_stay_as_they_are_when_a_run_is_resumed_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config, data in (
        (Config(data=Path("s3://bucket/x")), "s3:/bucket/x"),
        (Config(data=Path("x")), f"{tmp_path}/x"),
    ):
        write_file(tmp_path / "run" / CONFIG, config_to_json(config, (Schedule,)))
        monkeypatch.chdir(tmp_path)
        record_inputs(tmp_path / "run", {})
        monkeypatch.chdir("/")
        assert str(load_config(tmp_path / "run", Config, (Schedule,)).data) == data


def test_what_would_not_count_is_refused() -> None:
    config = Config(data=Path("a"), out=Path("b"), mean=(0.1, 0.2))
    refuse_ignored(config, "out", ["mean"])
    with pytest.raises(
        ValueError, match=r"^--mean is \(0.1, 0.2\), set by a flag or the preset, and has no effect beside"
    ):
        refuse_ignored(config, "out", ["names"])


@dataclass(frozen=True, kw_only=True)
class Decoding:
    workers: Workers = "auto"


@pytest.mark.parametrize("workers", ["auto", 0, 3])
def test_workers_are_a_number_or_auto_and_an_old_configs_number_stays_one(workers: Workers) -> None:
    assert config_from_json(json.dumps({"workers": workers}), Decoding) == Decoding(workers=workers)
    at_least(Decoding(workers=workers), 0, "workers")
    with pytest.raises(ValueError, match="--workers is -1: it must be at least 0"):
        at_least(Decoding(workers=-1), 0, "workers")
