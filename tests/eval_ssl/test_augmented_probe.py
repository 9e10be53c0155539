"""SimReg's live linear evaluation against a plain loop over the same crops."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from stillroom.backbone import Normalize, build_backbone, replace_input
from stillroom.backbone.cache_folder import warn_once
from stillroom.eval_ssl.augmented_probe import train_augmented
from stillroom.eval_ssl.config import Point
from stillroom.eval_ssl.features import Extractor, extract_features
from stillroom.eval_ssl.probe import Recipe, batches
from stillroom.images import ImageDataset, read_labelled
from stillroom.images.view import CropView
from stillroom.runs import Run
from stillroom.runs.schedule import Step

Make = Callable[..., Path]
RECIPE = Recipe(epochs=3, batch_size=8, schedule=Step(every=1, gamma=0.5))
POINT = Point(lr=0.5, weight_decay=1e-3, unit=True)


def live(folder: Path, run: Run, recipe: Recipe = RECIPE, *, seed: int = 7, **options) -> Tensor:
    torch.manual_seed(seed)
    net = replace_input(build_backbone("cifar/resnet20"), size=16)
    train = extract_features(net, read_labelled(folder), run, workers=0, batch_size=4)
    settings = {"batch_size": 3, "workers": 0} | options
    logits, done = train_augmented(Extractor(net), train, train.features, POINT, recipe, run, **settings)
    done()
    return logits


def test_two_epochs_are_what_a_plain_loop_gives(labelled: Make, run: Run) -> None:
    folder = labelled("train", per_class=6)
    recipe = replace(RECIPE, epochs=2)
    torch.manual_seed(7)
    net = replace_input(build_backbone("cifar/resnet20"), size=16).eval()
    files, spec = read_labelled(folder), net.spec.input
    centre = normalize(extract_features(net, files, run, workers=0, batch_size=4).features.double(), dim=1)
    mean, std = centre.mean(dim=0), (centre.var(dim=0, correction=0) + 1e-5).sqrt()
    crops = ImageDataset(files, CropView(spec, 0.08), seed=recipe.seed)
    layer = nn.Linear(64, 3).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), POINT.lr, momentum=0.9, weight_decay=POINT.weight_decay)
    labels = torch.tensor(files.labels)
    for step in batches(len(files), recipe):
        images = torch.stack([crops[int(step.epoch), row][1] for row in step.rows.tolist()])
        with torch.no_grad():  # in parts of three, as the run has them, for they move the last digits of the features
            pooled = torch.cat([net(Normalize(spec)(part)).pooled for part in images.split(3)])
        x = (normalize(pooled.double(), dim=1) - mean) / std
        optimizer.param_groups[0]["lr"] = POINT.lr * recipe.schedule.factor(step.epoch, recipe.epochs)
        optimizer.zero_grad()
        cross_entropy(layer(x), labels[step.rows]).backward()
        optimizer.step()
    expected = layer((centre - mean) / std).detach()
    torch.testing.assert_close(
        live(folder, run, recipe).double(), expected, rtol=0, atol=1e-3
    )  # of features, not steps


def test_crops_depend_on_image_and_epoch_alone(labelled: Make) -> None:
    files = read_labelled(labelled("train", per_class=2))
    spec = replace_input(build_backbone("cifar/resnet20"), size=16).spec.input
    crops = ImageDataset(files, CropView(spec, 0.08))
    first, again, later = crops[0, 1][1], crops[0, 1][1], crops[1, 1][1]
    assert first.shape == (3, 16, 16) and torch.equal(first, again) and not torch.equal(first, later)


def test_crops_are_of_8_to_100_percent_and_half_of_them_flipped() -> None:
    spec = replace_input(build_backbone("cifar/resnet20"), size=16).spec.input
    ramp = torch.arange(256, dtype=torch.uint8)[None].repeat(256, 1).numpy()
    image = Image.merge("RGB", [Image.fromarray(ramp)] * 3)
    generator = torch.Generator().manual_seed(0)
    spans = [
        (view[0, :, -1].float() - view[0, :, 0].float()).mean().item()
        for view in (CropView(spec, 0.08)(image, generator) for _ in range(300))
    ]
    widths = torch.tensor(spans).abs() / 255
    assert 0.15 < widths.min() < 0.4 and widths.max() > 0.85
    assert 0.4 < sum(span < 0 for span in spans) / 300 < 0.6


def test_an_interrupted_run_resumes_after_its_last_full_epoch(
    labelled: Make, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelled("train", per_class=6)
    whole = live(folder, run, cache=False)
    calls: list[int] = []
    forward = Extractor.forward

    def fail_in_the_second_epoch(self: Extractor, images: Tensor) -> Tensor:
        calls.append(len(images))
        if sum(calls) > 18 + 18 + 8:  # the centre crops' features, an epoch, a step
            raise KeyboardInterrupt
        return forward(self, images)

    monkeypatch.setenv("STILLROOM_CACHE", str(folder.parent / "own"))
    monkeypatch.setattr(Extractor, "forward", fail_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        live(folder, run)
    monkeypatch.setattr(
        Extractor, "forward", lambda self, images: (calls.append(len(images)), forward(self, images))[1]
    )
    (state,) = (folder.parent / "own" / "live").glob("*.pt")
    kept = state.read_bytes()
    state.write_bytes(kept[:99])
    with pytest.raises(
        ValueError, match=r"\.pt is damaged, .*: remove it, and the probe is trained from its first epoch"
    ):
        live(folder, run)
    state.write_bytes(kept)
    calls.clear()
    assert torch.equal(live(folder, run), whole)
    assert sum(calls) == 2 * 18  # of three epochs one was done, and the features are kept
    calls.clear()
    assert torch.equal(live(folder, run), whole) and sum(calls) == 3 * 18  # a run that ended keeps no state


DISTRIBUTED = """
import sys; sys.path.insert(0, sys.argv[3])
from pathlib import Path
import torch; torch.set_num_threads(1)
from stillroom.runs import Run
from test_augmented_probe import live
run = Run.start("cpu")
torch.save(live(Path(sys.argv[1]), run), Path(sys.argv[2]) / f"{run.rank}.pt")
run.close()
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_to_the_bit(labelled: Make, tmp_path: Path, run: Run) -> None:
    folder = labelled("train", per_class=6)
    (tmp_path / "live.py").write_text(DISTRIBUTED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(tmp_path / "live.py"), str(folder), str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    alone = live(folder, run, cache=False)
    for rank in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone)


def test_the_state_of_another_nets_run_is_not_resumed(
    labelled: Make, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = labelled("train", per_class=6)
    expected = live(folder, run, cache=False, seed=8)
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, *a, **k: None if self.suffix == ".pt" else unlink(self, *a, **k))
    live(folder, run)  # its state stays, as after a kill behind the last epoch
    assert torch.equal(live(folder, run, seed=8), expected)


def test_a_thin_image_is_cropped_before_it_grows() -> None:
    for size in ((20_000, 1), (1, 20_000)):
        pixels = CropView(build_backbone("cifar/resnet20").spec.input, 0.08)(
            Image.new("RGB", size, "teal"), torch.Generator()
        )
        assert tuple(pixels.shape) == (3, 32, 32)


def test_a_cache_that_cannot_be_written_is_said_once_and_the_probe_is_the_same(
    labelled: Make, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = labelled("train", per_class=6)
    expected = live(folder, run, cache=False)
    warn_once.cache_clear()
    (folder.parent / "own").write_text("")
    monkeypatch.setenv("STILLROOM_CACHE", str(folder.parent / "own"))
    assert torch.equal(live(folder, run), expected)
    assert capsys.readouterr().err.count("warning: ") == 2  # of the features and of the probe's states
