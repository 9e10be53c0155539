"""The trainer, from images to a student."""

import json
import math
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distill_runs import losses_of, monitored_config, plain_teacher_and_config, small_config, start, weights_of
from safetensors.torch import load_file
from torch import nn

from stillroom.backbone import Backbone, BackboneSpec, InputSpec, build_backbone, load_checkpoint, save_checkpoint
from stillroom.backbone.cache_folder import cache_directory, warn_once
from stillroom.distill import DistillConfig, Students, Svd, Teachers, distill, resume
from stillroom.distill.config import Monitor
from stillroom.distill.slots import CosineDistance, LinearHead, MlpHead, NoHead, Raw
from stillroom.distill.state import TrainState
from stillroom.runs import read_results
from stillroom.runs.configs import to_places
from stillroom.runs.hardware import autocast, hold_weights
from stillroom.runs.run import read_metrics
from stillroom.runs.schedule import Step
from twins import assert_bit_equal, in_a_process


def test_a_run_leaves_student_logs_and_results(unlabelled: Path, tmp_path: Path) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", data_licence="CC-BY-NC-4.0"))
    _, manifest = load_checkpoint(out / "student")
    assert manifest.method == "kdep" and manifest.backbone.pre_activation
    assert manifest.teacher is not None and manifest.data is not None and manifest.data.count == 96
    assert manifest.backbone.licence.restrictions == ("data: CC-BY-NC-4.0",)
    assert manifest.backbone.input.size == 16
    assert set(manifest.files) == {"model.safetensors", "alignment.safetensors"}
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "images_per_second", "data_wait_share", "epoch"} <= lines[0].keys()
    assert list((out / "tensorboard").glob("events.*"))
    assert read_results(out).metrics["loss"] == pytest.approx(lines[-1]["loss"])


def test_a_run_on_shards_is_that_on_their_folder_to_the_bit(unlabelled: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for file in sorted(unlabelled.iterdir()):
            tar.add(file, file.name)
    runs = [
        distill(small_config(data, tmp_path / name, epochs=1))
        for name, data in (("folder", unlabelled), ("tar", tmp_path / "images.tar"))
    ]
    assert_bit_equal(*(weights_of(run / "student") for run in runs))


def test_results_count_what_was_left_out(unlabelled: Path, tmp_path: Path) -> None:
    (unlabelled / ".trash").mkdir()
    for number, file in enumerate(sorted(unlabelled.glob("*.png"))[:3]):
        shutil.copy(file, unlabelled / ".trash" / f"{number}.png")
    (unlabelled / "Thumbs.db").write_bytes(b"")
    train = read_results(distill(small_config(unlabelled, tmp_path / "run"))).datasets["train"]
    assert (train.count, train.left_out) == (96, {"hidden": 3, "not an image": 1})


def test_the_loss_falls_when_the_student_can_learn(unlabelled: Path, tmp_path: Path) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", epochs=12, alignment=Svd(dim=64), loss_weight=10.0))
    assert sum(losses_of(out)[-3:]) < 0.8 * sum(losses_of(out)[:3])


def test_gradients_reach_every_student_parameter_and_no_teacher_parameter(unlabelled: Path, tmp_path: Path) -> None:
    teacher = build_backbone("cifar/resnet20", feature="before")
    before = {name: tensor.clone() for name, tensor in teacher.net.state_dict().items()}
    config = small_config(unlabelled, tmp_path / "run", epochs=1)
    torch.manual_seed(0)
    distill(config, teacher)
    assert_bit_equal(before, teacher.net.state_dict())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    first = weights_of(distill(replace(config, out=tmp_path / "still", lr=0.0)) / "student")
    moved = weights_of(tmp_path / "run" / "student")
    stuck = [name for name in moved if moved[name].is_floating_point() and torch.equal(moved[name], first[name])]
    assert stuck == []


def test_same_seed_gives_the_same_student_and_another_seed_another(unlabelled: Path, tmp_path: Path) -> None:
    runs = [
        weights_of(distill(small_config(unlabelled, tmp_path / name, seed=seed, epochs=1)) / "student")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert_bit_equal(runs[0], runs[1])
    assert not torch.equal(runs[0]["conv1.weight"], runs[2]["conv1.weight"])


def test_worker_processes_change_no_bit(unlabelled: Path, tmp_path: Path) -> None:
    one = weights_of(distill(small_config(unlabelled, tmp_path / "one", epochs=1)) / "student")
    two = weights_of(distill(small_config(unlabelled, tmp_path / "two", epochs=1, workers=2)) / "student")
    assert_bit_equal(one, two)


@pytest.mark.parametrize("kill_after", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_a_killed_run_resumes_to_the_bit(unlabelled: Path, tmp_path: Path, kill_after: int) -> None:
    whole = distill(small_config(unlabelled, tmp_path / "whole", epochs=3))
    process = in_a_process(partial(distill, small_config(unlabelled, tmp_path / "killed", epochs=3)))
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < kill_after:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (tmp_path / "killed" / "results.json").exists()
    resume(tmp_path / "killed")
    assert_bit_equal(weights_of(whole / "student"), weights_of(tmp_path / "killed" / "student"))
    assert [row["step"] for row in read_metrics(tmp_path / "killed")] == list(range(1, 10))
    for mine, theirs in zip(
        metrics.read_text().splitlines(), (whole / "metrics.jsonl").read_text().splitlines(), strict=True
    ):
        assert json.loads(mine)["loss"] == json.loads(theirs)["loss"]


def test_a_finished_run_is_not_run_again(unlabelled: Path, tmp_path: Path) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", epochs=1))
    written = (out / "results.json").stat().st_mtime_ns
    assert resume(out) == out
    assert (out / "results.json").stat().st_mtime_ns == written


def test_resume_of_a_finished_run_leaves_no_process_group_open(
    unlabelled: Path, tmp_path: Path, in_two_processes: Callable[..., list]
) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", epochs=1))

    def resume_and_look() -> bool:
        resume(out)
        return torch.distributed.is_initialized()

    assert in_two_processes(resume_and_look) == [False, False]


def test_resume_refuses_images_that_changed(unlabelled: Path, tmp_path: Path) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", epochs=1))
    (out / "results.json").unlink()
    (unlabelled / "0000.png").unlink()
    with pytest.raises(ValueError, match="changed since"):
        resume(out)


def test_resume_of_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run directory"):
        resume(tmp_path)


def test_an_existing_run_is_refused(unlabelled: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="exists: choose another --out"):
        distill(small_config(unlabelled, tmp_path / "run"))


def test_a_diverged_loss_stops_the_run_and_keeps_the_last_good_state(unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(unlabelled, tmp_path / "run", lr=1e30, epochs=4)
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: lower --lr; the last good state is kept"):
        distill(config)
    state = torch.load(tmp_path / "run" / "state" / "last.pt", weights_only=True)
    assert math.isfinite(state["losses"]["loss"])


def test_a_loss_that_diverges_before_the_first_state_does_not_promise_one(unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(unlabelled, tmp_path / "run", lr=1e30, epochs=4, save_every=200)
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: lower --lr; no state"):
        distill(config)
    assert not (tmp_path / "run" / "state" / "last.pt").exists()


def test_a_batch_larger_than_the_data_is_refused(unlabelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch size 512 is larger than the data: 96 images"):
        distill(small_config(unlabelled, tmp_path / "run", batch_size=512))


def test_a_student_wider_than_the_teacher_is_refused(unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(unlabelled, tmp_path / "run", student=Students(name=("torchvision/resnet18",), size=(32,)))
    with pytest.raises(ValueError, match="the student is 512-d, the teacher's feature only 64-d"):
        distill(config)


def test_sync_batch_norm_refuses_the_cpu(unlabelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="works on GPUs only"):
        distill(small_config(unlabelled, tmp_path / "run", sync_batch_norm=True))


def test_no_epochs_are_refused(unlabelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--epochs is 0: it must be at least 1"):
        distill(small_config(unlabelled, tmp_path / "run", epochs=0))


def test_a_broken_image_is_refused_by_name_or_skipped_named_and_counted(
    unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = unlabelled / "0007.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"0007\.png cannot be read as an image"):
        distill(small_config(unlabelled, tmp_path / "refused"))
    out = distill(small_config(unlabelled, tmp_path / "skipped", on_broken="skip"))
    results = read_results(out)
    assert results.datasets["train"].broken == 1
    assert "0007.png" in results.extra["broken"][0]
    assert "skipped: " in capsys.readouterr().err


def test_a_batch_of_one_image_is_refused_where_batch_norm_needs_two(unlabelled: Path, tmp_path: Path) -> None:
    for index in (0, 1):
        (unlabelled / f"{index:04}.png").write_bytes(b"no image")
    pair = tmp_path / "pair.txt"
    pair.write_text("".join(f"{path}\n" for path in sorted(unlabelled.iterdir())[1:3]))
    config = small_config(pair, tmp_path / "run", batch_size=2, epochs=1, on_broken="skip", alignment=Raw())
    sentence = (
        r"one image is left of a batch, .* batch norm needs two, for instance: .*0001\.png .*; pass a larger --ba"
    )
    with pytest.raises(ValueError, match=sentence):
        distill(replace(config, head=LinearHead()))
    tiny = Students(name=("cifar/resnet20",), size=(4,))
    with pytest.raises(ValueError, match=sentence):
        distill(replace(config, out=tmp_path / "tiny", student=tiny, head=NoHead()))
    assert read_results(distill(replace(config, out=tmp_path / "maps", head=NoHead()))).extra["steps"] == 1


def test_one_clock_ends_two_processes_at_the_same_step(
    unlabelled: Path, tmp_path: Path, in_two_processes: Callable[..., list]
) -> None:
    config = small_config(
        unlabelled, tmp_path / "run", epochs=9, monitor=Monitor(held_out=0.0, hours=1e-6), log_every=50
    )
    assert in_two_processes(lambda: str(distill(config))) == [str(config.out)] * 2
    assert read_results(config.out).extra["steps"] == 10


def test_bf16_autocast_trains(unlabelled: Path, tmp_path: Path) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", amp="bf16", epochs=1))
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights_of(out / "student").values())


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_frozen_teacher_is_not_cast_anew_in_every_step(amp: str, unlabelled: Path, tmp_path: Path) -> None:
    setup, _ = start(small_config(unlabelled, tmp_path / "run"))
    held = hold_weights(setup.teachers[0], amp, setup.run.device)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    with autocast(amp, setup.run.device):
        expected, found = setup.teachers[0](pixels).features, held(pixels).features
    assert torch.equal(found, expected) and found.dtype == torch.float32
    assert setup.teachers[0].sha256 == held.sha256  # the record of the weights it came with


def test_a_run_records_the_number_format_that_auto_chose(unlabelled: Path, tmp_path: Path) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", epochs=1))
    assert small_config(unlabelled, out).amp == "auto"
    assert json.loads((out / "config.json").read_text())["amp"] == "none"


def test_a_loss_that_overflows_in_float16_lowers_its_scale_and_changes_no_weight(
    unlabelled: Path, tmp_path: Path
) -> None:
    [student] = start(small_config(unlabelled, tmp_path / "run", alignment=Raw(), distance=CosineDistance()))[
        0
    ].students
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    state = TrainState([student], optimizer, 0.0, scales_loss=True)
    before, scale = [parameter.detach().clone() for parameter in student.parameters()], state.scaler.get_scale()
    state.advance(1e36 * sum(parameter.sum() for parameter in student.parameters()), lr=0.1)
    assert all(map(torch.equal, student.parameters(), before)) and state.scaler.get_scale() == scale / 2
    state.advance(sum(parameter.sum() for parameter in student.parameters()), lr=0.1)
    torch.testing.assert_close([*map(torch.Tensor.detach, student.parameters())], [each - 0.1 for each in before])
    again = TrainState([student], optimizer, 0.0, scales_loss=True)
    again.load_state_dict(state.state_dict())
    assert again.scaler.get_scale() == scale / 2


COMPILED = """
import sys; sys.path.insert(0, sys.argv[3])
from pathlib import Path
from dataclasses import replace
import torch; torch.set_num_threads(1)
from stillroom.distill import distill
from distill_runs import plain_teacher_and_config
for name in ("eager", "compiled"):
    teacher, config = plain_teacher_and_config(Path(sys.argv[1]), Path(sys.argv[2]) / name, None)
    distill(replace(config, epochs=1, compile=name == "compiled"), teacher)
"""


@pytest.mark.slow
def test_torch_compile_gives_the_losses_of_eager_mode(unlabelled: Path, initial_student: Path, tmp_path: Path) -> None:
    script = tmp_path / "compiled.py"  # in a process of its own: the checks of shapes at every call are not compiled
    script.write_text(COMPILED)
    arguments = [sys.executable, str(script), str(unlabelled), str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert losses_of(tmp_path / "eager") == pytest.approx(losses_of(tmp_path / "compiled"), rel=1e-3)


def test_a_state_of_an_older_version_is_one_sentence(unlabelled: Path, tmp_path: Path) -> None:
    out = distill(small_config(unlabelled, tmp_path / "run", epochs=1))
    (out / "results.json").unlink()
    state = torch.load(out / "state" / "last.pt", weights_only=True)
    torch.save(
        {"loss" if name == "losses" else name: value for name, value in state.items()}, out / "state" / "last.pt"
    )
    with pytest.raises(ValueError, match=r"was begun by stillroom-distill 0\.2\.0 or older"):
        resume(out)


def test_a_student_can_start_from_a_checkpoint(unlabelled: Path, tmp_path: Path) -> None:
    first = distill(small_config(unlabelled, tmp_path / "first", epochs=1))
    again = small_config(
        unlabelled, tmp_path / "again", epochs=1, lr=0.0, student=Students(name=(str(first / "student"),), size=(16,))
    )
    weights = weights_of(distill(again) / "student")
    assert torch.equal(weights["conv1.weight"], weights_of(first / "student")["conv1.weight"])


def test_readme_example_any_module_can_teach(unlabelled: Path, tmp_path: Path) -> None:
    # README of stillroom-distill: the fifteen lines from here
    class MyNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 80, 5, 4), nn.BatchNorm2d(80), nn.ReLU(), nn.Conv2d(80, 80, 3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers(images)  # (b, 80, h, w), averaged by the backbone

    size = InputSpec(size=24, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    spec = BackboneSpec(name="module/MyNet", dim=80, pre_activation=True, input=size)
    teacher = Backbone.from_module(MyNet(), spec)
    config = DistillConfig(
        teacher=Teachers(name=("my net",)),
        student=Students(name=("cifar/resnet20",)),
        data=unlabelled,
        out=tmp_path / "run",
        epochs=1,
        batch_size=32,
        workers=0,
        schedule=Step(every=30),
    )
    student = distill(config, teacher) / "student"
    # to here
    assert load_checkpoint(student)[1].teacher.name == "my net"


@pytest.fixture
def initial_student(unlabelled: Path) -> Path:
    """The initial weights of `plain_teacher_and_config`'s student."""
    torch.manual_seed(6)
    first = build_backbone("timm/convnext_atto", arguments={"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 40]})
    path = unlabelled.parent / "initial"
    save_checkpoint(path, first, method="random", package="test")
    return path


def test_two_processes_see_what_one_sees_and_agree(
    unlabelled: Path, initial_student: Path, tmp_path: Path, in_two_processes: Callable[..., list]
) -> None:
    teacher, config = plain_teacher_and_config(unlabelled, tmp_path / "one", None)
    one = distill(config, teacher)

    def two() -> str:
        teacher, config = plain_teacher_and_config(unlabelled, tmp_path / "two", one / "alignment.safetensors")
        return str(distill(config, teacher))

    assert in_two_processes(two) == [str(tmp_path / "two")] * 2
    weights, others = weights_of(one / "student"), weights_of(tmp_path / "two" / "student")
    assert len(read_metrics(tmp_path / "two")) == 20
    for name in weights:
        assert torch.allclose(weights[name], others[name], rtol=0, atol=1e-5), name
    assert not torch.equal(weights["stem.0.weight"], load_file(initial_student / "model.safetensors")["stem.0.weight"])

    monitored = tmp_path / "monitored"  # what the two measured, averaged and cached together
    assert in_two_processes(lambda: str(distill(monitored_config(unlabelled, monitored)))) == [str(monitored)] * 2
    assert [row["step"] for row in read_metrics(monitored) if "held_out_loss" in row] == [3, 6]
    assert (monitored / "student-best").exists()
    kept = cache_directory("teacher-outputs")
    _, together = start(monitored_config(unlabelled, tmp_path / "after"))
    assert len(list(kept.iterdir())) == 2  # the views of the run were there, whole
    shutil.rmtree(kept)
    _, alone = start(monitored_config(unlabelled, tmp_path / "alone"))
    for epoch in (0, 1):
        assert torch.equal(together.cache.read(epoch, torch.arange(72)), alone.cache.read(epoch, torch.arange(72)))


@pytest.fixture
def stopped(unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a checkpoint as teacher and as student, started with relative paths and stopped after its end."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        net = build_backbone("cifar/resnet20", feature="before")
        save_checkpoint(Path(name), net, method="random", package="test")
    shutil.copytree(unlabelled, "images")
    settings = {"teacher": Teachers(name=("teacher",), size=(16,)), "student": Students(name=("student",), size=(16,))}
    out = distill(small_config(Path("images"), Path("run"), epochs=1, **settings))
    (out / "results.json").unlink()
    return out


def remake(name: str) -> None:
    torch.manual_seed(9)
    save_checkpoint(Path(name), build_backbone("cifar/resnet20", feature="before"), method="random", package="test")


@pytest.mark.parametrize(("name", "has_hashes"), [("teacher", True), ("student", True), ("teacher", False)])
def test_a_net_that_was_made_anew_at_the_same_path_is_refused(stopped: Path, name: str, has_hashes: bool) -> None:
    if not has_hashes:  # the stored alignment names its teacher
        (stopped / "inputs.json").unlink()
    remake(name)
    with pytest.raises(ValueError, match=rf"the (initial )?weights of .*{name} have changed since run began"):
        resume(stopped)


def test_a_net_of_the_same_weights_and_another_input_is_refused(stopped: Path) -> None:
    for name in ("teacher", "student"):
        manifest = Path(name) / "manifest.json"
        text = manifest.read_text()
        manifest.write_text(json.dumps(json.loads(text) | {"input": json.loads(text)["input"] | {"mean": [0, 0, 0]}}))
        with pytest.raises(ValueError, match=rf"the input settings of {name[:-1]}.* have changed since run began"):
            resume(stopped)
        manifest.write_text(text)


def test_an_image_of_other_pixels_and_the_same_size_is_refused(stopped: Path) -> None:
    image = next(Path("images").glob("*.png"))
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=r"the data in images have changed since run began"):
        resume(stopped)


def test_a_run_is_resumed_from_another_directory_and_where_its_inputs_were_moved(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run" / "results.json").unlink()
    for name in ("images", "teacher"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    with pytest.raises(ValueError, match=r"there is no .*images"):
        resume(tmp_path / "run")
    resume(tmp_path / "run", places=to_places(data=Path("images"), teacher__name=("teacher",)))
    extra = read_results(tmp_path / "run").extra
    moved = tmp_path / "elsewhere"
    assert extra["moved"] == {"data": str(moved / "images"), "teacher.name": [str(moved / "teacher")]}
    nets = {"teacher 1", "teacher 1 input", "student 1", "student 1 input"}
    assert extra["inputs"].keys() == {"images", "images content"} | nets


def test_a_run_without_hashes_is_resumed_with_a_line_that_says_so(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / "inputs.json").unlink()
    resume(stopped)
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: run has no hash of")]
    assert note.endswith("teacher 1, teacher 1 input, student 1, student 1 input: whether they changed is unknown")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"teacher": Teachers(name=("random:timm/vit_tiny_patch16_224",), size=(40,))},
            r"40 x 40 px .*: pass another --te",
        ),
        (
            {"student": Students(name=("timm/vit_tiny_patch16_224",), size=(40,))},
            "--student.size; the nearest .* 32 and 48",
        ),
        ({"batch_size": 1, "head": MlpHead()}, "--batch-size 1 leaves one image to a process, .* pass at least 2"),
        ({"batch_size": 1, "head": LinearHead(batch_norm="after")}, "--batch-size 1 leaves one image to a process"),
        (
            {
                "batch_size": 1,
                "student": Students(name=("timm/mobilenetv4_conv_small_035",), size=(64,)),
                "head": LinearHead(batch_norm="none"),
            },
            "batch norm of tim",
        ),
    ],
    ids=["teacher", "student", "MLP", "linear", "after the pooling"],
)
def test_what_the_nets_cannot_take_is_refused_before_there_is_a_run_directory(
    changes: dict, sentence: str, unlabelled: Path, tmp_path: Path
) -> None:
    config = small_config(unlabelled, tmp_path / "run", **({"alignment": Raw(), "head": LinearHead()} | changes))
    with pytest.raises(ValueError, match=sentence):
        distill(config)
    assert not config.out.exists()


def test_a_batch_of_one_trains_a_student_without_batch_norm(unlabelled: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("".join(f"{path}\n" for path in sorted(unlabelled.iterdir())[:3]))
    student = Students(name=("timm/convnext_atto",), size=(32,))
    settings = {"alignment": Raw(), "head": LinearHead(batch_norm="none"), "student": student}
    out = distill(small_config(few, tmp_path / "run", batch_size=1, epochs=1, **settings))
    assert read_results(out).extra["steps"] == 3


def test_a_run_that_is_refused_while_its_alignment_is_fitted_leaves_no_directory(
    unlabelled: Path, tmp_path: Path
) -> None:
    (unlabelled / "0007.png").write_bytes(b"no image")
    config = small_config(unlabelled, tmp_path / "run")
    for changes, sentence in (({}, r"0007\.png"), ({"alignment_file": (tmp_path / "absent",)}, "absent")):
        with pytest.raises(ValueError, match=sentence):
            distill(replace(config, **changes))
        assert not config.out.exists()
    read_results(distill(replace(config, on_broken="skip")))  # the same command, mended


def test_a_bug_in_training_leaves_its_traceback_in_the_run(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillroom.distill.train.build_feed", lambda *_: {}["feed"])
    with pytest.raises(KeyError):
        distill(small_config(unlabelled, tmp_path / "run"))
    assert "KeyError: 'feed'" in (tmp_path / "run" / "error.log").read_text()


@pytest.mark.parametrize("problem", ["not a folder", "full"])
def test_a_run_whose_cache_cannot_be_written_keeps_its_own_copy_and_gives_the_same_student(
    problem: str, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = distill(monitored_config(unlabelled, tmp_path / "usual"))
    warn_once.cache_clear()
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))
    if problem == "full":
        room = shutil.disk_usage
        monkeypatch.setattr(
            shutil,
            "disk_usage",
            lambda p: SimpleNamespace(free=0) if tmp_path / "cache" in Path(p).parents else room(p),
        )
    else:
        (tmp_path / "cache").write_text("")
    out = distill(monitored_config(unlabelled, tmp_path / "own"))
    assert_bit_equal(weights_of(usual / "student"), weights_of(out / "student"))
    assert "the run keeps its own copy" in capsys.readouterr().err
    assert len(list((out / "cache").iterdir())) == 2
    (out / "results.json").unlink()
    assert_bit_equal(weights_of(usual / "student"), weights_of(resume(out) / "student"))
    assert len(list((out / "cache").iterdir())) == 2


def test_a_teacher_whose_weights_are_not_finite_is_refused_by_name(unlabelled: Path, tmp_path: Path) -> None:
    damaged = build_backbone("cifar/resnet20")
    damaged.net.layer1[0].conv1.weight.data[0] = math.nan
    config = small_config(unlabelled, tmp_path / "run", teacher=Teachers(name=("mine",), size=(16,)))
    with pytest.raises(ValueError, match=r"mine has weights that are not finite, such as layer1\..*: train or imp"):
        distill(config, damaged)
    assert not (tmp_path / "run").exists()
