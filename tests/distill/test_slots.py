"""One trainer, four slots: every variant of a slot trains the student alone."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distill_runs import losses_of, small_config, weights_of
from torch import Tensor, nn

from stillroom.backbone import Backbone, BackboneSpec, InputSpec, build_backbone, load_checkpoint, save_checkpoint
from stillroom.backbone.manifest import Head
from stillroom.backbone.spec import Level, Licence
from stillroom.distill import Students, Teachers, build_alignment, build_teacher, distill, resume
from stillroom.distill.alignment_file import AlignmentInputs
from stillroom.distill.config import Cache, Dense, Monitor
from stillroom.distill.distances import DistillationLoss
from stillroom.distill.nets import Net
from stillroom.distill.slots import (
    AdamW,
    CosineDistance,
    Distance,
    HeadConfig,
    Interpolation,
    KlDivergence,
    Lars,
    Lda,
    LinearHead,
    MlpHead,
    Mse,
    Nmf,
    NoHead,
    Raw,
    Sgd,
    Svd,
    SvdPts,
)
from stillroom.distill.student import StudentModel, build_optimizer, build_student
from stillroom.distill.teacher import FrozenTeacher, Supervision
from stillroom.distill.views import FixedView, KdepView, StrongView, WeakView
from stillroom.runs import read_results
from stillroom.runs.parallel import build_ema
from stillroom.runs.run import read_metrics
from twins import assert_bit_equal


def tiny(dim: int = 6, size: int = 8, seed: int = 0, mean: float = 0.5) -> Backbone:
    """A net with one map of stride 2, batch norm, and a feature that is its mean."""
    torch.manual_seed(seed)

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, dim, 2, 2), nn.BatchNorm2d(dim))

        def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
            tail = self.net(images)
            return [tail], tail

    spec = BackboneSpec(
        name="module/Tiny",
        dim=dim,
        pre_activation=True,
        levels=(Level(name="net", channels=dim, stride=2),),
        input=InputSpec(size=size, crop_fraction=1.0, mean=(mean,) * 3, std=(0.5,) * 3),
    )
    return Backbone.from_module(Tiny(), spec)


HEADS: list[HeadConfig] = [NoHead(), LinearHead(), LinearHead(batch_norm="after"), MlpHead(layers=2), MlpHead()]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("distance", [Mse(), CosineDistance(), KlDivergence()])
def test_gradients_reach_every_student_parameter_and_no_teacher_parameter(head: HeadConfig, distance: Distance) -> None:
    teacher = FrozenTeacher(tiny(6, seed=1))
    dense = Dense(weight=1.0)
    student = build_student(tiny(6), [teacher], [6], head=head, dense=dense, seed=0)
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    output = teacher(images)
    compute_loss = DistillationLoss(distance, 3.0, dense, [1.0])
    compute_loss([student(images)], [[output.features]], [output.maps]).total.backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # a bias in front of a batch norm has no effect: its gradient is the rounding error of zero
        assert parameter.grad.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_several_teachers_are_averaged_by_weight_and_students_share_nothing() -> None:
    teachers = [FrozenTeacher(tiny(6, seed=1)), FrozenTeacher(tiny(4, size=12, seed=2, mean=0.3))]
    students = [
        build_student(tiny(5, seed=s), teachers, [6, 4], head=LinearHead(), dense=Dense(), seed=0) for s in (3, 4)
    ]
    weights = Teachers(name=("a", "b"), weight=(3.0, 1.0)).normalised_weights()
    images = [torch.randint(0, 256, (16, 3, size, size), dtype=torch.uint8) for size in (8, 12)]
    outputs = [teacher(pixels) for teacher, pixels in zip(teachers, images, strict=True)]
    supervisions = [
        Supervision(
            teacher=teacher,
            weight=weight,
            targets=(build_alignment(Raw(), dim, dim),) * 2,
            inputs=AlignmentInputs(),
        )
        for teacher, weight, dim in zip(teachers, weights, (6, 4), strict=True)
    ]
    targets = [one.align(output.features) for one, output in zip(supervisions, outputs, strict=True)]
    compute_loss = DistillationLoss(Mse(), 2.0, Dense(), weights)
    loss = compute_loss([student(images[0]) for student in students], targets, [(), ()])
    predictions = [student(images[0]).predictions for student in students]
    by_hand = [
        0.75 * (first - outputs[0].features).square().mean() + 0.25 * (second - outputs[1].features).square().mean()
        for first, second in predictions
    ]
    assert [float(loss.logged[name]) for name in ("loss_1", "loss_2")] == pytest.approx([float(x) for x in by_hand])
    assert float(loss.logged["loss"]) == pytest.approx(float(sum(by_hand)) / 2, rel=1e-5)
    assert float(loss.total) == pytest.approx(2.0 * float(sum(by_hand)), rel=1e-5)


def test_two_students_in_one_run_are_the_two_that_runs_alone_give(unlabelled: Path, tmp_path: Path) -> None:
    both = Students(name=("cifar/resnet20", "cifar/resnet20"), size=(16, 20))
    together = distill(small_config(unlabelled, tmp_path / "both", student=both, epochs=1))
    for number, size in enumerate((16, 20), start=1):
        one = Students(name=("cifar/resnet20",), size=(size,))
        alone = distill(small_config(unlabelled, tmp_path / f"one-{number}", student=one, epochs=1))
        assert_bit_equal(weights_of(together / f"student-{number}"), weights_of(alone / "student"))
        assert load_checkpoint(together / f"student-{number}")[1].backbone.input.size == size


def test_two_teachers_leave_one_student_that_names_both(unlabelled: Path, tmp_path: Path) -> None:
    teachers = [tiny(70, seed=1), tiny(80, size=12, seed=2)]
    for teacher, spdx in zip(teachers, ("MIT", "Apache-2.0"), strict=True):
        teacher.spec = replace(teacher.spec, licence=Licence(spdx=spdx))
    both = Teachers(name=("first", "second"))
    changes = {"teacher": both, "alignment": Raw(), "head": LinearHead(), "epochs": 1}
    out = distill(small_config(unlabelled, tmp_path / "run", **changes), teachers)
    manifest = load_checkpoint(out / "student")[1]
    assert manifest.teacher is not None and manifest.teacher.name == "first + second"
    assert manifest.teacher.licence.spdx == "Apache-2.0 AND MIT"
    assert len(read_results(out).extra["alignment"]) == 2


def test_flags_for_nets_take_one_value_or_one_each(unlabelled: Path, tmp_path: Path) -> None:
    nets = Teachers(name=("a", "b"), size=(32, 64), feature=("after",)).nets()
    assert [(net.name, net.size, net.feature) for net in nets] == [("a", 32, "after"), ("b", 64, "after")]
    with pytest.raises(ValueError, match=r"--teacher\.size has 3 values for 2 nets"):
        Teachers(name=("a", "b"), size=(1, 2, 3)).nets()
    with pytest.raises(ValueError, match=r"--teacher\.weight is \(0\.0,\)"):
        distill(small_config(unlabelled, tmp_path / "run", teacher=Teachers(name=("t",), weight=(0.0,))))


def test_the_head_is_dropped_unless_it_is_kept(unlabelled: Path, tmp_path: Path) -> None:
    changes = {"head": MlpHead(), "alignment": Raw(), "distance": CosineDistance(), "epochs": 1}
    dropped = distill(small_config(unlabelled, tmp_path / "dropped", **changes))
    kept = distill(small_config(unlabelled, tmp_path / "kept", keep_head=True, **changes))
    assert_bit_equal(weights_of(dropped / "student"), weights_of(kept / "student"))
    assert not (dropped / "student" / "heads.safetensors").exists()
    words = "linear-batchnorm-relu-linear-linear-batchnorm-relu-linear"
    assert load_checkpoint(kept / "student")[1].heads == {"distill": Head(kind=words, in_dim=64, out_dim=64)}


@pytest.mark.parametrize(
    ("output", "dim"), [("feature", 192), ("class", 192), ("patches", 192), ("class+patches", 384)]
)
def test_a_vit_teaches_with_its_class_token_and_its_patches(output: str, dim: int) -> None:
    name = "random:timm/vit_tiny_patch16_224"
    teacher = build_teacher(Net(name=name, output=output, size=32))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features, maps = teacher(images)
    assert features.shape == (2, dim) and teacher.dim == dim and maps[-1].shape == (2, 192, 2, 2)
    net = teacher.backbone.net
    tokens = net.forward_features(teacher.normalize(images))
    class_token, patches = tokens[:, 0], tokens[:, 1:].mean(dim=1)
    expected = {
        "feature": class_token,
        "class": class_token,
        "patches": patches,
        "class+patches": torch.cat([class_token, patches], dim=1),
    }
    assert torch.allclose(features, expected[output], atol=1e-5)


def test_a_vit_teaches_a_cnn_with_a_dense_term(unlabelled: Path, tmp_path: Path) -> None:
    vit = Teachers(name=("random:timm/vit_tiny_patch16_224",), size=(32,), output=("class+patches",))
    config = small_config(
        unlabelled, tmp_path / "run", teacher=vit, head=LinearHead(), alignment=Raw(), dense=Dense(weight=0.5), epochs=1
    )
    out = distill(config)
    assert all(0 < row["dense_loss"] < 4 for row in read_metrics(out))
    assert read_results(out).metrics.keys() == {"loss", "dense_loss"}
    with pytest.raises(ValueError, match="the dense term needs the teacher's maps, which are not cached"):
        distill(replace(config, out=tmp_path / "no", cache=replace(config.cache, views=1)))


def test_outputs_that_a_teacher_lacks_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no class token"):
        build_teacher(Net(name="random:cifar/resnet20", output="class"))
    with pytest.raises(ValueError, match=r"has no classifier: --teacher\.output logits needs it"):
        build_teacher(Net(name="random:cifar/resnet20", output="logits"))
    with pytest.raises(ValueError, match="has no projection: --teacher"):
        build_teacher(Net(name="random:torchvision/resnet18", output="projection"))
    save_checkpoint(tmp_path / "bare", build_backbone("cifar/resnet20"), method="import", package="test")
    with pytest.raises(ValueError, match=r"has no classifier.*its checkpoint has no heads"):
        build_teacher(Net(name=str(tmp_path / "bare"), output="logits"))


@pytest.mark.parametrize(("output", "name"), [("logits", "classifier"), ("projection", "projection")])
def test_a_saved_head_of_the_teacher_computes_its_output(tmp_path: Path, output: str, name: str) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(64, 10))
    net = build_backbone("cifar/resnet20")
    heads = {name: (Head(kind="linear", in_dim=64, out_dim=10), head.state_dict())}
    save_checkpoint(tmp_path / "teacher", net, method="import", package="test", heads=heads)
    teacher = build_teacher(Net(name=str(tmp_path / "teacher"), output=output, size=16))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    pooled = net.eval()(teacher.normalize(images)).pooled  # after the last activation, as heads are trained
    assert teacher.dim == 10
    assert torch.allclose(teacher(images).features, head(pooled), atol=1e-6)


def test_logits_are_distilled_through_a_linear_head(unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(
        unlabelled,
        tmp_path / "run",
        teacher=Teachers(name=("random:torchvision/resnet18",), size=(32,), output=("logits",)),
        head=LinearHead(batch_norm="none"),
        alignment=Raw(),
        distance=KlDivergence(),
        epochs=1,
    )
    assert read_results(distill(config)).metrics["loss"] > 0


@pytest.mark.parametrize("alignment", [Interpolation(dim=64), Nmf(dim=6), Lda(dim=2)])
def test_other_alignments_train_and_are_kept_with_the_student(alignment, labelled, tmp_path: Path) -> None:
    data = labelled("data", per_class=32)
    config = small_config(
        data,
        tmp_path / "run",
        teacher=Teachers(name=("random:cifar/resnet20",), feature=("after",), size=(16,)),
        alignment=alignment,
        head=LinearHead(),
        epochs=1,
        batch_size=16,
    )
    out = distill(config)
    assert (out / "student" / "alignment.safetensors").exists()


@pytest.mark.parametrize("view", [WeakView(), StrongView()])
@pytest.mark.parametrize("teacher_view", [FixedView(), StrongView()])
def test_simregs_view_policies_train(view, teacher_view, unlabelled: Path, tmp_path: Path) -> None:
    config = small_config(unlabelled, tmp_path / "run", view=view, teacher_view=teacher_view, epochs=1)
    assert read_results(distill(config)).metrics["loss"] > 0


def test_the_running_average_is_the_exponential_one_and_is_what_is_saved(unlabelled: Path, tmp_path: Path) -> None:
    student = StudentModel(tiny(), [nn.Identity()])
    average = build_ema(student, 0.9)
    assert average is not None
    expected = None
    for step in range(4):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(step + 1.0)
        average.update_parameters(student)
        now = student.backbone.net.net[0].weight.detach().clone()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    assert torch.allclose(average.module.backbone.net.net[0].weight, expected)
    plain = distill(small_config(unlabelled, tmp_path / "plain", epochs=1))
    averaged = distill(small_config(unlabelled, tmp_path / "ema", epochs=1, ema=0.5))
    untouched = distill(small_config(unlabelled, tmp_path / "untouched", epochs=1, lr=0.0))
    last, mean, first = (weights_of(out / "student")["conv1.weight"] for out in (plain, averaged, untouched))
    assert not torch.equal(mean, last) and not torch.equal(mean, first)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_steps_by_a_fraction_of_each_weight_matrix_and_leaves_biases_to_sgd(weight_decay: float) -> None:
    lars = Lars(momentum=0.0, trust=0.01)
    layer = nn.Linear(3, 4)
    before = copy.deepcopy(layer)
    layer(torch.randn(5, 3)).square().sum().backward()
    build_optimizer(lars, [layer], lr=2.0, weight_decay=weight_decay).step()
    w, gradient = before.weight, layer.weight.grad
    rate = 0.01 * w.norm() / (gradient.norm() + weight_decay * w.norm())  # You et al. 2017, equation 6
    assert torch.allclose(layer.weight, w - 2.0 * rate * (gradient + weight_decay * w), atol=1e-6)
    assert torch.allclose(layer.bias, before.bias - 2.0 * layer.bias.grad, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer", [Sgd(nesterov=True), *(pytest.param(other, marks=pytest.mark.slow) for other in (AdamW(), Lars()))]
)
def test_a_run_that_is_stopped_resumes_to_the_bit_with_every_optimiser(
    optimizer, unlabelled: Path, labelled, tmp_path: Path
) -> None:
    changes = {"optimizer": optimizer, "ema": 0.9, "lr": 0.01, "epochs": 2, "head": LinearHead()}
    monitor = Monitor(held_out=0.25)
    whole = distill(small_config(unlabelled, tmp_path / "whole", monitor=monitor, **changes))

    class StoppedError(Exception):
        pass

    def stop(*_) -> dict[str, float]:
        raise StoppedError

    config = small_config(unlabelled, tmp_path / "stopped", **changes)
    config = replace(config, monitor=Monitor(knn=labelled("monitored", per_class=2), every=1, held_out=0.25))
    with pytest.raises(StoppedError):
        distill(config, knn=stop)
    assert torch.load(tmp_path / "stopped" / "state" / "last.pt", weights_only=True)["step"] == 1
    resume(tmp_path / "stopped", knn=lambda *_: {"knn20": 0.5})
    assert_bit_equal(weights_of(whole / "student"), weights_of(tmp_path / "stopped" / "student"))
    assert (
        json.loads((tmp_path / "stopped" / "config.json").read_text())["optimizer"]["kind"] == type(optimizer).__name__
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dense": Dense(weight=1.0), "teacher_view": StrongView()}, "the dense term compares positions"),
        ({"dense": Dense(weight=1.0, student_level=7)}, r"--dense\.student-level is 7: cifar/resnet20 has 3 levels"),
        ({"ema": 1.0}, r"--ema is 1\.0: it must lie in \[0, 1\)"),
        ({"alignment": Raw(), "student": Students(name=("torchvision/resnet18",))}, "there is no head between them"),
        ({"alignment_file": (Path("a"), Path("b"))}, "2 alignment files for 1 teachers"),
    ],
)
def test_settings_that_cannot_work_are_one_sentence_and_leave_no_run(
    changes: dict, sentence: str, unlabelled: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        distill(small_config(unlabelled, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Svd(dim=-1), r"--alignment\.dim is -1: it must be at least 1"),
        (lambda: SvdPts(dim=-1), r"--alignment\.dim is -1: it must be at least 1"),
        (lambda: SvdPts(temperature=0.0), r"--alignment\.temperature is 0\.0: it must be above 0"),
        (lambda: SvdPts(exponent=0.5), r"--alignment\.exponent is 0\.5: it must be at least 1"),
        (lambda: Nmf(sweeps=-1), r"--alignment\.sweeps is -1: it must be at least 0"),
        (lambda: KlDivergence(temperature=0.0), r"--distance\.temperature is 0\.0: it must be above 0"),
        (lambda: Sgd(momentum=0.0, nesterov=True), r"--optimizer\.nesterov needs a momentum"),
        (lambda: AdamW(beta2=1.0), r"--optimizer\.beta2 is 1\.0: it must lie in \[0, 1\)"),
        (lambda: Lars(trust=-1.0), r"--optimizer\.trust is -1\.0: it must be at least 0"),
        (lambda: Cache(views=-1), r"--cache\.views is -1: it must be at least 0"),
        (lambda: Monitor(every=0), r"--monitor\.every is 0: it must be at least 1"),
        (lambda: Monitor(patience=-1), r"--monitor\.patience is -1: it must be at least 0"),
    ],
)
def test_each_variant_refuses_its_own_bad_values_and_names_the_flag(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"view": KdepView(min_scale=0.0)}, r"^--view\.min-scale is 0\.0: it must lie in \(0, 1\]"),
        ({"teacher_view": WeakView(min_scale=1.5)}, r"^--teacher-view\.min-scale is 1\.5"),
        ({"teacher_view": StrongView(blur=-0.1)}, r"^--teacher-view\.blur is -0\.1: it must lie in \[0, 1\]"),
    ],
)
def test_a_view_is_refused_by_the_flag_that_set_it(changes: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        small_config(tmp_path, tmp_path / "run", **changes)


def test_a_fixed_view_is_cached_once_and_the_students_views_stay_new(
    unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"teacher_view": FixedView(), "alignment": Raw(), "head": LinearHead(), "epochs": 2}
    cached = distill(small_config(unlabelled, tmp_path / "cached", cache=Cache(views=5), **changes))
    assert "teacher cache: 1 views x 96 images" in capsys.readouterr().out
    live = distill(small_config(unlabelled, tmp_path / "live", **changes))
    ours, theirs = (losses_of(run) for run in (cached, live))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-3) and ours[4] == pytest.approx(theirs[4], rel=0.2)


def test_bgr_statistics_turn_round_with_the_channels() -> None:
    own = tiny()
    own.spec = replace(own.spec, input=replace(own.spec.input, channel_order="bgr", mean=(0.1, 0.2, 0.3)))
    forced = build_teacher(Net(name="own", channel_order="rgb"), own).backbone.spec.input
    assert (forced.channel_order, forced.mean) == ("rgb", (0.3, 0.2, 0.1))
