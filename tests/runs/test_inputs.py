"""What a run began with: hashes, places, and the directory that relative paths belong to."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stillroom.backbone.atomic import write_file
from stillroom.runs.configs import config_to_json, load_config, to_places
from stillroom.runs.inputs import Input, record_inputs, record_moved, refuse_changed_inputs
from stillroom.runs.run_files import CONFIG, read_inputs


@dataclass(frozen=True, kw_only=True)
class Part:
    knn: Path | None = None
    name: tuple[str, ...] = ("timm/resnet18",)


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    out: Path
    pairs: tuple[Path, ...] = ()
    part: Part = field(default_factory=Part)
    method: str = "kdep"


def began(config: Config) -> Path:
    write_file(config.out / CONFIG, config_to_json(config))
    record_inputs(config.out, {"images": Input("the data in images", "a"), "teacher 1": Input("the teacher", "b")})
    return config.out.absolute()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"working_directory": 3, "sha256": {}, "moved": {}}',
        b'{"sha256": {}, "moved": {}}',
    ],
)
def test_a_damaged_record_of_inputs_is_named(tmp_path: Path, content: bytes) -> None:
    out = began(Config(data=Path("d"), out=tmp_path / "run"))
    (out / "inputs.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run/inputs\.json is damaged.*: copy it again, or remove it"):
        load_config(out, Config)


@pytest.mark.parametrize("name", ["absent.knn", "data.knn", "absent", "part"])
def test_places_that_do_not_fit_the_config_are_refused(tmp_path: Path, name: str) -> None:
    out = began(Config(data=Path("d"), out=tmp_path / "run"))
    record_moved(out, {name: 3})
    with pytest.raises(ValueError, match=r"the places in .*inputs\.json do not fit the config of the run: "):
        load_config(out, Config)


def test_changed_inputs_are_named_together_and_unknown_ones_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = began(Config(data=Path("d"), out=tmp_path / "run"))
    other = {"images": Input("the data in images", "c"), "teacher 1": Input("the teacher", "d")}
    with pytest.raises(ValueError, match=r"the data in images, the teacher have changed since .*run began: choose"):
        refuse_changed_inputs(out, other)
    refuse_changed_inputs(out, {"images": Input("", "a"), "classes": Input("", "e")})
    assert capsys.readouterr().err == f"note: {out} has no hash of classes: whether they changed is unknown\n"


def test_relative_paths_are_those_of_the_directory_that_the_run_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("start", "start/teacher", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "start" / "teacher" / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "start")
    part = Part(knn=Path("knn"), name=("teacher", "timm/resnet18"))
    config = Config(data=Path("images"), out=Path("run"), pairs=(Path("a"), Path("/b")), part=part)
    out = began(config)
    assert load_config(Path("run"), Config) == config
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_config(out, Config)
    base = tmp_path / "start"
    assert (loaded.data, loaded.pairs, loaded.method) == (base / "images", (base / "a", Path("/b")), "kdep")
    assert loaded.part == Part(knn=base / "knn", name=(str(base / "teacher"), "timm/resnet18"))


def test_a_place_that_was_passed_once_is_kept_for_later_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = began(Config(data=Path("images"), out=tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    places = to_places(data=Path("moved"), part__name=("timm/vit_tiny",), pairs=None)
    assert load_config(out, Config, (), places).data == tmp_path / "moved"
    record_moved(out, places)
    loaded = load_config(out, Config)
    assert (loaded.data, loaded.part.name) == (tmp_path / "moved", ("timm/vit_tiny",))
    assert read_inputs(out)["moved"] == {"data": str(tmp_path / "moved"), "part.name": ["timm/vit_tiny"]}
