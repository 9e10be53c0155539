"""manifest.json: its layout is a contract, and a wrong one is never half understood."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.backbone import BackboneSpec, CheckpointError, Data, Head, InputSpec, Level, Licence, Manifest, Teacher
from stillroom.backbone import manifest as manifest_module
from stillroom.backbone.manifest import FileRecord, MadeBy, WeightsRecord, read_manifest

FULL = Manifest(
    backbone=BackboneSpec(
        name="timm/mobilenetv2_100",
        dim=1280,
        arguments={"pad_type": "same"},
        pre_activation=True,
        levels=(Level(name="blocks.1", channels=24, stride=4), Level(name="blocks.6", channels=320, stride=32)),
        input=InputSpec(size=192, mean=(123.5, 116.0, 103.5), std=(58.5, 57.0, 57.5), value_range=(0.0, 255.0)),
        licence=Licence(spdx="CC-BY-NC-4.0", restrictions=("data: ImageNet terms",)),
    ),
    made_by=MadeBy(
        package="stillroom-distill",
        version="0.1.0",
        commit=None,
        command="stillroom-distill kdep --out 'a b'",
        torch="2.6.0",
        date="2026-11-21T22:00:00+00:00",
        config={"epochs": 90, "view": {"kind": "KdepView"}},
    ),
    method="kdep",
    files={"model.safetensors": FileRecord(sha256="a" * 64, bytes=12)},
    weights=WeightsRecord(tensors=3, parameters=4, sha256="b" * 64),
    teacher=Teacher(name="timm/resnet50", weights_sha256="c" * 64, licence=Licence(spdx="MIT")),
    data=Data(count=5, fingerprint="d" * 64),
    heads={"classifier": Head(kind="linear", in_dim=1280, out_dim=2, classes=("cat", "dog"))},
    notes=("a conversion",),
    evaluations=({"task": "knn", "metrics": {"top1": 0.5}},),
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write FULL, changed: `write(method="x")`, `write(lambda raw: raw.pop("method"))`."""

    def make(change: Callable[[dict[str, Any]], Any] = lambda raw: None, **fields: Any) -> Path:
        raw = json.loads(FULL.to_json()) | fields
        change(raw)
        (tmp_path / "manifest.json").write_text(json.dumps(raw))
        return tmp_path / "manifest.json"

    return make


def test_the_layout_is_that_of_the_design() -> None:
    assert json.loads(FULL.to_json()) == {
        "schema": 1,
        "backbone": {
            "name": "timm/mobilenetv2_100",
            "arguments": {"pad_type": "same"},
            "dim": 1280,
            "pre_activation": True,
            "levels": [
                {"name": "blocks.1", "channels": 24, "stride": 4},
                {"name": "blocks.6", "channels": 320, "stride": 32},
            ],
        },
        "input": {
            "size": 192,
            "crop_fraction": 0.875,
            "resize": "short side",
            "interpolation": "bilinear",
            "antialias": True,
            "mean": [123.5, 116.0, 103.5],
            "std": [58.5, 57.0, 57.5],
            "channel_order": "rgb",
            "value_range": [0.0, 255.0],
        },
        "licence": {"spdx": "CC-BY-NC-4.0", "restrictions": ["data: ImageNet terms"]},
        "made_by": {
            "package": "stillroom-distill",
            "version": "0.1.0",
            "commit": None,
            "command": "stillroom-distill kdep --out 'a b'",
            "config": {"epochs": 90, "view": {"kind": "KdepView"}},
            "torch": "2.6.0",
            "date": "2026-11-21T22:00:00+00:00",
        },
        "method": "kdep",
        "teacher": {
            "name": "timm/resnet50",
            "weights_sha256": "c" * 64,
            "licence": {"spdx": "MIT", "restrictions": []},
        },
        "data": {"count": 5, "fingerprint": "d" * 64},
        "files": {"model.safetensors": {"sha256": "a" * 64, "bytes": 12}},
        "weights": {"tensors": 3, "parameters": 4, "sha256": "b" * 64},
        "heads": {"classifier": {"kind": "linear", "in_dim": 1280, "out_dim": 2, "classes": ["cat", "dog"]}},
        "notes": ["a conversion"],
        "evaluations": [{"task": "knn", "metrics": {"top1": 0.5}}],
    }


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(FULL.to_json())
    assert read_manifest(tmp_path / "manifest.json") == FULL


def test_a_missing_manifest_means_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} is not a checkpoint: it has no manifest.json"):
        read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        FULL.to_json()[:100],
        "[1]",
        "3",
        "null",
        "{}",
        '{"schema": null}',
        '{"schema": "1"}',
        '{"schema": Infinity}',
        "\udcff",
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        CheckpointError, match=r"manifest.json is damaged: .*; copy or make the checkpoint again"
    ) as caught:
        read_manifest(tmp_path / "manifest.json")
    assert "Error(" not in str(caught.value), "the message, not its repr"


def test_a_newer_schema_is_refused_with_the_upgrade_to_install(write: Callable[..., Path]) -> None:
    file = write(schema=2, something_new=True)
    sentence = (
        f"checkpoint {file.parent} has schema 2, this stillroom-backbone reads up to 1: "
        "upgrade it with `pip install --upgrade stillroom-backbone`"
    )
    with pytest.raises(CheckpointError, match=sentence):
        read_manifest(file)


@pytest.mark.parametrize("schema", [0, -1])
def test_a_schema_that_never_existed_is_refused(write: Callable[..., Path], schema: int) -> None:
    with pytest.raises(CheckpointError, match=f"has schema {schema}, which never existed"):
        read_manifest(write(schema=schema))


def test_an_unknown_field_is_refused_by_name(write: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit schema 1: .*extra fields.*colour"):
        read_manifest(write(colour="red"))
    with pytest.raises(CheckpointError, match=r"does not fit schema 1: .*extra fields.*hue.*\$\.backbone\.input"):
        read_manifest(write(lambda raw: raw["input"].update(hue=1)))


@pytest.mark.parametrize("field", ["backbone", "input", "licence", "made_by", "method", "files", "weights"])
def test_a_missing_field_is_refused_by_name(write: Callable[..., Path], field: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not fit schema 1: .*{field}"):
        read_manifest(write(lambda raw: raw.pop(field)))


def test_values_out_of_range_are_refused(write: Callable[..., Path]) -> None:
    for change in ({"std": [0.1, 0.0, 0.1]}, {"channel_order": "grb"}, {"size": 0}, {"mean": [1, 2]}):
        with pytest.raises(CheckpointError, match=r"manifest.json does not fit schema 1: .*\$\.backbone\.input"):
            read_manifest(write(lambda raw, change=change: raw["input"].update(change)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_value_in_any_place_is_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = json.loads(FULL.to_json())
    at: Any = raw
    while True:
        place = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[place], dict | list) or not at[place] or data.draw(st.booleans()):
            break
        at = at[place]
    at[place] = data.draw(JSON)
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(raw))
    try:
        assert isinstance(read_manifest(file), Manifest)
    except CheckpointError as error:
        assert "any.json" in str(error) or "has schema" in str(error)


def test_an_older_schema_is_upgraded_step_by_step(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema 1 is the first, so two later ones are made up here: 2 calls `method` `way`, 3 calls it `method` again."""
    steps = []

    def to_2(raw: dict[str, Any]) -> dict[str, Any]:
        steps.append(2)
        return raw | {"schema": 2, "way": raw.pop("how")}

    def to_3(raw: dict[str, Any]) -> dict[str, Any]:
        steps.append(3)
        return raw | {"schema": 3, "method": raw.pop("way").upper()}

    monkeypatch.setattr(manifest_module, "SCHEMA", 3)
    monkeypatch.setattr(manifest_module, "UPGRADES", {1: to_2, 2: to_3})
    file = write(lambda raw: raw.update(how=raw.pop("method")))
    upgraded = read_manifest(file)
    assert steps == [2, 3]
    assert (upgraded.schema, upgraded.method, upgraded.backbone) == (3, "KDEP", FULL.backbone)
    assert json.loads(file.read_text())["schema"] == 1  # reading changes no file
    steps.clear()
    read_manifest(write(lambda raw: raw.update(schema=2, way=raw.pop("method"))))
    assert steps == [3]
    with pytest.raises(CheckpointError, match="has schema 0, which never existed"):
        read_manifest(write(schema=0))
    with pytest.raises(CheckpointError, match="has schema 4, this stillroom-backbone reads up to 3"):
        read_manifest(write(schema=4))


def test_every_older_schema_has_its_step_and_its_fixture() -> None:
    older = range(1, manifest_module.SCHEMA)
    assert sorted(manifest_module.UPGRADES) == list(older)
    for schema in [*older, manifest_module.SCHEMA]:
        stored = Path(__file__).parent / "fixtures" / f"schema-{schema}" / "manifest.json"
        assert json.loads(stored.read_text())["schema"] == schema
        assert read_manifest(stored).schema == manifest_module.SCHEMA
