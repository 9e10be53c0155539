"""Feature extraction against pixels read by Pillow and averaged by NumPy."""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, distributed, nn

from stillroom.backbone import (
    Backbone,
    BackboneSpec,
    InputSpec,
    Normalize,
    build_backbone,
    replace_input,
    weights_sha256,
)
from stillroom.backbone.cache_folder import warn_once
from stillroom.eval_ssl import (
    FeatureSet,
    KnnConfig,
    LinearConfig,
    LogregConfig,
    evaluate,
    evaluation,
    extract_features,
    report,
)
from stillroom.eval_ssl.features import Extractor
from stillroom.images import EvaluationView, read_labelled, read_unlabelled
from stillroom.runs import Results, Run, read_results

Make = Callable[..., Path]

PLAIN = InputSpec(size=36, crop_fraction=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # the images as they are


class Read(nn.Module):
    """Images as their mean colour (b, 3), through a function, so that every feature can be worked out by hand."""

    def __init__(self, function: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images.mean(dim=(2, 3)))


def colour_backbone(spec: InputSpec = PLAIN, function: Callable[[Tensor], Tensor] = lambda x: x) -> Backbone:
    return Backbone.from_module(Read(function), BackboneSpec(name="module/Read", dim=3, input=spec))


def extract(backbone: Backbone, folder: Path, **options) -> FeatureSet:
    run = Run(device=torch.device("cpu"))
    return extract_features(backbone, read_labelled(folder), run, **({"batch_size": 5, "workers": 0} | options))


def mean_colours(folder: Path, margin: int = 0) -> np.ndarray:
    """Mean colour, 0 to 255, of each image less a margin, in the order of classes and file names."""
    paths = sorted(folder.glob("*/*.png"))
    pixels = [np.asarray(Image.open(path), dtype=np.float64) for path in paths]
    return np.stack([p[margin : p.shape[0] - margin, margin : p.shape[1] - margin].mean(axis=(0, 1)) for p in pixels])


def break_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_in_the_order_of_the_files(labelled: Make, workers: int) -> None:
    folder = labelled("train", per_class=4)
    found = extract(colour_backbone(), folder, workers=workers)
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.broken == ()
    np.testing.assert_allclose(found.features.numpy(), mean_colours(folder) / 255, rtol=0, atol=1e-6)
    assert found.features.dtype == torch.float32


def test_the_manifests_input_is_used(labelled: Make) -> None:
    folder = labelled("train", per_class=2)
    spec = InputSpec(
        size=20,
        crop_fraction=20 / 36,
        mean=(10.0, 20.0, 30.0),
        std=(2.0, 4.0, 8.0),
        channel_order="bgr",
        value_range=(0.0, 255.0),
    )
    expected = (mean_colours(folder, margin=8)[:, ::-1] - [10.0, 20.0, 30.0]) / [2.0, 4.0, 8.0]
    np.testing.assert_allclose(extract(colour_backbone(spec), folder).features.numpy(), expected, rtol=0, atol=1e-4)


def test_the_feature_point_of_the_backbone_is_used(labelled: Make) -> None:
    folder = labelled("train", per_class=2)
    torch.manual_seed(0)
    net = replace_input(build_backbone("cifar/resnet20"), size=16)
    after, before = (extract(net.at(point), folder).features for point in ("after", "before"))
    assert (after >= 0).all() and (before < 0).any()


def test_the_net_runs_in_eval_mode_and_is_left_as_it_was(labelled: Make) -> None:
    folder = labelled("train", per_class=4)
    net = replace_input(build_backbone("cifar/resnet20"), size=16).train()
    weights = weights_sha256(net.net)
    together, alone = (extract(net.train(), folder, batch_size=size).features for size in (12, 1))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)  # batch statistics would tell them apart
    assert weights_sha256(net.net) == weights
    assert not together.requires_grad


def test_images_go_through_the_net_in_batches_of_the_given_size(labelled: Make) -> None:
    sizes: list[int] = []
    backbone = colour_backbone(function=lambda colours: (sizes.append(len(colours)), colours)[1])
    extract(backbone, labelled("train", per_class=4), batch_size=5)
    assert sizes == [5, 5, 2]


def test_features_that_are_not_finite_are_refused_with_the_images_name(labelled: Make) -> None:
    folder = labelled("train", per_class=4)
    break_image(folder / "blue" / "000.png")  # the image's place among the files is not its place among the features
    for name in ("001", "003"):
        Image.new("RGB", (36, 36)).save(folder / "green" / f"{name}.png")  # the logarithm of black
    with pytest.raises(ValueError, match=r"2 images give features that are not finite, the first is .*green/001\.png$"):
        extract(colour_backbone(function=torch.log), folder, on_broken="skip")


def test_a_broken_image_is_refused_by_name(labelled: Make) -> None:
    folder = labelled("train", per_class=2)
    break_image(folder / "green" / "001.png")
    with pytest.raises(ValueError, match=r"green/001\.png cannot be read as an image"):
        extract(colour_backbone(), folder)


def test_a_skipped_image_has_no_row_and_is_named_once(labelled: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labelled("train", per_class=4)
    whole = mean_colours(folder) / 255
    for name in ("green/001.png", "red/003.png"):
        break_image(folder / name)
    found = extract(colour_backbone(), folder, on_broken="skip")
    np.testing.assert_allclose(found.features.numpy(), np.delete(whole, [5, 11], axis=0), rtol=0, atol=1e-6)
    assert found.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert [sentence.split(" cannot")[0] for sentence in found.broken] == [
        str(folder / "green/001.png"),
        str(folder / "red/003.png"),
    ]
    assert capsys.readouterr().err.count("skipped: ") == 2


def test_a_batch_without_a_readable_image_is_passed_over(labelled: Make) -> None:
    folder = labelled("train", per_class=2)
    for name in ("green/000.png", "green/001.png"):
        break_image(folder / name)
    found = extract(colour_backbone(), folder, batch_size=2, on_broken="skip")
    assert found.labels.tolist() == [0, 0, 2, 2]


def test_a_folder_without_a_readable_image_is_refused(labelled: Make) -> None:
    folder = labelled("train", per_class=1)
    for path in folder.glob("*/*.png"):
        break_image(path)
    with pytest.raises(ValueError, match=r"no image of .*train could be read, for instance: .*blue/000\.png cannot be"):
        extract(colour_backbone(), folder, on_broken="skip")


def test_files_without_labels_have_features_too(unlabelled: Path, run: Run) -> None:
    files = read_unlabelled(unlabelled)
    found = extract_features(colour_backbone(), files, run, workers=0)
    assert found.labels.tolist() == [-1] * len(files) and found.files.paths == files.paths
    colours = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float64).mean(axis=(0, 1)) for path in files.paths]
    np.testing.assert_allclose(found.features.numpy(), np.stack(colours) / 255, rtol=0, atol=1e-3)  # resized to 36 px


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the net, call by call."""
    counted: list[int] = []
    forward = Extractor.forward

    def count(self: Extractor, images: Tensor) -> Tensor:
        counted.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Extractor, "forward", count)
    return counted


def small_net(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return replace_input(build_backbone("cifar/resnet20"), size=16)


def test_a_pass_that_was_made_is_not_made_again_until_something_changes(labelled: Make, passes: list[int]) -> None:
    folder = labelled("train", per_class=4)
    first = extract(small_net(), folder)
    again = extract(small_net(), folder)
    assert passes == [5, 5, 2] and torch.equal(first.features, again.features)
    assert torch.equal(first.features, extract(small_net(), folder, cache=False).features)
    head = nn.Sequential(nn.Linear(64, 7))
    changed = [
        (small_net(seed=1), {}),
        (small_net().at("before"), {}),
        (replace_input(small_net(), size=20), {}),
        (small_net(), {"levels": (-1,)}),
        (small_net(), {"head": head}),
        (small_net(), {"batch_size": 6}),
    ]
    for net, options in changed:
        passes.clear()
        extract(net, folder, **options)
        assert sum(passes) == 12, options
    passes.clear()
    other = copy.deepcopy(head)
    nn.init.ones_(other[0].bias)
    assert not torch.equal(
        extract(small_net(), folder, head=other).features, extract(small_net(), folder, head=head).features
    )
    assert sum(passes) == 12, "another head of the same shape is another feature"
    passes.clear()
    (folder / "red" / "000.png").write_bytes((folder / "red" / "001.png").read_bytes())
    extract(small_net(), folder)
    assert sum(passes) == 12


def test_an_interrupted_pass_resumes_where_it_stopped(labelled: Make, passes: list[int]) -> None:
    folder = labelled("train", per_class=4)
    break_image(folder / "red" / "003.png")  # of the last batch
    with pytest.raises(ValueError, match=r"red/003\.png cannot be read"):
        extract(small_net(), folder)
    assert passes == [5, 5]
    found = extract(small_net(), folder, on_broken="skip")
    assert passes == [5, 5, 1] and len(found.features) == 11 and len(found.broken) == 1
    passes.clear()
    assert torch.equal(extract(small_net(), folder, on_broken="skip").features, found.features)
    assert sum(passes) == 1  # a batch with an image that cannot be read is tried again


@pytest.mark.parametrize("level", [0, -1])
def test_a_level_is_the_spatial_mean_of_its_map(labelled: Make, level: int) -> None:
    folder = labelled("train", per_class=2)
    net = small_net().eval()
    view = EvaluationView(net.spec.input)
    images = torch.stack([view(Image.open(path).convert("RGB")) for path in read_labelled(folder).paths])
    expected = net(Normalize(net.spec.input)(images)).maps[level].mean(dim=(2, 3))
    torch.testing.assert_close(extract(net, folder, levels=(level,)).features, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"there is no level 3: cifar/resnet20 has 3 levels"):
        extract(net, folder, levels=(3,))
    with pytest.raises(ValueError, match=r"--head takes the pooled feature"):
        extract(net, folder, levels=(0,), head=nn.Sequential(nn.Linear(64, 2)))


def test_several_feature_sources_are_concatenated_in_one_pass(labelled: Make, passes: list[int]) -> None:
    folder = labelled("train", per_class=2)
    found = extract(small_net(), folder, levels=(None, -1, 0))
    assert sum(passes) == 6
    assert found.feature_sources == {"pooled": slice(0, 64), "level-1": slice(64, 128), "level-3": slice(128, 144)}
    for name, level in (("pooled", None), ("level-1", -1), ("level-3", -3)):
        assert torch.equal(
            found.features[:, found.feature_sources[name]], extract(small_net(), folder, levels=(level,)).features
        )
    with pytest.raises(ValueError, match="level-1 is requested twice"):
        extract(small_net(), folder, levels=(-1, 2))


def test_bf16_features_are_near_those_of_float32_and_cached_apart(labelled: Make) -> None:
    folder, net = labelled("train", per_class=3), small_net()
    for _ in range(2):  # computed, then read from the cache
        exact, rounded = extract(net, folder).features, extract(net, folder, amp="bf16").features
        assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
        assert (exact - rounded).norm() < 0.02 * exact.norm()
    assert all(one.dtype == torch.float32 for one in net.parameters()), "the caller's net stays as it is"


def extract_and_evaluate(folder: Path, out: Path, run: Run) -> tuple[list[tuple[Tensor, Tensor, tuple[str, ...]]], str]:
    """In three batches, which two processes cannot share evenly, and in one, which leaves a process none; k-NN."""
    torch.manual_seed(7)
    net = replace_input(build_backbone("cifar/resnet20"), size=16)
    options = {"workers": 0, "on_broken": "skip"}
    sets = [extract_features(net, read_labelled(folder), run, batch_size=size, **options) for size in (5, 64)]
    name = "random:cifar/resnet20"
    shared = {"checkpoint": (name,), "train": folder, "test": folder, "size": 16, "device": "cpu", **options}
    configs = [
        KnnConfig(**shared, out=out, k=(1, 9)),
        LinearConfig(**shared, out=out / "linear", epochs=3, lrs=(0.1, 0.01), weight_decays=(0.0,)),
        LogregConfig(**shared, out=out / "logreg", penalties=(1e-1, 1e-2)),
    ]
    table = "\n".join(report(evaluate(config)) for config in configs)  # every process reads what the first one writes
    return [(found.features, found.labels, found.broken) for found in sets], table.replace(str(out), "OUT")


def test_two_processes_give_each_the_features_and_the_results_of_one_to_the_bit(
    labelled: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_two_processes: Callable[..., list]
) -> None:
    folder = labelled("train", per_class=5)
    break_image(folder / "green" / "001.png")  # read by the second process
    write, leave = evaluation.write_results, distributed.destroy_process_group

    def write_late(directory: Path, results: Results) -> None:  # a slow disk: the others would look for it too early
        assert distributed.get_rank() == 0
        time.sleep(1)
        write(directory, results)

    def two() -> None:
        run = Run.start("cpu")
        evaluation.write_results, distributed.destroy_process_group = write_late, lambda: None  # gloo cannot rejoin
        torch.save(extract_and_evaluate(folder, tmp_path / "run", run), tmp_path / f"{run.rank}.pt")
        leave()

    in_two_processes(two)
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "own"))  # nothing of theirs is read
    ours, our_table = extract_and_evaluate(folder, tmp_path / "alone", Run(device=torch.device("cpu")))
    for rank in (0, 1):
        theirs, their_table = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert their_table == our_table
        for one, two in zip(ours, theirs, strict=True):
            assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) and one[2] == two[2]
            assert len(one[0]) == 14 and len(one[2]) == 1
    assert read_results(tmp_path / "run").datasets["test"].broken == 1


def test_a_cache_that_cannot_be_written_changes_nothing_but_a_warning(
    labelled: Callable[..., Path], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    files, backbone = read_labelled(labelled("train")), build_backbone("cifar/resnet20")
    usual = extract_features(backbone, files, run, workers=0)
    warn_once.cache_clear()
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    capsys.readouterr()
    assert torch.equal(extract_features(backbone, files, run, workers=0).features, usual.features)
    assert capsys.readouterr().err.startswith(
        f"warning: {tmp_path}/cache/features cannot be written (Not a directory): set"
    )
