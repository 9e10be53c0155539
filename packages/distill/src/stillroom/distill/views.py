"""Training views: random crops and colours, drawn for each image and epoch, rendered at each net's input size."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Generator

from stillroom.backbone.spec import InputSpec
from stillroom.distill.slots import FixedView, KdepView, SameView, StrongView, TeacherView, View, WeakView
from stillroom.images import EvaluationView
from stillroom.images.colour import Colour, apply_colours, draw_jitter, draw_lighting
from stillroom.images.loaders import Rendered
from stillroom.images.picture import Picture
from stillroom.images.view import Crop, happens, uniform

_BLUR = (0.1 / 224, 2.0 / 224)
"""Smallest and largest standard deviation of SimReg's blur, fractions of the image's side."""


def draw_view(view: View, size: tuple[int, int], generator: Generator) -> tuple[Crop, Colour | None]:
    """Draw a view of an image, for nets of any input size: its crop, and its colours, None where they stay.

    The numbers are those that the same state of torch's generator gives torchvision's transforms (v2).

    Args:
        view: what is drawn.
        size: width and height of the image, pixels.
        generator: on the CPU.
    """
    crop = Crop.draw(size, view.min_scale, generator)
    match view:
        case WeakView():
            return crop, None
        case KdepView():
            order, jitter = draw_jitter((view.jitter, view.jitter, view.jitter, 0.0), generator)
            return crop, Colour(order=order, jitter=jitter, lighting=draw_lighting(view.lighting, generator))
        case StrongView():
            drawn: dict[str, Any] = {}
            if happens(view.jitter, generator):
                drawn["order"], drawn["jitter"] = draw_jitter((0.4, 0.4, 0.4, 0.1), generator)
            grey = happens(view.grayscale, generator)
            blur = uniform(*_BLUR, generator) if happens(view.blur, generator) else 0.0
            return crop, Colour(**drawn, grey=grey, blur=blur)


def colours_on(device: torch.device) -> Literal["here", "later"]:
    """Where colours are applied fastest: in the workers if the nets are on the CPU, else by the device itself."""
    return "here" if device.type == "cpu" else "later"


Rendering = tuple[Literal["view", "teacher view"], int] | InputSpec
"""A random view at a size, or an evaluation view."""


class Views:
    """The views of one image for all nets of a run, one rendering per distinct size and view.

    The image is decoded once, and the students' rendering does not depend on who else sees it.

    Args:
        view: the students' view.
        teacher_view: the teachers' view.
        students: the students' input sizes, pixels.
        teachers: the teachers' input specifications; empty where their outputs are cached.
        colours: apply them `here`, to each image, or `later`, to a batch on a GPU, see `Batch.on`.

    Attributes:
        of_students, of_teachers: for each net, the index of its rendering.
    """

    def __init__(
        self,
        view: View,
        teacher_view: TeacherView,
        students: Sequence[int],
        teachers: Sequence[InputSpec],
        *,
        colours: Literal["here", "later"] = "here",
    ) -> None:
        self._view, self._teacher_view, self._colours = view, teacher_view, colours
        self._renderings: list[Rendering] = []

        def add(rendering: Rendering) -> int:
            if rendering not in self._renderings:
                self._renderings.append(rendering)
            return self._renderings.index(rendering)

        self.of_students = [add(("view", size)) for size in students]
        self.of_teachers: list[int] = []
        for spec in teachers:
            match teacher_view:
                case SameView():
                    self.of_teachers.append(add(("view", spec.size)))
                case FixedView():
                    self.of_teachers.append(add(spec))
                case _:
                    self.of_teachers.append(add(("teacher view", spec.size)))

    def __call__(self, image: Picture | Image.Image, generator: Generator) -> Rendered:
        picture = Picture.of(image)
        drawn = self._draw(picture.size, generator)
        pixels, colours = [], []
        for rendering in self._renderings:
            row = None
            if isinstance(rendering, InputSpec):
                view = EvaluationView(rendering)(picture)
            else:
                crop, colour = drawn[rendering[0]]
                view = crop.render(picture, rendering[1])
                if colour is not None and self._colours == "here":
                    view = apply_colours(view[None], [colour])[0]
                elif colour is not None:
                    row = colour.pack()
            pixels.append(view)
            colours.append(row)
        return Rendered(tuple(pixels), tuple(colours))

    def _draw(self, size: tuple[int, int], generator: Generator) -> dict[str, tuple[Crop, Colour | None]]:
        """Draw the students' view and, where the teachers have one of their own, theirs, independently of it."""
        if isinstance(self._teacher_view, SameView | FixedView):
            return {"view": draw_view(self._view, size, generator)}
        state = generator.get_state()
        seed = int(torch.randint(2**62, (), generator=generator))
        of_teachers = draw_view(self._teacher_view, size, Generator().manual_seed(seed))
        return {"view": draw_view(self._view, size, generator.set_state(state)), "teacher view": of_teachers}
