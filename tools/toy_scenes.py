"""The toy world of make_toy_data.py: shapes, textures, scenes described as data, and their images and masks."""

import colorsys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

Plane = Float32[np.ndarray, "h w"]
Planes = Float32[np.ndarray, "3 h w"]  # red, green, blue from 0 to 1
Colour = tuple[float, float, float]
Drawing = Callable[[Plane, Plane], Plane]


# ---- Shapes: signed distances in the object's own frame (x right, y down, 1 = the object's scale), negative inside,
# with a slope of about 1: the same function gives the antialiased edge and the mask.


def disc(x: Plane, y: Plane, centre_x: float, centre_y: float, radius: float) -> Plane:
    """A disc about (centre_x, centre_y)."""
    return np.hypot(x - centre_x, y - centre_y) - radius


def box(x: Plane, y: Plane, centre_x: float, centre_y: float, half_width: float, half_height: float) -> Plane:
    """An upright rectangle about (centre_x, centre_y)."""
    return np.maximum(abs(x - centre_x) - half_width, abs(y - centre_y) - half_height)


def wedge(x: Plane, y: Plane, *sides: tuple[float, float]) -> Plane:
    """A convex polygon; a side is its outward direction (degrees, clockwise from right) and distance from (0, 0)."""
    turns = [(np.deg2rad(direction), distance) for direction, distance in sides]
    return reduce(np.maximum, (x * float(np.cos(turn)) + y * float(np.sin(turn)) - far for turn, far in turns))


def union(*parts: Plane) -> Plane:
    """The union of shapes."""
    return reduce(np.minimum, parts)


def star(x: Plane, y: Plane) -> Plane:
    """A five-pointed star: the folded angle has one edge, from tip (radius 1.05, angle 0) to notch (0.45, pi / 5)."""
    angle = abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    outward = float(np.arctan2(1.05 - 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)))
    return np.hypot(x, y) * np.cos(angle - outward) - 1.05 * float(np.cos(outward))


def gear(x: Plane, y: Plane) -> Plane:
    """A disc with eight teeth and a hole."""
    teeth = np.clip(3 * np.sin(8 * np.arctan2(y, x)), -1, 1)
    return np.maximum(disc(x, y, 0, 0, 0.82) - 0.14 * teeth, -disc(x, y, 0, 0, 0.3))


def asterisk(x: Plane, y: Plane) -> Plane:
    """Three bars across each other, 60 degrees apart."""
    return union(*(box(c * x + s * y, c * y - s * x, 0, 0, 1.05, 0.19) for c, s in ((1, 0), (0.5, 0.87), (0.5, -0.87))))


KNOWN_SHAPES: dict[str, Drawing] = {
    "square": lambda x, y: box(x, y, 0, 0, 0.78, 0.78),
    "triangle": lambda x, y: wedge(x, y, (90, 0.55), (210, 0.55), (330, 0.55)),
    "star": star,
    "ring": lambda x, y: abs(disc(x, y, 0, 0, 0.7)) - 0.28,
    "cross": lambda x, y: union(box(x, y, 0, 0, 0.33, 1), box(x, y, 0, 0, 1, 0.33)),
    "heart": lambda x, y: union(
        wedge(x, y - 0.1, (45, 0.6), (135, 0.6), (225, 0.6), (315, 0.6)), disc(abs(x), y, 0.42, -0.32, 0.6)
    ),
    "crescent": lambda x, y: np.maximum(disc(x, y, 0, 0, 1), -disc(x, y, 0.5, 0, 0.75)),
    "bar": lambda x, y: box(x, y, 0, 0, 1.1, 0.42),
}
HELDOUT_SHAPES: dict[str, Drawing] = {
    "arrow": lambda x, y: union(wedge(x, y + 0.2, (90, 0.2), (215, 0.65), (325, 0.65)), box(x, y, 0, 0.45, 0.3, 0.55)),
    "asterisk": asterisk,
    "clover": lambda x, y: union(
        disc(x, y, 0, -0.48, 0.47), disc(abs(x), y, 0.45, 0.28, 0.47), box(x, y, 0, 0.45, 0.12, 0.6)
    ),
    "dome": lambda x, y: np.maximum(disc(x, y, 0, 0.5, 1.05), y - 0.5),
    "frame": lambda x, y: abs(box(x, y, 0, 0, 0.64, 0.64)) - 0.22,
    "gear": gear,
    "horseshoe": lambda x, y: union(
        np.maximum(abs(disc(x, y, 0, -0.25, 0.65)) - 0.25, y + 0.25), box(abs(x), y, 0.65, 0.3, 0.25, 0.6)
    ),
    "hourglass": lambda x, y: np.maximum(abs(y) - 0.95, abs(x) - 0.75 * abs(y) - 0.12),
}
CLUTTER_SHAPES: dict[str, Drawing] = {
    "pebble": lambda x, y: disc(x, 1.5 * y, 0, 0, 1),
    "stick": lambda x, y: box(x, y, 0, 0, 1.6, 0.2),
    "shard": lambda x, y: wedge(x, y, (80, 0.35), (200, 0.7), (300, 0.4)),
}
SHAPES = KNOWN_SHAPES | HELDOUT_SHAPES | CLUTTER_SHAPES


# ---- Textures: functions of the texture's frame (1 = about one period): the share, 0 to 1, of the second colour.


def sine(turns: Plane) -> Plane:
    """A sine from -1 to 1, one period per turn."""
    return np.sin(2 * np.pi * turns)


def cell(t: Plane) -> Plane:
    """Position within the period, -0.5 to 0.5."""
    return t - np.floor(t) - 0.5


def crisp(wave: Plane) -> Plane:
    """Two tones, below and above 0 of the wave, with a short ramp between them."""
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def bricks(u: Plane, v: Plane) -> Plane:
    """Rows of bricks in mortar, every second row shifted by half a brick."""
    row = np.floor(1.4 * v)
    return crisp(8 * (0.36 - np.maximum(abs(cell(0.8 * u + 0.5 * (row % 2))), abs(cell(1.4 * v)))))


def pluses(u: Plane, v: Plane) -> Plane:
    """One plus sign in each cell, none touching another."""
    across, down = abs(cell(0.9 * u)), abs(cell(0.9 * v))
    return crisp(8 * np.minimum(0.1 - np.minimum(across, down), 0.36 - np.maximum(across, down)))


KNOWN_TEXTURES: dict[str, Drawing] = {
    "stripes": lambda u, v: crisp(sine(u)),
    "checks": lambda u, v: crisp(2 * sine(0.6 * u) * sine(0.6 * v)),
    "dots": lambda u, v: crisp(6 * (0.3 - np.hypot(cell(u), cell(v)))),
    "target": lambda u, v: crisp(sine(np.hypot(u, v))),
    "plaid": lambda u, v: 0.5 * crisp(sine(0.8 * u)) + 0.5 * crisp(sine(0.8 * v)),
    "waves": lambda u, v: crisp(sine(u + 0.3 * sine(0.6 * v))),
}
HELDOUT_TEXTURES: dict[str, Drawing] = {
    "bricks": bricks,
    "camouflage": lambda u, v: crisp(3 * (sine(0.4 * u + 0.2 * sine(0.5 * v)) + sine(0.35 * v + 0.3 * sine(0.35 * u)))),
    "fringe": lambda u, v: crisp(np.minimum(sine(1.2 * u), 9 * v)),
    "halo": lambda u, v: np.clip(1.1 - 0.5 * np.hypot(u, v), 0, 1),
    "pluses": pluses,
    "quarters": lambda u, v: crisp(8 * u * v),
    "rays": lambda u, v: crisp(np.sin(8 * np.arctan2(v, u))),
    "spiral": lambda u, v: crisp(sine(0.8 * np.hypot(u, v) + np.arctan2(v, u) / np.pi)),
}
TEXTURES = KNOWN_TEXTURES | HELDOUT_TEXTURES | {"plain": lambda u, v: np.zeros_like(u)}

# A background is smooth noise between two colours: number of random values across and down.
BACKGROUNDS = {"clouds": (4, 4), "moss": (12, 12), "grass": (24, 3), "strata": (3, 18), "sand": (40, 40)}


# ---- Kinds of objects, and scenes: the content of an image as data. Lengths are fractions of the image's side, angles
# are radians.


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of object: any of its shapes, cut from any of its textures."""

    shapes: tuple[str, ...]
    textures: tuple[str, ...]


TILT = 0.35
"""Largest rotation of an object either way, radians."""
CLUTTER = Kind(shapes=tuple(CLUTTER_SHAPES), textures=("plain",))


@dataclass(frozen=True, kw_only=True)
class Object:
    """A shape cut from a texture; `label` is its class, None for clutter."""

    label: str | None
    shape: str
    texture: str
    colours: tuple[Colour, Colour]
    centre: tuple[float, float]
    scale: float
    rotation: float
    texture_rotation: float
    period: float
    phase: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A background and the objects on it, lowest first, lit from the direction `light`, radians."""

    background: str
    background_colours: tuple[Colour, Colour]
    objects: tuple[Object, ...]
    light: float
    noise: float
    noise_seed: int


def draw_colours(rng: np.random.Generator, contrast: float, max_saturation: float) -> tuple[Colour, Colour]:
    """Two colours of unrelated hue whose lightness (0 to 1) differs by `contrast`, in random order."""
    dark = rng.uniform(0.15, 0.85 - contrast)
    first, second = rng.permutation([dark, dark + contrast])
    hues, saturations = rng.uniform(size=2), max_saturation * rng.uniform(0.3, 1, size=2)
    return (
        colorsys.hls_to_rgb(hues[0], first, saturations[0]),
        colorsys.hls_to_rgb(hues[1], second, saturations[1]),
    )


def draw_object(
    rng: np.random.Generator,
    label: str | None,
    kind: Kind,
    *,
    spread: float,
    scale: tuple[float, float],
    period: tuple[float, float] = (0.16, 0.24),
) -> Object:
    """Draw an object of a kind: centre at most `spread` from the image's, scale and period from the given ranges."""
    return Object(
        label=label,
        shape=kind.shapes[rng.integers(len(kind.shapes))],
        texture=kind.textures[rng.integers(len(kind.textures))],
        colours=draw_colours(rng, contrast=rng.uniform(0.45, 0.6), max_saturation=0.5),
        centre=(rng.uniform(0.5 - spread, 0.5 + spread), rng.uniform(0.5 - spread, 0.5 + spread)),
        scale=rng.uniform(*scale),
        rotation=rng.uniform(-TILT, TILT),
        texture_rotation=rng.uniform(0, 2 * np.pi),
        period=rng.uniform(*period),
        phase=(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)),
    )


def seeded(seed: int, folder: str, index: int) -> np.random.Generator:
    """The random generator of one image; its seed includes the folder, so all splits and tasks are separate draws."""
    return np.random.default_rng([seed, zlib.crc32(folder.encode()), index])


def on_background(rng: np.random.Generator, objects: tuple[Object, ...]) -> Scene:
    """Put objects, lowest first, on a random background under a random light."""
    return Scene(
        background=list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))],
        background_colours=draw_colours(rng, contrast=rng.uniform(0.05, 0.15), max_saturation=0.3),
        objects=objects,
        light=rng.uniform(0, 2 * np.pi),
        noise=rng.uniform(0.01, 0.04),
        noise_seed=int(rng.integers(2**32)),
    )


def draw_scene(seed: int, folder: str, index: int, label: str | None, kind: Kind) -> Scene:
    """Draw the scene of one image: up to two pieces of clutter, and one object of the kind on top."""
    rng = seeded(seed, folder, index)
    behind = [draw_object(rng, None, CLUTTER, spread=0.5, scale=(0.04, 0.09)) for _ in range(rng.integers(3))]
    subject = draw_object(rng, label, kind, spread=0.08, scale=(0.40, 0.46))
    return on_background(rng, (*behind, subject))


def draw_crowd(seed: int, folder: str, index: int, kinds: dict[str, Kind], size: int) -> Scene:
    """Draw a scene of 2 to 4 labelled objects among clutter, at least half of each visible at this size in pixels.

    The classes alternate for the lowest object; the objects above it are of any class.
    """
    rng = seeded(seed, folder, index)
    classes = list(kinds)
    others = rng.integers(len(classes), size=rng.integers(1, 4))
    labels = [classes[index % len(classes)], *(classes[i] for i in others)]
    while True:
        behind = [draw_object(rng, None, CLUTTER, spread=0.5, scale=(0.02, 0.05)) for _ in range(rng.integers(4))]
        subjects = [
            draw_object(rng, label, kinds[label], spread=0.32, scale=(0.16, 0.22), period=(0.08, 0.12))
            for label in labels
        ]
        before = [draw_object(rng, None, CLUTTER, spread=0.4, scale=(0.02, 0.05)) for _ in range(rng.integers(2))]
        objects = (*behind, *subjects, *before)
        if min(visible_shares(objects, size)) >= 0.5:
            return on_background(rng, objects)


# ---- Rendering.


def local_frame(thing: Object, x: Plane, y: Plane, rotation: float, unit: float) -> tuple[Plane, Plane]:
    """Image coordinates relative to the object's centre, rotated by `rotation` and in units of `unit`."""
    x, y = (x - thing.centre[0]) / unit, (y - thing.centre[1]) / unit
    across, down = float(np.cos(rotation)), float(np.sin(rotation))
    return across * x + down * y, across * y - down * x


def signed_distance(thing: Object, x: Plane, y: Plane) -> Plane:
    """Distance from each point to the object's edge, negative inside, as a fraction of the image's side."""
    return thing.scale * SHAPES[thing.shape](*local_frame(thing, x, y, thing.rotation, thing.scale))


def surface(thing: Object, x: Plane, y: Plane) -> Planes:
    """The object's colours, as if it covered every point."""
    u, v = local_frame(thing, x, y, thing.texture_rotation, thing.period)
    return mix(thing.colours, TEXTURES[thing.texture](u + thing.phase[0], v + thing.phase[1]))


def mix(colours: tuple[Colour, Colour], share: Plane) -> Planes:
    """The first colour where the share is 0, the second where it is 1."""
    first, second = np.array(colours, np.float32).reshape(2, 3, 1, 1)
    return first + share * (second - first)


def reach(thing: Object, num_samples: int) -> tuple[slice, slice]:
    """The rows and columns that the object and its shadow can touch; of small clutter, few."""
    radius = 1.7 * thing.scale + 0.07
    spans = [(int((c - radius) * num_samples), int((c + radius) * num_samples) + 1) for c in thing.centre]
    columns, rows = (slice(max(0, first), last) for first, last in spans)
    return rows, columns


def sample_points(size: int) -> tuple[Plane, Plane]:
    """Positions of the 2 x 2 samples of each pixel: x and y as fractions of the image's side."""
    x, y = np.meshgrid(*[(np.arange(2 * size, dtype=np.float32) + 0.5) / (2 * size)] * 2)
    return x, y


def render(scene: Scene, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Render a scene; each pixel is the mean of 2 x 2 samples."""
    rng = np.random.default_rng(scene.noise_seed)
    n = 2 * size
    x, y = sample_points(size)
    light_x, light_y = float(np.cos(scene.light)), float(np.sin(scene.light))

    across, down = BACKGROUNDS[scene.background]
    values = Image.fromarray(rng.uniform(-0.2, 1.2, (down, across)).astype(np.float32))
    smooth = np.asarray(values.resize((n, n), Image.Resampling.BICUBIC))
    image = mix(scene.background_colours, np.clip(smooth, 0, 1))
    for thing in scene.objects:
        rows, columns = reach(thing, n)
        px, py = x[rows, columns], y[rows, columns]
        shadow = np.clip(0.5 - signed_distance(thing, px + 0.03 * light_x, py + 0.03 * light_y) / 0.06, 0, 1)
        coverage = np.clip(0.5 - n * signed_distance(thing, px, py), 0, 1)
        below = image[:, rows, columns] * (1 - 0.45 * shadow)
        image[:, rows, columns] = below + coverage * (surface(thing, px, py) - below)
    image *= 1 + 0.35 * ((x - 0.5) * light_x + (y - 0.5) * light_y)

    image = (image[:, ::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, ::2] + image[:, 1::2, 1::2]) / 4
    image += scene.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(255 * image.transpose(1, 2, 0) + 0.5, 0, 255).astype(np.uint8)


def find_layers(objects: tuple[Object, ...], size: int) -> UInt8[np.ndarray, "h w"]:
    """The object at each pixel: its index in the list, counted from 1, or 0 for the background.

    A pixel belongs to the object of most of its 2 x 2 samples, and to the upper one of two with equally many.
    """
    n = 2 * size
    x, y = sample_points(size)
    samples = np.zeros((n, n), np.uint8)
    for layer, thing in enumerate(objects, 1):
        rows, columns = reach(thing, n)
        samples[rows, columns][signed_distance(thing, x[rows, columns], y[rows, columns]) < 0] = layer
    a, b, c, d = samples[::2, ::2], samples[::2, 1::2], samples[1::2, ::2], samples[1::2, 1::2]
    # The second highest of the four: what three or four agree on, and the upper of two pairs.
    return np.maximum(np.minimum(np.maximum(a, b), np.maximum(c, d)), np.maximum(np.minimum(a, b), np.minimum(c, d)))


def visible_shares(objects: tuple[Object, ...], size: int) -> list[float]:
    """For each labelled object, the share of its pixels in the image that no other object covers."""
    layers = find_layers(objects, size)
    return [
        np.count_nonzero(layers == layer) / np.count_nonzero(find_layers((thing,), size))
        for layer, thing in enumerate(objects, 1)
        if thing.label is not None
    ]
