"""Everything that fixes the shape of a network, one class for each form; read without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ponita_ff.settings import shown

__all__ = [
    "DEFAULT_NEIGHBOURS",
    "FORM_CONFIGS",
    "GRID_SIZES",
    "GROUP_ORDERS",
    "MAX_LAYERS",
    "MOVED_DEGREES",
    "AttentionConfig",
    "DirectionalConfig",
    "FiniteGroupConfig",
    "FormConfig",
    "FrameAveragingConfig",
    "GridConfig",
    "MessagePassingConfig",
    "MovingVectorsConfig",
    "OrientedPointsConfig",
    "PonitaConfig",
    "check_num_weights",
    "form_config",
]

#: Grid sizes on offer: 6 octahedron, 8 cube, 12 icosahedron, 20 dodecahedron, 32 = 12 + 20, 62 = 12 + 20 + 30.
GRID_SIZES = (6, 8, 12, 20, 32, 62)

#: Most layers and weights of a network. Far beyond any use: a larger number is a slip or a forgery, and is refused
#: before memory is taken.
MAX_LAYERS, _MAX_WEIGHTS = 1_000, 1_000_000_000

#: Average number of neighbours where none was counted in a training set.
DEFAULT_NEIGHBOURS = 10.0

#: Rotations in each finite group.
GROUP_ORDERS = {"tetrahedral": 12, "octahedral": 24, "icosahedral": 60}

#: Polynomials of a moved pair's length.
MOVED_DEGREES = 4


class FormConfig(BaseModel):
    """Everything that fixes the shape of a form of network. Refuses unknown and out-of-range values by field name.

    Attributes:
        form: The form of network; ARCHITECTURE.md lists them.
        cutoff: Radius of the neighbourhood, Å.
        channels: Feature channels at every atom and point of its fibre (orientation, rotation).
        num_layers: Blocks.
        widening: Hidden width of a block over ``channels``.
        num_bessel: Bessel functions of the distance.
        radial_hidden: Width of the radial network's hidden layer.
        radial_basis: Radial functions that the layers combine.
        avg_num_neighbours: Scales the first weights of the sum over neighbours; None: counted in the training set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    form: str
    cutoff: Annotated[float, Field(gt=0.5, le=100.0)] = 5.0
    channels: Annotated[int, Field(ge=1)] = 64
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 4
    widening: Annotated[int, Field(ge=1)] = 4
    num_bessel: Annotated[int, Field(ge=1)] = 8
    radial_hidden: Annotated[int, Field(ge=1)] = 64
    radial_basis: Annotated[int, Field(ge=1)] = 32
    avg_num_neighbours: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _of_bounded_size(self) -> Self:
        check_num_weights(self.num_weights(1))
        return self

    @property
    def grid_size(self) -> int:
        """Orientations in the grid that a file holds; 1, of no meaning, where there is none."""
        return 1

    def num_weights(self, num_species: int) -> int:
        """Number of weights of a network of this shape."""
        channels = self.channels
        radial = (self.num_bessel + 1) * self.radial_hidden + (self.radial_hidden + 1) * self.radial_basis
        layer = self._sum_weights() + 2 * channels + self._mixing_weights() + channels + 1
        return num_species * channels + radial + self.num_layers * layer

    def _sum_weights(self) -> int:
        """Weights of the sum over neighbours in one layer."""
        raise NotImplementedError("every form has its own sum over neighbours")

    def _mixing_weights(self) -> int:
        """Weights of the two maps between channels in one layer."""
        hidden = self.channels * self.widening
        return (self.channels + 1) * hidden + (hidden + 1) * self.channels


class GridConfig(FormConfig):
    """A form on R³ (``num_ori`` 0) or on R³×S² with a grid of orientations.

    Attributes:
        num_ori: Orientations in the grid (one of ``GRID_SIZES``), or 0 for none: distances only.
        l_max: Highest Legendre degree of the kernels (0 is forced where ``num_ori`` is 0).
    """

    num_ori: int = 12
    l_max: Annotated[int, Field(ge=0, le=12)] = 2

    @field_validator("num_ori")
    @classmethod
    def _known_grid(cls, value: int) -> int:
        if value not in (0, *GRID_SIZES):
            raise ValueError(f"no orientation grid of {value}: choose one of {GRID_SIZES}, or 0 for PNITA")
        return value

    @model_validator(mode="before")
    @classmethod
    def _distances_only(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("num_ori") == 0:
            return {"l_max": 0, **data}
        return data

    @model_validator(mode="after")
    def _no_angles_without_orientations(self) -> Self:
        if self.num_ori == 0 and self.l_max != 0:
            raise ValueError("l_max must be 0 (or left out) where num_ori is 0: PNITA sees distances only")
        return self

    @property
    def grid_size(self) -> int:
        """Orientations in the grid that a file holds; 1, of no meaning, where there is none."""
        return max(self.num_ori, 1)

    def _fibre_weights(self) -> int:
        """Weights of the convolution over orientations, of the atom itself, and biases, in one layer."""
        return ((self.l_max + 1) * self.channels if self.num_ori else 0) + 2 * self.channels


class PonitaConfig(GridConfig):
    """Convolution over neighbours and orientations; PNITA where ``num_ori`` is 0."""

    form: Literal["force-field"] = "force-field"

    def _sum_weights(self) -> int:
        return self._fibre_weights() + (self.l_max + 1) * self.channels * self.radial_basis


class MessagePassingConfig(GridConfig):
    """Messages that are an MLP of both atoms' features and the invariants of the pair."""

    form: Literal["message-passing"] = "message-passing"

    def _sum_weights(self) -> int:
        kernel = (self.l_max + 1) * self.channels * self.radial_basis
        return self._fibre_weights() + kernel + 3 * self.channels**2 + self.channels


class MovingVectorsConfig(MessagePassingConfig):
    """The same, and every message moves a vector of its atom, from which the next layer's invariants are taken."""

    form: Literal["moving-vectors"] = "moving-vectors"  # type: ignore[assignment]

    @property
    def moved_invariants(self) -> int:
        """Invariants of a moved pair."""
        return MOVED_DEGREES + self.l_max

    def num_weights(self, num_species: int) -> int:
        """Number of weights of a network of this shape."""
        return super().num_weights(num_species) + (self.num_layers - 1) * self.channels

    def _sum_weights(self) -> int:
        return super()._sum_weights() + self.moved_invariants * self.channels


class AttentionConfig(GridConfig):
    """Attention over neighbours, smooth at the cutoff.

    Attributes:
        heads: Heads of the attention; they divide ``channels``.
    """

    form: Literal["attention"] = "attention"
    heads: Annotated[int, Field(ge=1)] = 4

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.channels % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide channels ({self.channels})")
        return self

    def _sum_weights(self) -> int:
        kernel = 2 * (self.l_max + 1) * self.channels * self.radial_basis
        return self._fibre_weights() + kernel + 4 * self.channels**2 + 2 * self.channels


class DirectionalConfig(FormConfig):
    """A form whose kernels are expanded in spherical harmonics.

    Attributes:
        l_max: Highest degree of the kernels.
    """

    l_max: Annotated[int, Field(ge=0, le=6)] = 2


class OrientedPointsConfig(DirectionalConfig):
    """Convolution on the cloud of oriented points that the directed edges are: exactly invariant, without a grid."""

    form: Literal["oriented-points"] = "oriented-points"

    def _sum_weights(self) -> int:
        degrees = self.l_max + 1
        return degrees * self.channels * self.radial_basis + degrees * self.channels + 2 * self.channels


class FiniteGroupConfig(DirectionalConfig):
    """Convolution on SE(3), with a finite group of rotations at every atom.

    Attributes:
        group: The rotations: ``tetrahedral`` (12), ``octahedral`` (24) or ``icosahedral`` (60).
    """

    form: Literal["finite-group"] = "finite-group"
    group: Literal["tetrahedral", "octahedral", "icosahedral"] = "tetrahedral"
    channels: Annotated[int, Field(ge=1)] = 16

    def _sum_weights(self) -> int:
        return (self.l_max + 1) ** 2 * self.channels * self.radial_basis + 2 * self.channels

    def _mixing_weights(self) -> int:
        order, hidden = GROUP_ORDERS[self.group], self.channels * self.widening
        return (order * self.channels + 1) * hidden + (order * hidden + 1) * self.channels


class FrameAveragingConfig(DirectionalConfig):
    """A network that sees directions, averaged over the frames of the structure's principal axes."""

    form: Literal["frame-averaging"] = "frame-averaging"

    def _sum_weights(self) -> int:
        return (self.l_max + 1) ** 2 * self.channels * self.radial_basis + 2 * self.channels


#: Configs by the form that they describe.
FORM_CONFIGS: dict[str, type[FormConfig]] = {
    str(config.model_fields["form"].default): config
    for config in (
        PonitaConfig,
        OrientedPointsConfig,
        FiniteGroupConfig,
        MessagePassingConfig,
        MovingVectorsConfig,
        AttentionConfig,
        FrameAveragingConfig,
    )
}


def form_config(values: Any) -> FormConfig:
    """The config that some settings describe; the force-field form where they name none.

    Args:
        values: A config, or a mapping of its fields.

    Raises:
        ValueError: For a form that does not exist, or, as pydantic's error, for wrong fields.
    """
    if isinstance(values, FormConfig):
        return values
    form = values.get("form", "force-field") if isinstance(values, dict) else "force-field"
    if not isinstance(form, str) or form not in FORM_CONFIGS:
        raise ValueError(f"no form of network is called {shown(form)}: choose one of {', '.join(FORM_CONFIGS)}")
    return FORM_CONFIGS[form].model_validate(values)


def check_num_weights(number: int) -> None:
    """Refuse a network that is too large for any machine, before memory is taken.

    Raises:
        ValueError: Naming the number of weights.
    """
    if number > _MAX_WEIGHTS:
        raise ValueError(
            f"the network would have {_in_words(number)} weights ({_in_words(4 * number)} bytes in float32), and at "
            f"most {_in_words(_MAX_WEIGHTS)} are allowed: check channels, widening, num_layers and the radial functions"
        )


def _in_words(number: int) -> str:
    """Rounded; a whole number may be beyond any float."""
    digits = len(str(number)) if number < 10**300 else 301
    return f"{number:.1e}" if digits <= 300 else "more than 1e300"
