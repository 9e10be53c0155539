"""Fitting, keeping, reusing and importing alignments."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_runs import small_config
from safetensors.torch import save

from stillroom.backbone import Backbone, BackboneSpec, InputSpec
from stillroom.backbone.cache_folder import cache_directory
from stillroom.distill import SvdPts, distill, fit, fit_alignment, fit_state, import_kdep_alignment, load_alignment
from stillroom.distill.alignment_file import FORMAT, encode_alignments, load_alignments
from stillroom.distill.data import draw_images
from stillroom.distill.fit import FitPass, alignment_inputs, cached_alignment, load_matching_alignment
from stillroom.distill.fit_state import FitState
from stillroom.distill.slots import Lda, Svd
from stillroom.distill.teacher import FrozenTeacher
from stillroom.images import read_labelled, read_unlabelled
from stillroom.runs import Run
from twins import assert_bit_equal


def tiny_teacher(seed: int = 0, size: int = 16, pre_activation: bool = True) -> FrozenTeacher:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 5, 3), torch.nn.Tanh())
    spec = BackboneSpec(
        name="module/Tiny", dim=12, pre_activation=pre_activation, input=InputSpec(size=size, crop_fraction=1.0)
    )
    return FrozenTeacher(Backbone.from_module(net, spec))


def find(teacher: FrozenTeacher, data: Path, run: Run, config: Svd | None = None):
    fit = FitPass(files=read_unlabelled(data), run=run, workers=0)
    return cached_alignment(teacher, config or SvdPts(), 6, fit)


def test_a_file_holds_all_of_an_alignment(unlabelled: Path, run: Run, tmp_path: Path) -> None:
    teacher, fit = tiny_teacher(), FitPass(files=read_unlabelled(unlabelled), run=run, workers=0)
    config = SvdPts(temperature=0.2, exponent=5.0)
    target = fit_alignment(teacher, config, 6, fit)
    inputs = alignment_inputs(teacher, fit)
    file = tmp_path / "a.safetensors"
    file.write_bytes(encode_alignments([(config, target, inputs)]))
    again, read = load_alignment(file)
    assert read == inputs
    features = torch.randn(5, 12)
    assert torch.equal(again(features), target(features))
    assert torch.equal(again.alignment.svd.rank_, target.alignment.svd.rank_)
    assert again.std_ratio_ == target.std_ratio_


def test_equal_inputs_reuse_the_alignment_and_any_change_fits_anew(
    unlabelled: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def reused(*arguments) -> bool:
        find(*arguments)
        return "reused from" in capsys.readouterr().out

    assert not reused(tiny_teacher(), unlabelled, run)
    assert reused(tiny_teacher(), unlabelled, run)
    assert not reused(tiny_teacher(seed=1), unlabelled, run)
    assert not reused(tiny_teacher(size=20), unlabelled, run)
    assert not reused(tiny_teacher(pre_activation=False), unlabelled, run)
    assert not reused(tiny_teacher(), unlabelled, run, SvdPts(exponent=2.0))
    assert not reused(tiny_teacher(), unlabelled, run, Svd())
    (unlabelled / "0000.png").unlink()
    assert not reused(tiny_teacher(), unlabelled, run)
    assert len(list(cache_directory("alignments").glob("*.safetensors"))) == 7


def test_an_alignment_fitted_on_some_images_trains_on_others_and_records_it(
    unlabelled: Path, tmp_path: Path, run: Run
) -> None:
    first = distill(small_config(unlabelled, tmp_path / "first", epochs=1))
    (unlabelled / "0000.png").unlink()
    config = small_config(unlabelled, tmp_path / "second", epochs=1, alignment_file=(first / "alignment.safetensors",))
    second = distill(config)
    inputs = load_alignment(second / "student" / "alignment.safetensors")[1]
    assert inputs.count == 96
    assert inputs.data_fingerprint != read_unlabelled(unlabelled).fingerprint
    with pytest.raises(ValueError, match="fitted on features before the last activation, not after it"):
        distill(replace(config, out=tmp_path / "third", teacher=replace(config.teacher, feature=("after",))))


def test_an_alignment_of_another_teacher_is_refused(unlabelled: Path, run: Run, tmp_path: Path) -> None:
    target, inputs = find(tiny_teacher(), unlabelled, run)
    file = tmp_path / "a.safetensors"
    file.write_bytes(encode_alignments([(SvdPts(), target, inputs)]))
    load_matching_alignment(file, tiny_teacher(), SvdPts(), 6, run)
    with pytest.raises(ValueError, match="was fitted on another teacher"):
        load_matching_alignment(file, tiny_teacher(seed=1), SvdPts(), 6, run)
    with pytest.raises(ValueError, match=r"holds SvdPts.* of 6 dimensions, expected .* of 5"):
        load_matching_alignment(file, tiny_teacher(), SvdPts(), 5, run)
    with pytest.raises(ValueError, match=r"expected Svd\("):
        load_matching_alignment(file, tiny_teacher(), Svd(), 6, run)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_foreign_file_is_not_an_alignment(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=f"^there is no {file}$"):
        load_alignment(file)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not an alignment file: [^()]*$"):  # a message, not the repr of an error
        load_alignment(file)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ("{", "is not an alignment file: Expecting property name"),
        ("{}", "is not an alignment file: it has no record of one"),
        ("3", "is not an alignment file: it has no record of one"),
        ('{"format": "theirs"}', "has the format theirs, this version reads"),
        *(
            (f'{{"format": "{FORMAT}"{more}}}', "is damaged, its record is not that of an alignment: ")
            for more in (
                "",
                ', "alignments": 3',
                ', "alignments": [3]',
                ', "alignments": [{}]',
                ', "alignments": [{"alignment": {"_type": "Svd"}, "feature_dim": "a", "dim": -1}]',
            )
        ),
    ],
)
def test_a_record_that_is_damaged_or_foreign_is_one_sentence(tmp_path: Path, record: str, sentence: str) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(save({}, {"record": record}))
    with pytest.raises(ValueError, match=sentence):
        load_alignment(file)


def kdep_files(folder: Path, dim: int = 12) -> tuple[Path, Path, np.ndarray]:
    """What KDEP's script leaves: V of torch.svd of the centred features, their mean, and the features themselves."""
    features = np.random.default_rng(0).standard_normal((300, dim)).astype(np.float32) * np.arange(dim, 0, -1) + 3
    tensor = torch.from_numpy(features.astype(np.float32))
    mean = tensor.mean(dim=0)
    _, _, v = torch.svd(tensor - mean)
    np.save(folder / "model_v.npy", v.numpy())
    np.save(folder / "model_feat_mean.npy", mean.numpy())
    return folder / "model_v.npy", folder / "model_feat_mean.npy", features


def test_kdeps_own_files_give_kdeps_own_target_up_to_sign(tmp_path: Path, run: Run) -> None:
    basis, mean, features = kdep_files(tmp_path)
    out = tmp_path / "a.safetensors"
    import_kdep_alignment(basis, mean, out, config=SvdPts(), dim=5)
    target, inputs = load_matching_alignment(out, tiny_teacher(), SvdPts(), 5, run)
    assert inputs.teacher_sha256 is None
    components = (features - np.load(mean)) @ np.load(basis)[:, :5]
    expected = np.sign(components) * np.abs(components / 0.1) ** (1 / 3)
    ours = target(torch.from_numpy(features.astype(np.float32))).numpy()
    assert np.allclose(np.abs(ours), np.abs(expected), atol=1e-3)


def test_kdep_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    basis, mean, _ = kdep_files(tmp_path)
    out = tmp_path / "a.safetensors"
    np.save(tmp_path / "short.npy", np.zeros(3, dtype=np.float32))
    (tmp_path / "empty.npy").touch()
    header = basis.read_bytes()
    (tmp_path / "torn.npy").write_bytes(header.replace(b"(12, 12)", b"(12, 12"))
    (tmp_path / "huge.npy").write_bytes(header.replace(b"(12, 12), ", b"(99999999,)"))
    np.save(tmp_path / "skew.npy", np.ones((12, 12), dtype=np.float32))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for files, sentence in (
        ((basis, tmp_path / "short.npy"), "do not match: expected"),
        ((tmp_path / "skew.npy", mean), "are not orthonormal"),
        ((tmp_path / "pickle.npy", mean), "read with allow_pickle=False"),
        *(((tmp_path / f"{name}.npy", mean), "is not an .npy array") for name in ("empty", "torn", "huge")),
        ((tmp_path / "absent.npy", mean), "^there is no .*absent.npy$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            import_kdep_alignment(*files, out, config=SvdPts(), dim=5)
    with pytest.raises(ValueError, match="has 12 components, expected at least 13"):
        import_kdep_alignment(basis, mean, out, config=SvdPts(), dim=13)
    assert not out.exists()


def test_an_alignment_for_another_width_of_feature_is_refused(tmp_path: Path, run: Run) -> None:
    basis, mean, _ = kdep_files(tmp_path, dim=10)
    import_kdep_alignment(basis, mean, tmp_path / "a.safetensors", config=SvdPts(), dim=5)
    with pytest.raises(ValueError, match="is for 10-d features, the teacher's is 12-d"):
        load_matching_alignment(tmp_path / "a.safetensors", tiny_teacher(), SvdPts(), 5, run)


class Killed(BaseException):
    """The process ends."""


@pytest.mark.parametrize("config", [SvdPts(), Lda(dim=2)], ids=["svd", "lda"])
def test_a_fit_that_was_stopped_goes_on_where_it_was_and_ends_with_the_same_bits(
    config: Svd | Lda, labelled, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_state, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fit, "_BATCH_SIZE", 8)
    teacher = tiny_teacher()
    job = FitPass(files=read_labelled(labelled("data", per_class=20)), run=run, workers=0)
    whole = fit_alignment(teacher, config, 6, job)
    passes: list[int] = []
    forward = FrozenTeacher.forward

    def killed_after_three(self: FrozenTeacher, images: torch.Tensor):
        passes.append(len(images))
        if len(passes) == 4:
            raise Killed
        return forward(self, images)

    monkeypatch.setattr(FrozenTeacher, "forward", killed_after_three)
    file = tmp_path / "alignment.safetensors"
    with pytest.raises(Killed):
        fit_alignment(teacher, config, 6, job, file)
    assert [path.name for path in tmp_path.glob("alignment*")] == ["alignment.safetensors.fitting-1-of-1"]
    again = fit_alignment(teacher, config, 6, job, file)
    assert sum(passes) == 60 + 8  # the batch that was killed, twice
    assert_bit_equal(again.state_dict(), whole.state_dict())
    assert list(tmp_path.glob("alignment*")) == []


def test_the_state_of_another_fit_or_a_damaged_one_is_noted_and_not_read(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.safetensors"
    state = FitState(file, "this", run)
    state.save({"done": 3})
    found = FitState(file, "this", run).load()
    assert found is not None and found["done"] == 3 and capsys.readouterr().err == ""
    assert FitState(file, "another", run).load() is None
    said = f"note: {state.file} is the state of another fit: the alignment is fitted anew\n"
    assert capsys.readouterr().err == said
    whole = state.file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    foreign = io.BytesIO()
    torch.save([1], foreign)
    for content in (b"", b"torn", whole[:-10], bytes(flipped), foreign.getvalue()):
        state.file.write_bytes(content)
        assert FitState(file, "this", run).load() is None
        assert capsys.readouterr().err == f"note: {state.file} is damaged: the alignment is fitted anew\n"


def test_an_alignment_is_fitted_on_a_seeded_draw_of_so_many_images(unlabelled: Path, run: Run, tmp_path: Path) -> None:
    files = read_unlabelled(unlabelled)
    assert draw_images(files, 96, 0) is files
    drawn = draw_images(files, 20, 0)
    assert len(drawn) == 20 and list(drawn.paths) == sorted(set(drawn.paths))
    assert draw_images(files, 20, 0).paths == drawn.paths != draw_images(files, 20, 1).paths
    config = small_config(unlabelled, tmp_path / "run", alignment_images=70, epochs=1)
    [(_, _, inputs)] = load_alignments(distill(config) / "alignment.safetensors")
    assert inputs.count == 70
