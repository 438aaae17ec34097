"""Everything that fixes the network's shape."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["DEFAULT_NEIGHBOURS", "GRID_SIZES", "MAX_LAYERS", "PonitaConfig", "check_num_weights"]

#: Grid sizes on offer: 6 octahedron, 8 cube, 12 icosahedron, 20 dodecahedron, 32 = 12 + 20, 62 = 12 + 20 + 30.
GRID_SIZES = (6, 8, 12, 20, 32, 62)

#: Most layers and weights of a network. Far beyond any use: a larger number is a slip or a forgery, and is refused
#: before memory is taken.
MAX_LAYERS, _MAX_WEIGHTS = 1_000, 1_000_000_000

#: Average number of neighbours where none was counted in a training set.
DEFAULT_NEIGHBOURS = 10.0


class PonitaConfig(BaseModel):
    """Everything that fixes the network's shape. Refuses unknown and out-of-range values by field name.

    Attributes:
        cutoff: Radius of the neighbourhood, Å.
        num_ori: Orientations in the grid (one of ``GRID_SIZES``), or 0 for PNITA on R³.
        channels: Feature channels at every atom and orientation.
        num_layers: ConvNeXt blocks.
        l_max: Highest Legendre degree of the kernels (0 is forced where ``num_ori`` is 0).
        widening: Hidden width of a block over ``channels``.
        num_bessel: Bessel functions of the distance.
        radial_hidden: Width of the radial network's hidden layer.
        radial_basis: Radial functions that the layers combine.
        avg_num_neighbours: Scales the first weights of the sum over neighbours; None: counted in the training set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    form: Literal["force-field"] = "force-field"
    cutoff: Annotated[float, Field(gt=0.5, le=100.0)] = 5.0
    num_ori: int = 12
    channels: Annotated[int, Field(ge=1)] = 64
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = 4
    l_max: Annotated[int, Field(ge=0, le=12)] = 2
    widening: Annotated[int, Field(ge=1)] = 4
    num_bessel: Annotated[int, Field(ge=1)] = 8
    radial_hidden: Annotated[int, Field(ge=1)] = 64
    radial_basis: Annotated[int, Field(ge=1)] = 32
    avg_num_neighbours: Annotated[float, Field(gt=0)] | None = None

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

    @model_validator(mode="after")
    def _of_bounded_size(self) -> Self:
        check_num_weights(self.num_weights(1))
        return self

    def num_weights(self, num_species: int) -> int:
        """Number of weights of a network of this shape."""
        channels, degrees, hidden = self.channels, self.l_max + 1, self.channels * self.widening
        radial = (self.num_bessel + 1) * self.radial_hidden + (self.radial_hidden + 1) * self.radial_basis
        fibre = degrees * channels if self.num_ori else 0
        convolution = fibre + 2 * channels + degrees * channels * self.radial_basis
        mixing = 2 * channels + (channels + 1) * hidden + (hidden + 1) * channels
        return num_species * channels + radial + self.num_layers * (convolution + mixing + channels + 1)


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
